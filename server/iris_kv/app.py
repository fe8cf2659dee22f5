"""Composition: workspaces, their background work and a server, over stdio or HTTP."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Final, NamedTuple

import anyio
from anyio.abc import TaskStatus
from mcp.server.stdio import stdio_server

from iris_kv.background import Background
from iris_kv.credentials import TokenFile, token_file_path
from iris_kv.errorlog import ErrorLog, error_log_path
from iris_kv.errors import InvalidArgumentError, IrisError, UnavailableError
from iris_kv.guidance import SystemClock
from iris_kv.location import Location, find_workspace
from iris_kv.logs import LogFormat, formatter
from iris_kv.sandboxes import SandboxRoot
from iris_kv.settings import Settings, load_settings, settings_at_hand
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
        problem = _broken(broken)
    return Start(location, settings, problem)


def _broken(error: IrisError) -> UnavailableError:
    return UnavailableError(f"the configuration is broken: {error.wrong}", error.allowed, error.todo)


def prepare_sandboxes(root: str, arguments: Mapping[str, object]) -> Start:
    """Load the settings of a server of sandboxes, which no sandbox's own file is part of.

    Raises:
        IrisError: There is no such folder, or the settings are broken.
    """
    SandboxRoot(Path(root))
    return Start(None, load_settings(None, arguments), None)


def configure_logging(level: str, workspace: str, log_format: LogFormat = "text") -> None:
    """Log to stderr, and keep errors for `doctor`; stdout belongs to the protocol."""
    stderr = logging.StreamHandler(sys.stderr)
    stderr.setFormatter(formatter(log_format))
    kept = ErrorLog(error_log_path(), workspace, SystemClock())
    logging.basicConfig(level=level.upper(), handlers=[stderr, kept], force=True)
    if level != "debug":
        # The SDK logs the ids of sessions, which are as good as a key where no token is needed; uvicorn what we say.
        logging.getLogger("mcp").setLevel(logging.ERROR)
        logging.getLogger("uvicorn").setLevel(logging.WARNING)


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


class HttpOptions(NamedTuple):
    """How a server over HTTP was asked for."""

    address: str
    """HOST:PORT."""
    sandboxes: str | None
    """The folder whose folders are the workspaces; None: there is one workspace."""
    max_open: int
    idle_s: float


def check_http_extra() -> None:
    """Refuse to serve HTTP where what it needs is not installed.

    Raises:
        UnavailableError: The extra is missing.
    """
    missing = [name for name in ("fastapi", "jwt", "prometheus_client", "uvicorn") if find_spec(name) is None]
    if missing:
        raise UnavailableError(
            f"--http needs {', '.join(missing)}, which is not installed",
            "it comes with the extra http",
            "install it with the extra, such as `uv tool install '.[tokens,http]'` in the clone",
        )


async def serve_http(options: HttpOptions, start: Start, arguments: Mapping[str, object]) -> None:
    """Serve over HTTP until SIGTERM or SIGINT comes; a second one ends at once.

    Args:
        options: Where, and which workspaces.
        start: The one workspace; with `options.sandboxes` only its settings are used, which are the server's.
        arguments: The settings that were given, which win over a sandbox's own.

    Raises:
        IrisError: It cannot be served; the text says why.
    """
    # The stdio server does not wait for these to load.
    from iris_kv.surfaces.http import serving  # noqa: PLC0415 - see above
    from iris_kv.surfaces.http.access import Access, Place  # noqa: PLC0415 - see above
    from iris_kv.surfaces.http.metrics import Metrics  # noqa: PLC0415 - see above
    from iris_kv.surfaces.http.platform import Limits, Platform  # noqa: PLC0415 - see above

    metrics, clock = Metrics(), SystemClock()

    def open_workspace(location: Location) -> Workspace:
        if options.sandboxes is None:
            return Workspace(location, start.settings, face="mcp", problem=start.problem, watch=metrics)
        settings, broken = settings_at_hand(location.root, arguments)
        problem = None if broken is None else _broken(broken)
        return Workspace(location, settings, face="mcp", problem=problem, watch=metrics)

    root = None if options.sandboxes is None else SandboxRoot(Path(options.sandboxes))
    limits = Limits(max_open=options.max_open, idle_s=options.idle_s)
    platform = Platform(None if root is not None else start.location, root, open_workspace, clock, limits)
    serving.raise_descriptor_limit()
    with serving.bound(serving.Address.parse(options.address)) as listening:
        address = serving.where(listening)
        place = Place(address.host, is_shared=platform.is_shared)
        access = Access(start.settings.http, TokenFile(token_file_path(), clock), clock, place)
        if access.waits_for_tokens:
            _log.warning("a token is needed and there is none yet: make one with `iris-kv token new`")
        server = serving.HttpServer(
            platform, start.settings, access, metrics, clock, serving.HttpLimits.of(start.settings)
        )
        offered = _where(start.location) if root is None else (options.sandboxes, "--sandboxes")
        _log.info("serving http://%s workspace=%r reason=%r", address, *offered)
        await server.serve(listening)
    _log.info("every workspace is closed")


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
