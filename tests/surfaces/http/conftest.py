"""Makers of the HTTP application: over ASGI in this process, and behind a real server on a socket."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncGenerator, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import httpx2
import pytest
import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from iris_kv.guidance import SystemClock
from iris_kv.location import Location
from iris_kv.model import Clock
from iris_kv.policy import Principal
from iris_kv.sandboxes import SandboxRoot
from iris_kv.settings import Settings
from iris_kv.surfaces.http.app import build_app
from iris_kv.surfaces.http.platform import Limits, Platform
from iris_kv.workspace import Workspace

FAST = Settings(durability="fast")
ADMIN = Principal(author="user", face="rest", name="test")
BASE = "http://127.0.0.1"
CACHE = "/api/sandboxes/default/kv-cache"


class WithPrincipal:
    """Puts one principal before every route, in place of the access control."""

    def __init__(self, app: ASGIApp, principal: Principal) -> None:
        self.app = app
        self.principal = principal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            face = "mcp" if scope["path"].endswith("/mcp") else "rest"
            author = "agent" if face == "mcp" else self.principal.author
            scope.setdefault("state", {})["principal"] = self.principal.model_copy(
                update={"face": face, "author": author}
            )
        await self.app(scope, receive, send)


class Http(httpx2.AsyncClient):
    """A client with short words for what most tests do."""

    app: FastAPI

    async def put(self, key: str, value: bytes | str = b"value", *, scope: str = "artifacts", **more: Any):  # type: ignore[override]
        """Write a raw value."""
        headers = {"Content-Type": "text/plain", **more.pop("headers", {})}
        body = value.encode() if isinstance(value, str) else value
        query = {"scope": scope, "key": key, **more}
        return await self.post(f"{CACHE}/value", params=query, content=body, headers=headers)

    async def value(self, key: str, *, scope: str = "artifacts", **headers: str):
        """Read a value."""
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        return await self.get(f"{CACHE}/value", params={"scope": scope, "key": key}, headers=named)

    async def keys(self, **query: Any) -> dict[str, Any]:
        """Return a page of keys."""
        answer = await self.get(f"{CACHE}/keys", params={"scope": "artifacts", **query})
        assert answer.status_code == 200, answer.text
        return answer.json()


class MakeApp(Protocol):
    """Makes the application as a principal sees it: of one workspace, or with `root` of sandboxes."""

    def __call__(
        self,
        *,
        principal: Principal = ...,
        root: Path | None = ...,
        settings: Settings = ...,
        clock: Clock | None = ...,
    ) -> FastAPI: ...


class OpenHttp(Protocol):
    """Opens the application with a client over ASGI, or over a socket; used with `async with`."""

    def __call__(
        self,
        *,
        principal: Principal = ...,
        root: Path | None = ...,
        settings: Settings = ...,
        clock: Clock | None = ...,
    ) -> AbstractAsyncContextManager[Http]: ...


def app_of(
    workspace: Path,
    *,
    principal: Principal = ADMIN,
    root: Path | None = None,
    settings: Settings = FAST,
    clock: Clock | None = None,
) -> FastAPI:
    """Return the application of a workspace, or of the sandboxes of a root, as a principal sees it."""

    def opened(location: Location) -> Workspace:
        return Workspace(location, settings, face="rest", clock=clock)

    only = Location(root=workspace, reason="test") if root is None else None
    sandboxes = None if root is None else SandboxRoot(root)
    app = build_app(Platform(only, sandboxes, opened, clock or SystemClock(), Limits()), "full")
    app.add_middleware(WithPrincipal, principal=principal)
    return app


@pytest.fixture
def make_app(workspace: Path) -> MakeApp:
    return partial(app_of, workspace)


@pytest.fixture
def open_http(make_app: MakeApp) -> OpenHttp:
    @asynccontextmanager
    async def opener(**options: Any) -> AsyncGenerator[Http]:
        app = make_app(**options)
        async with app.router.lifespan_context(app):
            transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
            async with Http(transport=transport, base_url=BASE) as client:
                client.app = app
                yield client

    return opener


def bound() -> socket.socket:
    """Return a socket on a free port; only where the protocol is named does asyncio send at once (TCP_NODELAY)."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen(128)
    return listener


@contextmanager
def in_a_thread(app: FastAPI) -> Generator[str]:
    """Serve an application in a thread of its own, and return its address."""
    listener = bound()
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"{BASE}:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)


@asynccontextmanager
async def on_a_socket(app: FastAPI) -> AsyncGenerator[int]:
    """Serve an application with uvicorn on a free port of this machine, and return the port."""
    listener = bound()
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=2))
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    task = asyncio.create_task(server._serve(sockets=[listener]))
    started = asyncio.get_running_loop().time()
    while not server.started:
        assert asyncio.get_running_loop().time() - started < 30
        await asyncio.sleep(0)
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        with suppress(asyncio.CancelledError):
            await task


@pytest.fixture
def open_socket(make_app: MakeApp) -> OpenHttp:
    @asynccontextmanager
    async def opener(**options: Any) -> AsyncGenerator[Http]:
        app = make_app(**options)
        async with on_a_socket(app) as port, Http(base_url=f"{BASE}:{port}") as client:
            client.app = app
            yield client

    return opener
