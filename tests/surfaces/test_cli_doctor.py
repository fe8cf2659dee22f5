"""The verb doctor: it tells what is chosen, what happened, and what is wrong, whatever is broken."""

from __future__ import annotations

import logging
import os
import sqlite3
from pathlib import Path

import anyio
import pytest
from test_cli_verbs import Cli, isolated_cli

from iris_kv.errorlog import ErrorLog, error_log_path
from iris_kv.guidance import SystemClock
from iris_kv.location import Location
from iris_kv.model import DAY_MS
from iris_kv.settings import Settings
from iris_kv.workspace import Workspace

cli = pytest.fixture(isolated_cli)

ME = f"cli (pid {os.getpid()})"
UNCALLED = "no process called get_instruction in the last seven days"


async def call_instructions(workspace: Path, *tags: str) -> None:
    """Fetch instructions as an MCP server does for an agent."""
    found = Workspace(Location(root=workspace, reason="test"), Settings(), face="mcp")
    for tag in tags:
        await found.get_instruction(tag)
    await found.aclose()


class TwoDaysAgo:
    def now_ms(self) -> int:
        return SystemClock().now_ms() - 2 * DAY_MS


def log_errors(workspace: str, *texts: str) -> None:
    log = ErrorLog(error_log_path(), workspace, SystemClock())
    for text in texts:
        log.emit(logging.makeLogRecord({"msg": text, "levelno": logging.ERROR}))


def test_doctor_of_a_workspace_in_use_finds_nothing_wrong(cli: Cli) -> None:
    cli("put", "artifacts", "k", "v")
    cli("get", "artifacts", "k")
    anyio.run(call_instructions, cli.workspace, "research", "research", "presentation")

    lines = cli("doctor").text.splitlines()
    data = cli("doctor", "--json").json

    assert f"SQLite {sqlite3.sqlite_version}" in lines[0]
    assert lines[1] == f"workspace: {cli.workspace} (chosen by: IRIS_KV_WORKSPACE)"
    assert "project: last written never; last read never" in lines
    assert "get_instruction in the last seven days: presentation 1, research 2" in lines
    assert lines[-1] == "problems found: none"
    artifacts = data["activity"][-1]
    assert (artifacts["scope"], artifacts["written"]["by"], artifacts["read"]["by"]) == ("artifacts", ME, ME)
    activity = f"last written {artifacts['written']['at']} by {ME}; last read {artifacts['read']['at']} by {ME}"
    assert f"artifacts: {activity}" in lines
    assert (data["instruction_calls"], data["problems"]) == ({"presentation": 1, "research": 2}, [])


def test_doctor_of_a_fresh_workspace_says_what_to_do_and_finds_no_problem(cli: Cli) -> None:
    lines = cli("doctor").text.splitlines()

    assert lines[-2].startswith("note: this workspace has no cache yet: put something")
    assert lines[-1] == "problems found: none"
    assert list(cli.workspace.iterdir()) == []


def test_doctor_says_how_to_make_the_trigger_table_reach_the_model(cli: Cli) -> None:
    async def serve_two_days_ago() -> None:
        found = Workspace(Location(root=cli.workspace, reason="test"), Settings(), face="mcp", clock=TwoDaysAgo())
        await found.seed()
        await found.aclose()

    cli("put", "project", "k", "v")
    fresh = cli("doctor", "--json").json
    anyio.run(serve_two_days_ago)
    (problem,) = cli("doctor", "--json", code=1).json["problems"]

    assert fresh["problems"] == []
    assert fresh["notes"][0].startswith(UNCALLED)
    assert problem.startswith(UNCALLED)
    assert "iris-kv prompt --install AGENTS.md" in problem


def test_doctor_names_the_layer_of_each_setting(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    cli.configure("[scopes.task]\nttl_hours = 5\n")
    monkeypatch.setenv("USE_KV_CACHE_PROMPT", "0")

    text = cli("doctor", "--trust-owner").text
    data = cli("doctor", "--trust-owner", "--json").json

    assert data["settings"] == {
        "trust_owner": "argument",
        "durability": "environment",
        "prompt.compact": "environment USE_KV_CACHE_PROMPT",
        "scopes.task.ttl_hours": "workspace configuration",
    }
    assert all(f"setting {name} from {layer}\n" in text for name, layer in data["settings"].items())
    assert data["prompt"] == "full (flag in environment USE_KV_CACHE_PROMPT)"


def test_doctor_looks_on_where_the_configuration_is_broken(cli: Cli) -> None:
    cli("put", "project", "k", "v")
    cli.configure("[scopes\n")

    data = cli("doctor", "--json", code=1).json

    assert ".iris/config.toml is not TOML" in data["problems"][0]
    assert data["activity"][2]["written"]["by"] == ME


def test_doctor_tells_of_a_workspace_that_does_not_exist(cli: Cli) -> None:
    data = cli("doctor", "--workspace", "none", "--json", code=1).json

    assert (data["workspace"], data["workspace_reason"], data["activity"]) == (None, "none found", [])
    assert "--workspace is 'none'" in data["problems"][0]
    assert "workspace: none (chosen by: none found)" in cli("doctor", "--workspace", "none", code=1).text


def test_doctor_tells_of_a_cache_that_cannot_be_opened(cli: Cli) -> None:
    cli("put", "project", "k", "v")
    (cli.workspace / ".iris" / "kv-cache").rename(cli.home / "moved")
    (cli.workspace / ".iris" / "kv-cache").symlink_to(cli.home / "moved")

    assert any(each.startswith("forbidden: ") for each in cli("doctor", "--json", code=1).json["problems"])


def test_doctor_tells_of_instruction_files_that_are_not_served(cli: Cli) -> None:
    overlay = cli.workspace / ".iris" / "instructions"
    overlay.mkdir(parents=True)
    (overlay / "bad.md").write_text("nothing")

    data = cli("doctor", "--json", code=1).json

    assert [error["file"] for error in data["library_errors"]] == [".iris/instructions/bad.md"]
    assert any(problem.startswith(".iris/instructions/bad.md: ") for problem in data["problems"])


def test_doctor_warns_of_a_synced_folder(cli: Cli, tmp_path: Path) -> None:
    synced = tmp_path / "OneDrive" / "work"
    synced.mkdir(parents=True)

    assert "synced folder" in cli("doctor", "--workspace", str(synced), code=1).text


def test_doctor_shows_the_last_errors_of_servers_for_this_workspace(cli: Cli) -> None:
    log_errors(str(cli.workspace), *(f"error {n}" for n in range(12)))
    log_errors("none", "found no workspace")
    log_errors("/another", "another's")

    data = cli("doctor", "--json").json
    lines = [line for line in cli("doctor").text.splitlines() if line.startswith("server error")]

    texts = [f"error {n}" for n in range(12)] + ["found no workspace"]
    assert [error["text"] for error in data["server_errors"]] == texts
    assert lines[0] == "server errors: the newest 10; 3 older ones with --json"
    assert [line.split(": ")[-1] for line in lines[1:]] == texts[-10:]
