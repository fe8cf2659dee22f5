"""Servers behind the gate: in this process, over a socket, and an issuer of tokens."""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import anyio
import httpx2
import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from iris_kv.credentials import TokenFile
from iris_kv.http_settings import HttpSettings
from iris_kv.location import Location
from iris_kv.sandboxes import SandboxRoot
from iris_kv.settings import Settings
from iris_kv.surfaces.http.access import Access, Place
from iris_kv.surfaces.http.app import build_app
from iris_kv.surfaces.http.health import Health
from iris_kv.surfaces.http.metrics import Metrics
from iris_kv.surfaces.http.platform import Limits, Platform
from iris_kv.workspace import Workspace

if TYPE_CHECKING:
    from fastapi import FastAPI
    from tests.conftest import Clock

FAST = Settings(durability="fast")
JSON = {"accept": "application/json, text/event-stream", "content-type": "application/json"}
INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}},
}


class Server:
    """A server in this process, and its users' tokens."""

    def __init__(self, app: FastAPI, access: Access, tokens: TokenFile, clock: Clock) -> None:
        self.app = app
        self.access = access
        self.tokens = tokens
        self.clock = clock

    def token(
        self, name: str = "agent", *, scopes: str = "kv:read,kv:write", sandboxes: str | None = "a", **more: Any
    ) -> str:
        rights: Any = tuple(scopes.split(","))
        return self.tokens.create(name, rights, None if sandboxes is None else tuple(sandboxes.split(",")), **more)[0]

    def client(self, token: str | None = None, *, peer: str = "127.0.0.1", **headers: str) -> httpx2.AsyncClient:
        """Return a client without a socket; its base is http://localhost."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        bearer = {} if token is None else {"authorization": f"Bearer {token}"}
        transport = httpx2.ASGITransport(self.app, client=(peer, 50_000))
        return httpx2.AsyncClient(transport=transport, base_url="http://localhost", headers={**bearer, **named})

    async def get(self, path: str, token: str | None = None, **headers: str) -> httpx2.Response:
        async with self.client(token, **headers) as client:
            return await client.get(path)

    @asynccontextmanager
    async def listening(self) -> AsyncGenerator[str]:
        """Serve on a socket of this machine; gives the URL."""
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            config = uvicorn.Config(self.app, log_level="debug", access_log=True, lifespan="off", log_config=None)
            serving = uvicorn.Server(config)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(serving.serve, [bound])
                yield f"http://127.0.0.1:{bound.getsockname()[1]}"
                serving.should_exit = True
                serving.force_exit = True


class Open(Protocol):
    """Opens a server; used with `async with`."""

    def __call__(
        self, *, shared: bool = ..., host: str = ..., recheck_s: float = ..., **settings: Any
    ) -> AbstractAsyncContextManager[Server]: ...


async def _who(request: Request) -> JSONResponse:
    """Tell who asks, and open the sandbox that the path names, as every route of REST does."""
    principal = request.state.principal
    sandbox = request.path_params.get("sandbox")
    if sandbox is not None:
        async with request.app.state.platform.visit(principal, sandbox):
            pass
    return JSONResponse(principal.model_dump(mode="json"))


@pytest.fixture
def token_file(tmp_path: Path, clock: Clock) -> TokenFile:
    return TokenFile(tmp_path / "config" / "tokens.json", clock)


@pytest.fixture
def open_server(tmp_path: Path, clock: Clock, token_file: TokenFile) -> Open:
    @asynccontextmanager
    async def opener(
        *, shared: bool = True, host: str = "127.0.0.1", recheck_s: float = 2.0, **settings: Any
    ) -> AsyncGenerator[Server]:
        for sandbox in ("a", "b"):
            (tmp_path / "root" / sandbox).mkdir(parents=True)
        root = tmp_path / "root"
        platform = Platform(
            None if shared else Location(root=root / "a", reason="test"),
            SandboxRoot(root) if shared else None,
            lambda location: Workspace(location, FAST, face="mcp", clock=clock),
            clock,
            Limits(),
        )
        place = Place(host, is_shared=shared)
        access = Access(HttpSettings(**settings), token_file, clock, place, recheck_s=recheck_s)
        app = build_app(platform, "full", access)
        for path in ("/api/who", "/api/sandboxes/{sandbox}/who"):
            app.router.routes.append(Route(path, _who, methods=["GET", "POST", "DELETE"]))
        app.router.routes.extend(Health(platform, Metrics()).routes())
        async with app.router.lifespan_context(app):
            yield Server(app, access, token_file, clock)

    return opener


@pytest.fixture
def issuer() -> Callable[[Any], AbstractAsyncContextManager[str]]:
    """Serves an ASGI application that publishes keys; gives its URL."""

    @asynccontextmanager
    async def opener(app: Any) -> AsyncGenerator[str]:
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            serving = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off", log_config=None))
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(serving.serve, [bound])
                yield f"http://127.0.0.1:{bound.getsockname()[1]}/jwks.json"
                serving.should_exit = True
                serving.force_exit = True

    return opener
