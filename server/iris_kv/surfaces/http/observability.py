"""What the operator learns of each request: its id, one line in the log, and its part of the metrics.

Neither holds a token, a query string or a value. The path is not logged: it has what clients make up.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Mapping
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from iris_kv.logs import REQUEST_ID, Field
from iris_kv.policy import Principal
from iris_kv.surfaces.http.metrics import Metrics

UNKNOWN: Final = "none"
"""The operation of a request that no route takes."""
STANDING: Final = frozenset({"mcp:stream", "mcp:subscriptions/listen"})
"""Operations that last as long as their client listens."""

_PROBES: Final = frozenset({"healthz", "readyz", "metrics"})
_WELL_FORMED: Final = re.compile(rb"[A-Za-z0-9._:-]{1,64}")
_SANDBOX: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_CANCELLED: Final = 499

_OUTCOMES: Final[Mapping[int, str]] = {
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    408: "too_slow",
    409: "read_only",
    412: "conflict",
    413: "too_large",
    422: "invalid_argument",
    429: "rate_limited",
    431: "too_large",
    499: "cancelled",
    503: "unavailable",
    507: "quota_exceeded",
}

_log = logging.getLogger("iris_kv.requests")


class Observed:
    """ASGI middleware, the outermost: gives each request an id, and tells what became of it.

    What lies further in may put `operation` and `outcome` into the request's state.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        """Watch an application."""
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        watched = _Watched(scope, receive, send)
        token = REQUEST_ID.set(watched.request_id)
        self._metrics.open_requests.inc()
        try:
            await self._app(scope, watched.receive, watched.send)
        finally:
            self._metrics.open_requests.dec()
            self._tell(watched)
            REQUEST_ID.reset(token)

    def _tell(self, watched: _Watched) -> None:
        seconds = time.perf_counter() - watched.started
        operation, outcome = watched.operation(), watched.outcome()
        self._metrics.operation(operation, outcome, None if operation in STANDING else seconds)
        self._metrics.transferred(watched.received, watched.sent)
        fields: dict[str, Field] = {
            "operation": operation,
            **watched.who(),
            "status": watched.status,
            "outcome": outcome,
            "ms": round(seconds * 1000, 2),
            "received": watched.received,
            "sent": watched.sent,
        }
        _log.log(logging.DEBUG if operation in _PROBES else logging.INFO, "answered", extra={"fields": fields})


class _Watched:
    """One request and what is known of it so far."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.started = time.perf_counter()
        self.status = _CANCELLED
        self.received = self.sent = 0
        self._scope, self._receive, self._send = scope, receive, send
        self.request_id = _request_id(scope)
        self._state: dict[str, Any] = scope.setdefault("state", {})
        self._state["request_id"] = self.request_id
        self._header = (b"x-request-id", self.request_id.encode())

    async def receive(self) -> Message:
        message = await self._receive()
        self.received += len(message.get("body", b""))
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [pair for pair in message.get("headers", ()) if pair[0] != b"x-request-id"]
            message = {**message, "headers": [*headers, self._header]}
        self.sent += len(message.get("body", b""))
        await self._send(message)

    def operation(self) -> str:
        """Return what was asked for: as the route says, else the route's name."""
        said = self._state.get("operation")
        if said is not None:
            return said
        name = getattr(self._scope.get("route"), "name", None)
        return f"rest:{name}" if isinstance(name, str) else UNKNOWN

    def outcome(self) -> str:
        """Return how it ended: as was said, else by the status."""
        said = self._state.get("outcome")
        if said is not None:
            return said
        if self.status < 400:
            return "ok"
        return _OUTCOMES.get(self.status, "refused" if self.status < 500 else "failed")

    def who(self) -> dict[str, str]:
        """Return the sandbox and the name of the principal, where they are known."""
        found: dict[str, str] = {}
        sandbox = self._scope.get("path_params", {}).get("sandbox")
        if isinstance(sandbox, str) and _SANDBOX.fullmatch(sandbox):
            found["sandbox"] = sandbox
        principal = self._state.get("principal")
        if isinstance(principal, Principal) and principal.name:
            found["principal"] = principal.name
        return found


def _request_id(scope: Scope) -> str:
    """Return the id that a proxy gave the request, if it is well-formed, else a new one."""
    given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
    return given.decode("ascii") if _WELL_FORMED.fullmatch(given) else secrets.token_hex(8)
