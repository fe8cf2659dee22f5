"""The servers under test: real processes, one for everybody on this machine, and one that wants tokens."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.interop.report import Report, check_log, expect
from tests.surfaces.http_process import COMMAND, HttpProcess

RUN_S = 1800
"""When a server is killed, whatever still uses it."""
ADDRESS = ("--http", "127.0.0.1:0", "--profile", "full")


class Target(NamedTuple):
    """A server that runs."""

    name: str
    url: str
    token: str | None
    """None: the server wants none, and has one workspace instead of sandboxes."""

    def mcp(self, sandbox: str) -> str:
        """Return the URL of a sandbox's endpoint, or of the only workspace's."""
        return f"{self.url}/mcp" if self.token is None else f"{self.url}/sandboxes/{sandbox}/mcp"


@contextmanager
def open_server(workspace: Path, environment: Mapping[str, str], report: Report) -> Generator[Target]:
    """Serve a new workspace to whoever is on this machine."""
    workspace.mkdir()
    name = "without a token"
    with _served(name, ("--workspace", str(workspace)), environment, report) as url:
        yield Target(name, url, None)


@contextmanager
def guarded_server(
    root: Path, sandboxes: Sequence[str], environment: Mapping[str, str], report: Report
) -> Generator[Target]:
    """Serve new sandboxes to those who have a token, which the command line makes; it is kept beside their folder."""
    for sandbox in sandboxes:
        (root / sandbox).mkdir(parents=True)
    environment = {**environment, "XDG_CONFIG_HOME": f"{root}-config"}
    options = ("--name", "interop", "--scopes", "kv:read,kv:write", "--sandboxes", ",".join(sandboxes), "--json")
    made = subprocess.run(
        [COMMAND, "token", "new", *options], stdout=subprocess.PIPE, text=True, check=True, env=environment
    )
    name = "with a token"
    with _served(name, ("--sandboxes", str(root)), environment, report) as url:
        yield Target(name, url, json.loads(made.stdout)["token"])


@contextmanager
def _served(name: str, arguments: Sequence[str], environment: Mapping[str, str], report: Report) -> Generator[str]:
    with HttpProcess(*ADDRESS, *arguments, env=environment, patience_s=RUN_S) as server:
        yield server.url
        with report.step(f"server {name}: ends when it is told to, and logged no error"):
            expect(server.end(), 0, "the exit code")
            check_log("".join(server.lines))
