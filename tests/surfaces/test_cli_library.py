"""The verbs that show what is served, and those that tell hosts and clients of it: prompt, instructions, config."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from pathlib import Path

import pytest
from test_cli_verbs import Cli, isolated_cli

from iris_kv.cli.clients import Client
from iris_kv.settings import shipped

cli = pytest.fixture(isolated_cli)

TAGS = ["document_creation", "presentation", "research", "web_development"]
INSTRUCTION = "---\nname: {name}\ndescription: Mine. Use it for mine.\nmetadata:\n  version: '{version}'\n---\n{body}"


def write_instruction(folder: Path, name: str, body: str = "# Mine\n\n## Do\n\nIt.\n", version: str = "9.0") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.md"
    file.write_text(INSTRUCTION.format(name=name, body=body, version=version))
    return file


def test_the_snippet_passes_the_prompt_and_the_instructions_on(cli: Cli) -> None:
    ran = cli("config", "--client", "claude-code", "--instructions", "split/instructions", "--prompt", "split/p.md")

    words = [
        "serve",
        "--instructions",
        f"{cli.workspace}/split/instructions",
        "--prompt",
        f"{cli.workspace}/split/p.md",
    ]
    assert json.loads(ran.text)["mcpServers"]["iris-kv"]["args"] == words
    assert shlex.join(words) in ran.err


def test_what_is_installed_has_the_rules_of_each_instruction(cli: Cli) -> None:
    cli("prompt", "--install", "AGENTS.md")

    assert " Always: " in (cli.workspace / "AGENTS.md").read_text()


def test_a_prompt_without_instructions_is_not_installed(cli: Cli) -> None:
    (cli.workspace / "mine.md").write_text("Mine\n<!-- iris:instructions -->\n")

    said = cli("prompt", "--install", "AGENTS.md", "--prompt", "mine.md", code=2).err

    assert "there are no instructions, so there is no trigger table" in said
    assert not (cli.workspace / "AGENTS.md").exists()
    assert "no instructions are served with this prompt" in cli("prompt", "--prompt", "mine.md").err


# instructions list


def test_list_shows_where_each_instruction_comes_from(cli: Cli) -> None:
    data = cli("instructions", "list", "--json").json
    lines = cli("instructions", "list").text.splitlines()

    assert [each["tag"] for each in data["instructions"]] == TAGS
    assert {each["origin"] for each in data["instructions"]} == {"shipped"}
    assert data["errors"] == []
    research = data["instructions"][2]
    about = "" if data["exact"] else "~"
    assert lines[2] == f"research {research['version']} from shipped, {about}{research['tokens']} tokens"


def test_list_shows_an_override_and_what_it_overrides(cli: Cli) -> None:
    write_instruction(cli.workspace / ".iris" / "instructions", "research")

    first = cli("instructions", "list").text.splitlines()[0]
    data = cli("instructions", "list", "--json").json["instructions"][0]

    assert first.startswith("research 9.0 from .iris/instructions, overrides shipped 1.")
    assert (data["origin"], data["overrides"][:2]) == ("workspace", "1.")


def test_list_shows_files_that_are_not_served_and_why(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "bad.md").write_text("nothing")

    assert "bad.md: has no front matter" in cli("instructions", "list", "--instructions", "..").text
    errors = cli("instructions", "list", "--instructions", "..", "--json").json["errors"]
    assert [Path(error["file"]).name for error in errors] == ["bad.md"]


def test_a_relative_folder_starts_at_the_current_one_and_not_at_the_workspace(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_instruction(tmp_path / "here" / "mine", "mine")
    monkeypatch.chdir(tmp_path / "here")

    listed = cli("instructions", "list", "--instructions", "mine", "--json").json["instructions"]

    assert listed[0]["tag"] == "mine"


def test_a_folder_may_start_at_the_home_folder_without_a_shell(cli: Cli) -> None:
    write_instruction(cli.home / "mine", "mine")

    assert cli("instructions", "list", "--instructions", "~/mine").text.startswith("mine 9.0 from ")


# instructions show


def test_show_prints_the_body_byte_for_byte(cli: Cli) -> None:
    raw = (shipped("instructions") / "research_instructions.md").read_bytes()

    shown = cli("instructions", "show", "Research")

    assert raw.endswith(b"---\n" + shown.out)
    assert cli("instructions", "show", "research", "--json").json["body"].encode() == shown.out


def test_show_prints_one_section(cli: Cli, tmp_path: Path) -> None:
    write_instruction(tmp_path / "mine", "mine", body="# Mine\n\n## First\n\nOne.\n\n## Second part\n\nTwo.\n")
    show = ("instructions", "show", "mine", "--instructions", "../mine", "--section")

    assert cli(*show, "Second part").text == "## Second part\n\nTwo.\n"
    data = cli(*show, "second-part", "--json").json
    assert (data["section"], data["body"]) == ("second-part", "## Second part\n\nTwo.\n")


def test_show_of_an_unknown_tag_lists_those_there_are(cli: Cli) -> None:
    error = cli("instructions", "show", "resaerch", code=3).err

    assert error.startswith("iris-kv: not_found: no instruction 'resaerch'; there are: research (")
    assert all(tag in error for tag in TAGS)


def test_show_of_an_unknown_section_lists_those_there_are(cli: Cli, tmp_path: Path) -> None:
    write_instruction(tmp_path / "mine", "mine")

    error = cli("instructions", "show", "mine", "--instructions", "../mine", "--section", "nope", code=3).err

    assert "mine has no section 'nope'; its sections are mine, do; " in error


# instructions check


def test_check_of_what_is_served_finds_no_problem(cli: Cli) -> None:
    assert cli("instructions", "check").text.splitlines()[-1] == "4 instructions, 0 problems"
    data = cli("instructions", "check", "--json").json
    assert (data["ok"], [each["tag"] for each in data["instructions"]]) == (True, TAGS)


def test_check_names_file_field_and_fix_and_ends_with_2(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "bad.md").write_text("---\nname: bad\n---\nBody.\n")

    ran = cli("instructions", "check", "../mine", code=2)
    data = cli("instructions", "check", "../mine", "--json", code=2).json

    assert "problem in ../mine/bad.md: field 'description' is missing; " in ran.text
    assert "add a line description: ... to the front matter" in ran.text
    assert ([problem["file"] for problem in data["problems"]], data["ok"]) == (["../mine/bad.md"], False)


def test_check_takes_a_long_body_as_an_error_only_where_it_is_strict(cli: Cli, tmp_path: Path) -> None:
    write_instruction(tmp_path / "mine", "mine", body="Line.\n" * 501)

    lax = cli("instructions", "check", "../mine").text
    strict = cli("instructions", "check", "../mine", "--strict", code=2).text

    assert "warning: the body has 501 lines" in lax
    assert "problem in ../mine/mine.md: the body has 501 lines" in strict


def test_check_of_a_folder_that_is_not_there_is_a_problem(cli: Cli) -> None:
    assert "problem in none: does not exist" in cli("instructions", "check", "none", code=2).text


# prompt


@pytest.mark.parametrize("variant", ["compact", "full"])
def test_prompt_prints_the_variant_byte_for_byte(cli: Cli, variant: str) -> None:
    shown = cli("prompt", "--variant", variant)
    data = cli("prompt", "--variant", variant, "--json").json

    assert (data["variant"], data["reason"], data["text"].encode()) == (variant, "argument", shown.out)
    assert data["digest"] == "sha256:" + hashlib.sha256(shown.out).hexdigest()
    assert shown.err.startswith(f"{variant} (chosen by: argument), ")


def test_prompt_says_by_which_layer_it_was_chosen(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    user = cli.home / ".config" / "iris-kv"
    user.mkdir(parents=True)
    seen = [cli("prompt").err.split(")")[0]]

    for prepare in (
        lambda: cli.configure("[prompt]\ncompact = false\n"),
        lambda: (user / "config.toml").write_text("[prompt]\ncompact = true\n"),
        lambda: (cli.workspace / ".env").write_text("USE_KV_CACHE_PROMPT=false\n"),
        lambda: monkeypatch.setenv("USE_KV_CACHE_PROMPT", "yes"),
        lambda: monkeypatch.setenv("IRIS_KV_PROMPT__COMPACT", "false"),
    ):
        prepare()
        seen.append(cli("prompt").err.split(")")[0])

    assert seen == [
        "compact (chosen by: phase_on in prompts/rollout.toml",
        "full (chosen by: flag in workspace configuration",
        "compact (chosen by: phase_on in prompts/rollout.toml",
        "full (chosen by: flag in .env USE_KV_CACHE_PROMPT",
        "compact (chosen by: phase_on in prompts/rollout.toml",
        "full (chosen by: flag in environment",
    ]


def test_prompt_is_rendered_from_a_file_of_ones_own_without_the_shipped_instructions(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cli.home / "mine.md").write_text("# Mine\n<!-- iris:instructions -->\n")
    write_instruction(cli.home / "folder", "mine")
    plain = cli("prompt", "--prompt", "~/mine.md", "--instructions", "../home/folder").text
    relative = cli("prompt", "--prompt", "../home/mine.md", "--instructions", "../home/folder").text
    monkeypatch.setenv("IRIS_KV_INSTRUCTIONS__SHIPPED", "true")
    monkeypatch.setenv("IRIS_KV_PROMPT__SOURCE", str(cli.home / "mine.md"))
    both = cli("prompt").text

    assert plain == relative
    assert plain.startswith("# Mine\n## Instructions\n")
    assert ("- mine: " in plain, "- research: " in plain) == (True, False)
    assert (both.startswith("# Mine\n"), "- mine: " in both, "- research: " in both) == (True, False, True)


def test_prompt_says_which_file_it_cannot_be_rendered_from(cli: Cli) -> None:
    error = cli("prompt", "--prompt", "none.md", code=8).err

    assert error.startswith("iris-kv: unavailable: the prompt source 'none.md' cannot be read (No such file")
    assert "the prompt source 'none.md'" in cli("doctor", "--prompt", "none.md", code=1).text


def test_the_rollout_beside_a_prompt_of_ones_own_is_the_one_that_counts(cli: Cli) -> None:
    (cli.home / "mine.md").write_text("<!-- iris:instructions -->\n")
    (cli.home / "rollout.toml").write_text('phase = "off"\n')

    ran = cli("prompt", "--prompt", "../home/mine.md")

    assert ran.err.startswith("full (chosen by: phase_off in home/rollout.toml), ")


def test_prompt_says_that_full_is_deprecated_where_compact_is_rolled_out(cli: Cli) -> None:
    (cli.home / ".config" / "iris-kv").mkdir(parents=True)
    on = cli("prompt", "--variant", "full").err.splitlines()
    (cli.home / ".config" / "iris-kv" / "rollout.toml").write_text("phase = 'off'\n")
    off = cli("prompt", "--variant", "full").err.splitlines()

    assert on[1].startswith("full still works and is deprecated")
    assert "set USE_KV_CACHE_PROMPT=false" in on[1]
    assert len(off) == 1


def test_prompt_is_for_the_subject_that_is_named(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("PHASE", "off"), ("ALLOW", '["ann"]')):
        monkeypatch.setenv(f"IRIS_KV_PROMPT__{name}", value)

    assert cli("prompt", "--subject", "ann").err.startswith("compact (chosen by: allow_list in environment), ")
    assert cli("prompt").err.startswith("full (chosen by: phase_off in environment), ")
    assert list(cli.workspace.iterdir()) == []


def test_prompt_refuses_a_variant_that_does_not_exist(cli: Cli) -> None:
    assert "compact or full" in cli("prompt", "--variant", "short", code=2).err


def test_prompt_installs_refreshes_and_uninstalls_the_trigger_table(cli: Cli) -> None:
    agents = cli.workspace / "AGENTS.md"
    agents.write_bytes(b"# Ours")

    assert cli("prompt", "--install", "AGENTS.md").text == "added: AGENTS.md\n"
    installed = agents.read_text()
    assert cli("prompt", "--install", "AGENTS.md", "--json").json == {"file": "AGENTS.md", "outcome": "unchanged"}
    write_instruction(cli.workspace / ".iris" / "instructions", "mine")
    assert cli("prompt", "--install", "AGENTS.md").text == "refreshed: AGENTS.md\n"
    refreshed = agents.read_text()
    assert cli("prompt", "--uninstall", "AGENTS.md").text == "removed: AGENTS.md\n"

    assert all(f"\n- {tag}: " in installed for tag in TAGS)
    assert ("\n- mine: " in installed, "\n- mine: " in refreshed) == (False, True)
    assert agents.read_bytes() == b"# Ours"


def test_prompt_says_where_there_is_nothing_to_uninstall(cli: Cli) -> None:
    assert "has no block of iris-kv" in cli("prompt", "--uninstall", "AGENTS.md", code=3).err


@pytest.mark.parametrize(
    "options", [("--install", "A", "--uninstall", "A"), ("--install", "A", "--variant", "full")], ids=str
)
def test_prompt_does_one_work_at_a_time(cli: Cli, options: tuple[str, ...]) -> None:
    assert "give one of them" in cli("prompt", *options, code=2).err
    assert not (cli.workspace / "A").exists()


def test_prompt_and_instructions_are_served_where_no_workspace_is_found(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("IRIS_KV_WORKSPACE")
    monkeypatch.chdir(cli.home)

    assert cli("prompt").text.startswith("## Identity")
    assert len(cli("instructions", "list").text.splitlines()) == 4


@pytest.mark.parametrize("verb", [("prompt",), ("instructions", "list"), ("instructions", "check")], ids=str)
def test_a_workspace_that_was_named_and_does_not_exist_is_not_passed_over(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, verb: tuple[str, ...]
) -> None:
    assert "--workspace is 'none'" in cli(*verb, "--workspace", "none", code=2).err
    monkeypatch.setenv("IRIS_KV_WORKSPACE", "${workspaceFolder}")
    assert "IRIS_KV_WORKSPACE is '${workspaceFolder}'" in cli(*verb, code=2).err


# config


TABLES = {"vscode": "servers", "zed": "context_servers"}


@pytest.mark.parametrize("client", list(Client))
def test_config_prints_a_snippet_with_an_absolute_command_and_the_workspace(cli: Cli, client: str) -> None:
    ran = cli("config", "--client", client)

    ((table, servers),) = ran.json.items()
    entry = servers["iris-kv"]
    assert table == TABLES.get(client, "mcpServers")
    assert os.access(entry["command"], os.X_OK)
    assert Path(entry["command"]).is_absolute()
    assert (entry["args"], entry["env"]) == (["serve"], {"IRIS_KV_WORKSPACE": str(cli.workspace)})
    assert entry.get("type") == ("stdio" if client in ("vscode", "cursor", "claude-code") else None)
    assert "goes into" in ran.err


@pytest.mark.parametrize("client", list(Client))
def test_config_as_json_holds_the_snippet_and_the_notes(cli: Cli, client: str) -> None:
    text = cli("config", "--client", client)
    data = cli("config", "--client", client, "--json").json

    assert (data["client"], data["snippet"]) == (client, text.json)
    assert "".join(f"# {note}\n" for note in data["notes"]) == text.err


@pytest.mark.parametrize("client", ["claude-desktop", "windsurf"])
def test_config_says_where_one_file_is_for_all_projects(cli: Cli, client: str) -> None:
    assert f"every window then works on {cli.workspace}" in cli("config", "--client", client).err


def test_the_command_for_claude_code_survives_a_shell(cli: Cli, tmp_path: Path) -> None:
    spaced = tmp_path / "a folder's größe"
    spaced.mkdir()

    notes = cli("config", "--client", "claude-code", "--workspace", str(spaced), "--json").json["notes"]

    words = shlex.split(notes[-1])
    assert words[:6] == ["claude", "mcp", "add", "iris-kv", "--env", f"IRIS_KV_WORKSPACE={spaced}"]
    assert (words[6], Path(words[7]).name, words[8:]) == ("--", "iris-kv", ["serve"])


@pytest.mark.parametrize("client", list(Client))
def test_config_says_how_to_remove_it_without_any_workspace(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, client: str
) -> None:
    monkeypatch.setenv("IRIS_KV_WORKSPACE", "/none")

    step = cli("config", "--client", client, "--remove").text

    assert "iris-kv" in step
    assert cli("config", "--client", client, "--remove", "--json").json == {"client": client, "remove": step.strip()}


def test_config_without_a_workspace_ends_with_2(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IRIS_KV_WORKSPACE")
    monkeypatch.chdir(cli.home)

    error = json.loads(cli("config", "--client", "zed", "--json", code=2).err)["error"]

    assert error["wrong"] == "no workspace was named, and none is found upwards from the current folder"
