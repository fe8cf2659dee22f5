"""Makers of the HTTP application: over ASGI in this process, and behind a real server on a socket."""

from __future__ import annotations

import asyncio
import secrets
import socket
import threading
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import httpx2
import pytest
import uvicorn
from fastapi import FastAPI

from iris_kv.credentials import TokenFile
from iris_kv.guidance import SystemClock
from iris_kv.location import Location
from iris_kv.model import Clock
from iris_kv.policy import RIGHTS, Right
from iris_kv.sandboxes import SandboxRoot
from iris_kv.settings import Settings
from iris_kv.surfaces.http.access import Access, Place
from iris_kv.surfaces.http.app import build_app
from iris_kv.surfaces.http.platform import Limits, Platform
from iris_kv.workspace import Workspace

FAST = Settings(durability="fast")
BASE = "http://127.0.0.1"
CACHE = "/api/sandboxes/default/kv-cache"


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


class Served(NamedTuple):
    """The application, and the headers with which it lets a client in."""

    app: FastAPI
    headers: Mapping[str, str]


class MakeApp(Protocol):
    """Makes the application of one workspace, or with `root` of sandboxes, and a token with some rights."""

    def __call__(
        self,
        *,
        rights: Sequence[Right] = ...,
        sandboxes: Sequence[str] | None = ...,
        root: Path | None = ...,
        settings: Settings = ...,
        clock: Clock | None = ...,
    ) -> Served: ...


class OpenHttp(Protocol):
    """Opens the application with a client over ASGI, or over a socket; used with `async with`."""

    def __call__(
        self,
        *,
        rights: Sequence[Right] = ...,
        sandboxes: Sequence[str] | None = ...,
        root: Path | None = ...,
        settings: Settings = ...,
        clock: Clock | None = ...,
    ) -> AbstractAsyncContextManager[Http]: ...


def app_of(
    workspace: Path,
    *,
    rights: Sequence[Right] = RIGHTS,
    sandboxes: Sequence[str] | None = None,
    root: Path | None = None,
    settings: Settings = FAST,
    clock: Clock | None = None,
) -> Served:
    """Return the application of a workspace, or of the sandboxes of a root, with a token for it."""
    now = clock or SystemClock()

    def opened(location: Location) -> Workspace:
        return Workspace(location, settings, face="rest", clock=clock)

    only = Location(root=workspace, reason="test") if root is None else None
    platform = Platform(only, None if root is None else SandboxRoot(root), opened, now, Limits())
    tokens = TokenFile(workspace.with_name(f"{workspace.name}-{secrets.token_hex(4)}") / "tokens.json", now)
    # Before there is a token, so that one workspace does without.
    access = Access(settings.http, tokens, now, Place("127.0.0.1", is_shared=root is not None))
    token, _ = tokens.create("test", tuple(rights), None if sandboxes is None else tuple(sandboxes))
    return Served(build_app(platform, "full", access), {"Authorization": f"Bearer {token}"})


@pytest.fixture
def make_app(workspace: Path) -> MakeApp:
    return partial(app_of, workspace)


@pytest.fixture
def open_http(make_app: MakeApp) -> OpenHttp:
    @asynccontextmanager
    async def opener(**options: Any) -> AsyncGenerator[Http]:
        app, headers = make_app(**options)
        async with app.router.lifespan_context(app):
            transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
            async with Http(transport=transport, base_url=BASE, headers=headers) as client:
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
        app, headers = make_app(**options)
        async with on_a_socket(app) as port, Http(base_url=f"{BASE}:{port}", headers=headers) as client:
            client.app = app
            yield client

    return opener
