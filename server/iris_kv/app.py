"""Composition: a workspace, its background work and a server, over stdio."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping
from typing import Final, NamedTuple

import anyio
from anyio.abc import TaskStatus
from mcp.server.stdio import stdio_server

from iris_kv.background import Background
from iris_kv.errorlog import ErrorLog, error_log_path
from iris_kv.errors import InvalidArgumentError, IrisError, UnavailableError
from iris_kv.guidance import SystemClock
from iris_kv.location import Location, find_workspace
from iris_kv.settings import Settings, settings_at_hand
from iris_kv.surfaces.framing import AnsweredLines
from iris_kv.surfaces.mcp_server import IrisServer
from iris_kv.surfaces.visits import OneWorkspace
from iris_kv.workspace import Workspace

_CLOSING_S: Final = 1.5
"""Clients kill a server that lives on for two seconds."""

_log = logging.getLogger(__name__)


class Start(NamedTuple):
    """What a server starts with, whatever is broken: `problem` then says why the store is not used."""

    location: Location | None
    settings: Settings
    problem: IrisError | None


def prepare(workspace: str | None, arguments: Mapping[str, object]) -> Start:
    """Find the workspace and load its settings; what fails is answered by the store's tools, not by an exit."""
    problem: IrisError | None = None
    location: Location | None = None
    try:
        location = find_workspace(workspace, os.environ)
    except InvalidArgumentError as error:
        problem = UnavailableError(error.wrong, error.allowed, error.todo)
    settings, broken = settings_at_hand(None if location is None else location.root, arguments)
    if broken is not None:
        problem = UnavailableError(f"the configuration is broken: {broken.wrong}", broken.allowed, broken.todo)
    return Start(location, settings, problem)


def configure_logging(level: str, workspace: str) -> None:
    """Log as key=value to stderr, and keep errors for `doctor`; stdout belongs to the protocol."""
    stderr = logging.StreamHandler(sys.stderr)
    stderr.setFormatter(logging.Formatter("time=%(asctime)s level=%(levelname)s logger=%(name)s msg=%(message)s"))
    kept = ErrorLog(error_log_path(), workspace, SystemClock())
    logging.basicConfig(level=level.upper(), handlers=[stderr, kept], force=True)


async def serve_stdio(start: Start) -> None:
    """Serve MCP over stdin and stdout until the client closes them, or SIGTERM or SIGINT comes."""
    workspace = Workspace(start.location, start.settings, face="mcp", problem=start.problem)
    server = IrisServer(OneWorkspace(workspace), start.settings.profile)
    if start.problem is not None:
        _log.error("serving instructions and prompts only: %s", start.problem)
    for error in workspace.library.errors:
        _log.error("instruction file %s: %s", error.file, error.problem)
    background = anyio.CancelScope()
    async with anyio.create_task_group() as tasks:
        await tasks.start(_exit_on_signal, workspace, background)
        _log.info("workspace=%r reason=%r", *_where(start.location))
        tasks.start_soon(_run, background, Background(workspace))
        await _serve_until_closed(server)
        tasks.cancel_scope.cancel()
    await workspace.aclose()


async def _run(scope: anyio.CancelScope, background: Background) -> None:
    with scope:
        await background.run()


async def _serve_until_closed(server: IrisServer) -> None:
    try:
        async with stdio_server() as (reading, writing):
            lines = AnsweredLines(reading, writing, _end_soon)
            await server.run(lines, writing, server.create_initialization_options())
    except* BrokenPipeError:
        _log.info("the client closed its end before it had read every answer")


def _end_soon() -> None:
    """End in time even where closing the store waits for a lock that another process holds.

    What was acknowledged is safe; what may be lost is when entries were read last.
    """
    timer = threading.Timer(_CLOSING_S, os._exit, (0,))
    timer.daemon = True
    timer.start()


def _where(location: Location | None) -> tuple[str, str]:
    return ("none", "none found") if location is None else (str(location.root), location.reason)


async def _exit_on_signal(
    workspace: Workspace, background: anyio.CancelScope, *, task_status: TaskStatus[None]
) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for _ in signals:
            _end_soon()
            background.cancel()
            await workspace.aclose()
            # The thread that reads stdin cannot be cancelled, so a clean return would wait for a line.
            os._exit(0)
