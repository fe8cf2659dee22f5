"""The HTTP server inside the test's process, on a real socket, with a clock and limits that the test gives."""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from iris_kv.credentials import TokenFile
from iris_kv.http_settings import HttpSettings
from iris_kv.location import Location
from iris_kv.model import Clock
from iris_kv.sandboxes import SandboxRoot
from iris_kv.settings import Settings, settings_at_hand
from iris_kv.surfaces.http.access import Access, Place
from iris_kv.surfaces.http.connections import ConnectionLimits
from iris_kv.surfaces.http.limits import RequestLimits
from iris_kv.surfaces.http.metrics import Metrics
from iris_kv.surfaces.http.platform import Limits, Platform
from iris_kv.surfaces.http.serving import Address, HttpLimits, HttpServer, bound, where
from iris_kv.workspace import Workspace

BODY_BYTES = 4_000_000
UNBOUNDED = HttpLimits(RequestLimits(BODY_BYTES), ConnectionLimits(), float("inf"))


class Running(NamedTuple):
    """A server that runs."""

    address: Address
    platform: Platform
    metrics: Metrics
    tokens: TokenFile

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    def mcp(self, sandbox: str | None = None) -> str:
        return f"{self.url}/mcp" if sandbox is None else f"{self.url}/sandboxes/{sandbox}/mcp"

    def bearer(self, name: str) -> dict[str, str]:
        """Return the headers of a new token of that name, which may do everything everywhere."""
        return {"authorization": f"Bearer {self.tokens.create(name, ('kv:admin',), None)[0]}"}

    @asynccontextmanager
    async def client(self, sandbox: str | None = None, *, mode: Any) -> AsyncGenerator[Client]:
        """Connect a client, with a token where a sandbox is named."""
        headers = {} if sandbox is None else self.bearer(f"client-{secrets.token_hex(4)}")
        async with httpx2.AsyncClient(headers=headers, timeout=60) as http:
            transport = streamable_http_client(self.mcp(sandbox), http_client=http)
            async with Client(transport, mode=mode) as client:
                yield client

    async def measured(self, name: str) -> float:
        """Return a metric by its name and labels as they are written; 0 where there is none yet."""
        async with httpx2.AsyncClient() as client:
            lines = (await client.get(f"{self.url}/metrics")).text.splitlines()
        return next((float(line.removeprefix(f"{name} ")) for line in lines if line.startswith(f"{name} ")), 0.0)


@asynccontextmanager
async def running(
    folder: Path,
    clock: Clock,
    *,
    shared: bool = False,
    limits: HttpLimits = UNBOUNDED,
    open_limits: Limits | None = None,
    http: HttpSettings | None = None,
) -> AsyncGenerator[Running]:
    """Serve a folder as the one workspace, or its folders as sandboxes, and end it as SIGTERM does."""
    metrics = Metrics()

    def open_workspace(location: Location) -> Workspace:
        settings, problem = settings_at_hand(location.root, {"durability": "fast", "profile": "full"})
        return Workspace(location, settings, face="mcp", clock=clock, problem=problem, watch=metrics)

    only = None if shared else Location(root=folder, reason="test")
    platform = Platform(only, SandboxRoot(folder) if shared else None, open_workspace, clock, open_limits or Limits())
    tokens = TokenFile(folder.parent / f"{folder.name}-tokens" / "tokens.json", clock)
    settings = Settings(profile="full", http=http or HttpSettings())
    access = Access(settings.http, tokens, clock, Place("127.0.0.1", is_shared=shared))
    server = HttpServer(platform, settings, access, metrics, clock, limits)
    with bound(Address("127.0.0.1", 0)) as listening, anyio.fail_after(120):
        async with anyio.create_task_group() as tasks:
            address = where(listening)
            tasks.start_soon(server.serve, listening)
            async with httpx2.AsyncClient() as client:
                # The answer comes once the server has started: the socket listens already.
                assert (await client.get(f"http://{address}/healthz", timeout=30)).status_code == 200
            yield Running(address, platform, metrics, tokens)
            os.kill(os.getpid(), signal.SIGTERM)
