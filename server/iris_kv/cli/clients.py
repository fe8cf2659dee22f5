"""The verb config: the snippet that makes a client start the server, and where it goes."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import typer

from iris_kv.cli.output import FoldersOption, JsonOption, PromptOption, WorkspaceOption, locate, note, reported, show
from iris_kv.location import VARIABLE

clients = typer.Typer()

NAME: Final = "iris-kv"


class Client(StrEnum):
    """The clients that `config` knows."""

    claude_code = "claude-code"
    claude_desktop = "claude-desktop"
    vscode = "vscode"
    cursor = "cursor"
    zed = "zed"
    windsurf = "windsurf"


class _Place(NamedTuple):
    file: str
    table: str
    extra: Mapping[str, object] = {}
    for_all: bool = False
    """Whether the client has one file for all its windows."""


_STDIO: Final = {"type": "stdio"}
_PLACES: Final[Mapping[Client, _Place]] = {
    Client.claude_code: _Place(".mcp.json in the project", "mcpServers", _STDIO),
    Client.claude_desktop: _Place(
        "claude_desktop_config.json, in ~/Library/Application Support/Claude/ on macOS, ~/.config/Claude/ on Linux",
        "mcpServers",
        for_all=True,
    ),
    Client.vscode: _Place(".vscode/mcp.json in the project", "servers", _STDIO),
    Client.cursor: _Place(".cursor/mcp.json in the project, or ~/.cursor/mcp.json", "mcpServers", _STDIO),
    Client.zed: _Place(".zed/settings.json in the project, or Zed's settings.json", "context_servers"),
    Client.windsurf: _Place("~/.codeium/windsurf/mcp_config.json", "mcpServers", for_all=True),
}


@clients.command(short_help="Print the snippet for a client.")
def config(
    client: Annotated[Client, typer.Option(help="Which client.")],
    remove: Annotated[bool, typer.Option("--remove", help="Show what to take out instead.")] = False,
    workspace: WorkspaceOption = None,
    instructions: FoldersOption = None,
    prompt: PromptOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the snippet for a client, and where it goes; nothing is written."""
    place = _PLACES[client]
    if remove:
        step = f"take the entry {NAME!r} out of {place.table!r} in {place.file}"
        if client is Client.claude_code:
            step = f"claude mcp remove {NAME}, or {step}"
        show({"client": client.value, "remove": step}, step, as_json=as_json)
        return
    with reported(as_json=as_json):
        root = locate(workspace).root
    arguments = _serve_arguments(instructions, prompt)
    snippet = snippet_for(client, command_path(), root, arguments)
    notes = list(_notes(client, root, arguments))
    if not as_json:
        for each in notes:
            note(f"# {each}")
    data = {"client": client.value, "notes": notes, "snippet": snippet}
    show(data, json.dumps(snippet, indent=2, ensure_ascii=False), as_json=as_json)


def _serve_arguments(folders: Sequence[Path] | None, prompt: Path | None) -> list[str]:
    """Return the command's arguments, with absolute paths: a client starts it in any folder."""
    paths = [("--instructions", folder) for folder in folders or ()] + ([("--prompt", prompt)] if prompt else [])
    return ["serve", *(word for name, path in paths for word in (name, os.path.abspath(os.path.expanduser(path))))]


def snippet_for(client: Client, command: str, workspace: Path, arguments: Sequence[str]) -> dict[str, object]:
    """Return the configuration that makes a client start the server for a workspace."""
    place = _PLACES[client]
    entry = {**place.extra, "command": command, "args": [*arguments], "env": {VARIABLE: str(workspace)}}
    return {place.table: {NAME: entry}}


def command_path() -> str:
    """Return the absolute path of the command, which clients start without a shell's search path."""
    started = Path(sys.argv[0])
    if started.name == NAME and started.exists():
        return str(started.absolute())
    return shutil.which(NAME) or str(Path(sys.executable).parent / NAME)


def _notes(client: Client, workspace: Path, arguments: Sequence[str]) -> Iterator[str]:
    place = _PLACES[client]
    yield f"goes into {place.file}" + (", or run the command below" if client is Client.claude_code else "")
    if place.for_all:
        yield f"this file is for all projects: every window then works on {workspace}"
    if client is Client.claude_code:
        # The command's --env takes every word up to the next option, so the name comes before it.
        added = ["claude", "mcp", "add", NAME, "--env", f"{VARIABLE}={workspace}", "--", command_path(), *arguments]
        yield shlex.join(added)
