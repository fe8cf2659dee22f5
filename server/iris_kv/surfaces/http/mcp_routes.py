"""MCP over streamable HTTP: one server and one session manager for every workspace."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any, Final
from weakref import ref

import anyio
from mcp.server import ServerRequestContext
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import RequestBodyLimitMiddleware
from mcp.types.version import HANDSHAKE_PROTOCOL_VERSIONS
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from iris_kv.errors import UnavailableError
from iris_kv.policy import Principal
from iris_kv.sandboxes import DEFAULT
from iris_kv.settings import Profile
from iris_kv.surfaces.http.platform import Platform
from iris_kv.surfaces.mcp_server import IrisServer
from iris_kv.surfaces.visits import Visit

MAX_BODY_BYTES: Final = 4 * 1024 * 1024
MAX_OPENING_BYTES: Final = 64 * 1024
"""How large the request may be that opens a session: what it says of its client is kept as long as the session."""

_OPERATIONS: Final = {"GET": "mcp:stream", "POST": "mcp:post", "DELETE": "mcp:delete"}
"""What is counted until the message says more; a client may make up any other method."""


class _Passing:
    """A visit that keeps nothing open or in memory: what a session remembers of its requests outlives them."""

    def __init__(self, visit: Visit) -> None:
        self._workspace, self._notifier = ref(visit.workspace), ref(visit.notifier)
        self._principal: Principal = visit.principal

    def __call__(self) -> Visit | None:
        """Return the visit; None: the workspace is gone."""
        workspace, notifier = self._workspace(), self._notifier()
        return None if workspace is None or notifier is None else Visit(workspace, notifier, self._principal)


class _HttpVisits:
    """The visits of requests over HTTP: the route has put each into its request's state."""

    def __init__(self) -> None:
        self._opening: ContextVar[_Passing | None] = ContextVar("opening", default=None)

    def of(self, context: ServerRequestContext[Any, Any]) -> Visit:
        request = context.request
        if request is None:
            raise RuntimeError("a request over HTTP carries its HTTP request")
        request.state.operation = f"mcp:{context.method}"
        visit = request.state.visit()
        if visit is None:
            raise UnavailableError("the sandbox was closed meanwhile", "the next request opens it", "try again")
        return visit

    def answered(self, context: ServerRequestContext[Any, Any], tool: str, outcome: str) -> None:
        if context.request is not None:
            context.request.state.operation, context.request.state.outcome = f"mcp:{tool}", outcome

    def opening(self) -> Visit | None:
        passing = self._opening.get()
        return None if passing is None else passing()

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[None]:
        yield

    @asynccontextmanager
    async def entered(self, passing: _Passing) -> AsyncGenerator[None]:
        """Let the connection that this request may open see its workspace's instructions."""
        token = self._opening.set(passing)
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
        self._standing: set[anyio.CancelScope] = set()
        # Host and Origin are checked before, for every route alike.
        self.manager = StreamableHTTPSessionManager(
            IrisServer(self._visits, profile), json_response=False, max_request_body_size=MAX_BODY_BYTES
        )
        self._opening = RequestBodyLimitMiddleware(self.manager.handle_request, MAX_OPENING_BYTES)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        sandbox = scope.get("path_params", {}).get("sandbox", DEFAULT)
        state = scope["state"]
        state["operation"] = _OPERATIONS.get(scope["method"], "mcp:other")
        async with self._platform.visit(state["principal"], sandbox) as visit:
            state["visit"] = passing = _Passing(visit)
            async with self._visits.entered(passing):
                if scope["method"] == "GET":
                    await self._stand(scope, receive, send)
                elif _opens_session(scope):
                    await self._opening(scope, receive, send)
                else:
                    await self.manager.handle_request(scope, receive, send)

    def end_streams(self) -> None:
        """End the streams that clients of the older eras keep open, as they would hold a shutdown up."""
        for standing in self._standing:
            standing.cancel()

    async def _stand(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a stream until its client leaves or `end_streams` ends it, with the end that HTTP wants."""
        last: Message | None = None

        async def noting(message: Message) -> None:
            nonlocal last
            last = message
            await send(message)

        with anyio.CancelScope() as standing:
            self._standing.add(standing)
            try:
                await self.manager.handle_request(scope, receive, noting)
            finally:
                self._standing.discard(standing)
        if standing.cancelled_caught and last is not None and last.get("more_body", True):
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def _opens_session(scope: Scope) -> bool:
    """Tell whether a request can do nothing but open a session of the older eras."""
    headers = Headers(scope=scope)
    version = headers.get("mcp-protocol-version")
    return "mcp-session-id" not in headers and (version is None or version in HANDSHAKE_PROTOCOL_VERSIONS)
