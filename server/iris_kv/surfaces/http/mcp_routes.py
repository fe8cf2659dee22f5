"""MCP over streamable HTTP: one server and one session manager for every workspace."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any, Final

from mcp.server import ServerRequestContext
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from starlette.types import Receive, Scope, Send

from iris_kv.sandboxes import DEFAULT
from iris_kv.settings import Profile
from iris_kv.surfaces.http.platform import Platform
from iris_kv.surfaces.mcp_server import IrisServer
from iris_kv.surfaces.visits import Visit

MAX_BODY_BYTES: Final = 4 * 1024 * 1024


class _HttpVisits:
    """The visits of requests over HTTP: the route has put each into its request's state."""

    def __init__(self) -> None:
        self._opening: ContextVar[Visit | None] = ContextVar("opening", default=None)

    def of(self, context: ServerRequestContext[Any, Any]) -> Visit:
        request = context.request
        if request is None:
            raise RuntimeError("a request over HTTP carries its HTTP request")
        return request.state.visit

    def opening(self) -> Visit | None:
        return self._opening.get()

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[None]:
        yield

    @asynccontextmanager
    async def entered(self, visit: Visit) -> AsyncGenerator[None]:
        """Let the connection that this request may open see its workspace's instructions."""
        token = self._opening.set(visit)
        try:
            yield
        finally:
            self._opening.reset(token)


class McpEndpoint:
    """The ASGI application behind `/mcp` and `/sandboxes/{id}/mcp`.

    The request's state holds the principal; the path names the sandbox.
    """

    def __init__(self, platform: Platform, profile: Profile) -> None:
        """Serve a platform; `manager.run` must be entered while it is used."""
        self._platform = platform
        self._visits = _HttpVisits()
        # Host and Origin are checked before, for every route alike.
        self.manager = StreamableHTTPSessionManager(
            IrisServer(self._visits, profile), json_response=False, max_request_body_size=MAX_BODY_BYTES
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        sandbox = scope.get("path_params", {}).get("sandbox", DEFAULT)
        principal = scope["state"]["principal"]
        async with self._platform.visit(principal, sandbox) as visit, self._visits.entered(visit):
            scope["state"]["visit"] = visit
            await self.manager.handle_request(scope, receive, send)
