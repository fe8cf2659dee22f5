"""`make interop`: the Inspector, the conformance suite and real clients against this server."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tests.interop.client_runs import SPOKEN, run_client
from tests.interop.conformance import run_conformance
from tests.interop.environments import client_python
from tests.interop.inspector import Era, Inspector
from tests.interop.node import Tools, installed_tools
from tests.interop.proxy import adding_token
from tests.interop.report import Report
from tests.interop.servers import Target, guarded_server, open_server
from tests.interop.session import run_over_http, run_refusal, run_session
from tests.surfaces.http_process import COMMAND

CACHE = Path(".cache/interop").absolute()
ERAS: tuple[Era, ...] = ("legacy", "modern")
THREADS = 3
"""For two cores: some of what runs waits."""


class Setting(NamedTuple):
    """What every part of a run needs."""

    tools: Tools
    folder: Path
    environment: Mapping[str, str]
    report: Report


def main() -> int:
    """Run everything; return 1 if a step failed."""
    tools = installed_tools(CACHE)
    report = Report()
    with tempfile.TemporaryDirectory(prefix="iris-kv-interop-") as name:
        folder = Path(name)
        setting = Setting(tools, folder, clean_environment(folder / "home"), report)
        sandboxes = ("conformance", *ERAS, *SPOKEN)
        with (
            open_server(folder / "open", setting.environment, report) as everybody,
            guarded_server(folder / "guarded", sandboxes, setting.environment, report) as guarded,
        ):
            run_jobs(setting, (everybody, guarded))
    print(report.summary())
    return 1 if report.failed else 0


def run_jobs(setting: Setting, targets: Sequence[Target]) -> None:
    """Run what is independent side by side, the longest first."""
    jobs: list[Callable[[], None]] = [partial(inspect_over_stdio, setting, era) for era in ERAS]
    jobs += [partial(try_client, setting, client, targets) for client in SPOKEN]
    jobs += [partial(inspect_over_http, setting, target) for target in targets]
    jobs += [partial(conform, setting, target) for target in targets]
    with ThreadPoolExecutor(THREADS) as threads:
        running: list[Future[None]] = [threads.submit(job) for job in jobs]
    for each in running:
        each.result()


def clean_environment(home: Path) -> dict[str, str]:
    """Return this process' environment with an empty home folder, and without proxies and settings of what is run."""
    home.mkdir()
    ours = ("IRIS_KV_", "USE_KV_CACHE_PROMPT", "MCP_", "FASTMCP_", "XDG_")
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(ours) and not name.lower().endswith("_proxy")
    }
    return {**kept, "HOME": str(home), "NODE_COMPILE_CACHE": str(CACHE / "compiled")}


def inspect_over_stdio(setting: Setting, era: Era) -> None:
    """Run the Inspector's steps of one era in a workspace of their own."""
    workspace = setting.folder / era
    workspace.mkdir()
    server = ("--", COMMAND, "serve", "--profile", "full", "--workspace", str(workspace))
    run_session(Inspector(setting.tools.inspector, era, server, setting.environment), setting.report)


def inspect_over_http(setting: Setting, target: Target) -> None:
    """Run the Inspector's shorter steps of both eras against a server, one era after the other."""
    for era in ERAS:
        server = ("--server-url", target.mcp(era))
        header = () if target.token is None else ("--header", f"Authorization: Bearer {target.token}")
        run_over_http(
            Inspector(setting.tools.inspector, era, (*server, *header), setting.environment),
            target.name,
            setting.report,
        )
        if target.token is not None:
            anonymous = Inspector(setting.tools.inspector, era, (*server, "--stored-auth-only"), setting.environment)
            run_refusal(anonymous, setting.report)


def conform(setting: Setting, target: Target) -> None:
    """Run the conformance suite against a server; a proxy sends the token that the suite cannot."""
    way = nullcontext(target.url) if target.token is None else adding_token(target.url, target.token)
    with way as url:
        results = setting.folder / f"results {target.name}"
        reached = target._replace(url=url)
        run_conformance(setting.tools.conformance, reached, results, setting.environment, setting.report)


def try_client(setting: Setting, client: str, targets: Sequence[Target]) -> None:
    """Run a client in its environment against each server."""
    python: Path | None = None
    with setting.report.step(f"client {client}: has its environment"):
        python = client_python(client, CACHE)
    if python is not None:
        for target in targets:
            run_client(client, python, target, setting.environment, setting.report)


sys.exit(main())
