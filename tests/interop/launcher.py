"""Serves a workspace over streamable HTTP on a free loopback port, for these tests alone.

    python -m tests.interop.launcher WORKSPACE

The only line on stdout is the server's URL; the process serves until it is terminated.
"""

from __future__ import annotations

import socket
import sys

import anyio
import uvicorn

from iris_kv.app import configure_logging, prepare
from iris_kv.background import Background
from iris_kv.surfaces.mcp_server import IrisServer
from iris_kv.surfaces.visits import OneWorkspace
from iris_kv.workspace import Workspace

SHUTDOWN_S = 2
"""How long an open stream may hold up the end."""


async def serve(workspace: Workspace, listener: socket.socket) -> None:
    """Serve a workspace with all tools, and do its background work, until SIGTERM."""
    app = IrisServer(OneWorkspace(workspace), "full").streamable_http_app()
    config = uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=SHUTDOWN_S)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Background(workspace).run)
        await uvicorn.Server(config).serve([listener])
        tasks.cancel_scope.cancel()
    await workspace.aclose()


def main() -> None:
    """Serve the workspace that the only argument names."""
    start = prepare(sys.argv[1], {})
    configure_logging("warning", sys.argv[1])
    workspace = Workspace(start.location, start.settings, face="mcp", problem=start.problem)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(f"http://127.0.0.1:{listener.getsockname()[1]}/mcp", flush=True)
        anyio.run(serve, workspace, listener)


if __name__ == "__main__":
    main()
