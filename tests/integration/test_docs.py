"""The programs, shell commands and files in the documentation do what its text says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.surfaces.http_process import started

from iris_kv.rollout import LiveRollout
from iris_kv.settings import Settings

DOCS = Path(__file__).parents[2] / "docs"


def blocks(page: str, chapter: str = "") -> list[tuple[str, str]]:
    """Return the fenced blocks of a page, or of one chapter, each with its language."""
    text = (DOCS / page).read_text()
    if chapter:
        text = text.partition(f"\n## {chapter}\n")[2].partition("\n## ")[0]
    return re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def run(command: list[str], folder: Path, **env: str) -> str:
    """Run a program that must not fail, and return what it printed, its errors included."""
    ours = ("IRIS_KV_", "USE_KV_CACHE_PROMPT", "XDG_", "OPENAI_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    ended = subprocess.run(
        command,
        env={**kept, "HOME": str(folder / "home"), "PATH": path, **env},
        cwd=folder / "work",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode in {0, 2}, ended.stdout
    return ended.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for made in ("home/.config/iris-kv", "work/.iris/instructions"):
        (tmp_path / made).mkdir(parents=True)
    return tmp_path


def test_the_page_on_summaries_does_what_it_says(chat: Any, folder: Path) -> None:
    found = blocks("context.md", "Conversation summaries")
    program = "\n".join(block for kind, block in found if kind == "python")
    (printed,) = (block for kind, block in found if kind == "text")

    with chat.serve(chat.said("All is settled.")) as server:
        said = run([sys.executable, "-c", program], folder, OPENAI_BASE_URL=server.url, OPENAI_API_KEY="any")

    assert said == f"{printed}All is settled.\nlibrary summary\n"
    assert [request.body["messages"][1]["content"][:20] for request in server.asked] == ["Point 29 is settled."]


@pytest.mark.parametrize(
    ("page", "chapter", "files", "outputs"),
    [
        ("context.md", "Rollout", {"toml": "home/.config/iris-kv/rollout.toml"}, 2),
        (
            "instructions.md",
            "",
            {"markdown": "work/.iris/instructions/release-notes.md", "toml": "home/.config/iris-kv/config.toml"},
            4,
        ),
    ],
)
def test_each_command_prints_what_stands_below_it(
    folder: Path, page: str, chapter: str, files: dict[str, str], outputs: int
) -> None:
    printed, shown = "", 0
    for kind, block in blocks(page, chapter):
        if kind in files:
            (folder / files[kind]).write_text(block)
        elif kind == "sh":
            printed = run(["sh", "-uc", block], folder)
        else:
            assert block in printed
            shown += 1
    assert shown == outputs


def test_the_rollout_files_of_the_page_are_valid(tmp_path: Path) -> None:
    files = [block for kind, block in blocks("context.md", "Rollout") if kind == "toml"]
    for number, block in enumerate(files):
        (tmp_path / f"{number}.toml").write_text(block)
        assert LiveRollout(Settings(), [tmp_path / f"{number}.toml"]).errors == ()
    assert len(files) == 5


@pytest.mark.skipif(shutil.which("curl") is None, reason="the page's commands are curl's")
def test_the_commands_with_curl_do_what_the_page_says(folder: Path) -> None:
    ((_, block),) = blocks("http.md", "REST with curl")
    here, _, elsewhere = block.rpartition("curl https://kv.example.com/")
    home = {"HOME": str(folder / "home"), "XDG_CONFIG_HOME": str(folder / "home/.config")}
    (folder / "work/notes.txt").write_text("first the schema\n")
    (folder / "boxes").mkdir()

    with started("--http", "127.0.0.1:0", "--workspace", str(folder / "work"), env=home) as server:
        said = run(
            ["sh", "-euc", here.replace("http://127.0.0.1:8765", server.url).replace("curl", "curl -sf")], folder
        )
    _, bash = next(block for block in blocks("operations.md", "Tokens"))
    token = re.findall(r"ikv_\S+", run(["sh", "-euc", bash], folder))[0]
    with started("--http", "127.0.0.1:0", "--sandboxes", str(folder / "boxes"), env=home) as server:
        made = run(["sh", "-euc", f"curl -sf {server.url}/{elsewhere}"], folder, TOKEN=token)

    assert "first the schema\n" in said
    assert said.count('"key":"notes"') == 5
    assert json.loads(made) == {"id": "box-1"}
    assert (folder / "boxes/box-1").is_dir()


@pytest.mark.parametrize("row", re.findall(r"^\| \[.*clients/with_.*$", (DOCS / "http.md").read_text(), re.MULTILINE))
def test_each_client_connects_as_the_page_says_in_the_version_that_it_names(row: str) -> None:
    client, package, code = row.strip("| ").split(" | ")
    (program,) = [DOCS / each for each in re.findall(r"\((.*)\)", client)]
    own = program.with_name(program.stem.removeprefix("with_") + ".txt")
    pins = own if own.exists() else DOCS.parent / "constraints.txt"

    shown = [each for each in re.findall(r"`(.*?)`", code) if each.endswith(")")]

    assert re.search(rf"^{package.replace(' ', '==')}\b", pins.read_text(), re.MULTILINE)
    assert shown
    assert [each for each in shown if each not in program.read_text()] == []


def test_every_client_that_is_tried_stands_in_the_page() -> None:
    tried = sorted(path.name for path in (DOCS.parent / "tests/interop/clients").glob("with_*.py"))
    assert sorted(re.findall(r"clients/(with_\w+\.py)", (DOCS / "http.md").read_text())) == tried
