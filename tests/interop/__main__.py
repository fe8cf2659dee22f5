"""`make interop`: the Inspector and the conformance suite against this server."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tests.interop.conformance import run_conformance
from tests.interop.inspector import Era, Inspector
from tests.interop.node import Tools, installed_tools
from tests.interop.report import Report, check_log
from tests.interop.session import run_over_http, run_session

CACHE = Path(".cache/interop")
ERAS: tuple[Era, ...] = ("legacy", "modern")
STOP_S = 10


def main() -> int:
    """Run everything; return 1 if a step failed."""
    tools = installed_tools(CACHE.absolute())
    report = Report()
    with tempfile.TemporaryDirectory(prefix="iris-kv-interop-") as name:
        folder = Path(name)
        environment = clean_environment(folder / "home")
        with ThreadPoolExecutor() as threads:
            for done in [threads.submit(inspect_over_stdio, tools, era, folder, environment, report) for era in ERAS]:
                done.result()
        log = folder / "log"
        with launched(folder / "http", log, environment) as url:
            for era in ERAS:
                run_over_http(Inspector(tools.inspector, era, ("--server-url", url), environment), report)
            run_conformance(tools.conformance, url, folder / "results", environment, report)
        with report.step("launcher: the server logged no error"):
            check_log(log.read_text(encoding="utf-8"))
    print(report.summary())
    return 1 if report.failed else 0


def clean_environment(home: Path) -> dict[str, str]:
    """Return this process' environment with an empty home folder and without settings of the server or the tools."""
    home.mkdir()
    ours = ("IRIS_KV_", "USE_KV_CACHE_PROMPT", "MCP_", "XDG_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**kept, "HOME": str(home)}


def inspect_over_stdio(tools: Tools, era: Era, folder: Path, environment: Mapping[str, str], report: Report) -> None:
    """Run the Inspector's steps of one era in a workspace of their own."""
    workspace = folder / era
    workspace.mkdir()
    command = Path(sys.executable).with_name("iris-kv")
    server = ("--", str(command), "serve", "--profile", "full", "--workspace", str(workspace))
    run_session(Inspector(tools.inspector, era, server, environment), report)


@contextmanager
def launched(workspace: Path, log: Path, environment: Mapping[str, str]) -> Generator[str]:
    """Start the launcher on a new workspace, yield its URL, and end it after."""
    workspace.mkdir()
    command = [sys.executable, "-m", "tests.interop.launcher", str(workspace)]
    with (
        log.open("w") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=dict(environment)) as process,
    ):
        try:
            url = process.stdout.readline().strip() if process.stdout else ""
            if not url:
                raise SystemExit(f"interop: the launcher did not start:\n{log.read_text(encoding='utf-8')}")
            yield url
        finally:
            _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()


sys.exit(main())
