"""What one request and one client may take: bytes of a body, time to send it, headers, requests a second."""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Final, NamedTuple

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from iris_kv.errors import BusyError, InvalidArgumentError, IrisError, TooLargeError
from iris_kv.model import Clock
from iris_kv.policy import Principal
from iris_kv.surfaces.http.metrics import Metrics, Refusal
from iris_kv.surfaces.http.problems import problem_response

MAX_HEAD_BYTES: Final = 32 * 1024

_DRAINED_BYTES: Final = 8_000_000
"""How much of a body that is refused is read and dropped: a client that still sends sees no answer."""
_DRAIN_S: Final = 2.0
_DISCONNECTED: Final[Message] = {"type": "http.disconnect"}
_CLOSE: Final = {"Connection": "close"}


class RequestLimits(NamedTuple):
    """What one request may take."""

    max_body_bytes: int
    max_headers: int = 64
    max_head_bytes: int = MAX_HEAD_BYTES
    max_requests: int = 4_000
    """How many requests may be answered at once, standing streams among them."""
    pause_s: float = 10.0
    """How long a client may send nothing of a body that it announced."""
    bytes_per_s: int = 1_000
    """How fast it must send on average, once `pause_s` have gone by."""


class _Refused(NamedTuple):
    """Why a request was refused while its body came."""

    status: int
    reason: Refusal
    error: IrisError


class Bounded:
    """ASGI middleware: refuses requests that are too large, too slow or too many.

    A body that breaks a limit ends for the application as if the client had left, so that nothing
    of it is written; what the application answers to that is replaced.
    """

    def __init__(self, app: ASGIApp, limits: RequestLimits, metrics: Metrics, clock: Clock) -> None:
        """Bound the requests to an application; `clock` tells how fast a body comes."""
        self._app = app
        self._limits = limits
        self._metrics = metrics
        self._clock = clock
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refused = self._refused_at_once(scope)
        if refused is not None:
            await self._refuse(refused, scope, receive, send)
            return
        self._open += 1
        try:
            await self._answer(scope, receive, send)
        finally:
            self._open -= 1

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = _Body(self._limits, self._clock, receive, send)
        try:
            await self._app(scope, body.receive, body.send)
        except Exception:
            # What an application raises because its client seems to have left is no failure of it.
            if body.refused is None:
                raise
        if body.refused is not None and not body.has_answer:
            await self._refuse(body.refused, scope, receive, send)

    def _refused_at_once(self, scope: Scope) -> _Refused | None:
        headers = scope["headers"]
        # The parser bounds a head only as long as it is incomplete, and one read may bring all of it.
        target_bytes = len(scope["raw_path"]) + len(scope["query_string"])
        head_bytes = target_bytes + sum(len(name) + len(value) for name, value in headers)
        if len(headers) > self._limits.max_headers or head_bytes > self._limits.max_head_bytes:
            return _Refused(431, "too_many_headers", _too_many_headers(self._limits))
        names = {name for name, _ in headers}
        if names >= {b"content-length", b"transfer-encoding"}:
            return _Refused(400, "two_lengths", _two_lengths())
        if _announced(scope) > self._limits.max_body_bytes:
            return _too_large(self._limits.max_body_bytes)
        if self._open >= self._limits.max_requests:
            return _Refused(503, "too_many_requests", _too_many_requests(self._limits.max_requests))
        return None

    async def _refuse(self, refused: _Refused, scope: Scope, receive: Receive, send: Send) -> None:
        self._metrics.refused(refused.reason)
        if refused.status == 413 and not any(name == b"expect" for name, _ in scope["headers"]):
            await _drain(receive)
        headers = _CLOSE if refused.status != 503 else {**_CLOSE, "Retry-After": "1"}
        await problem_response(refused.error, status=refused.status, headers=headers)(scope, receive, send)


class _Body:
    """The body of one request as it comes."""

    def __init__(self, limits: RequestLimits, clock: Clock, receive: Receive, send: Send) -> None:
        self._limits, self._clock = limits, clock
        self._receive, self._send = receive, send
        self._started_ms = clock.now_ms()
        self._received = 0
        self._is_whole = False
        self.refused: _Refused | None = None
        self.has_answer = False

    async def receive(self) -> Message:
        if self.refused is not None:
            return _DISCONNECTED
        if self._is_whole:
            # What comes behind a body is the client's leaving, which may take as long as it likes.
            return await self._receive()
        message: Message = _DISCONNECTED
        is_paused = False
        try:
            # anyio's way to do it takes three times as long.
            async with asyncio.timeout(self._limits.pause_s):
                message = await self._receive()
        except TimeoutError:
            is_paused = True
        if message["type"] == "http.request":
            self._received += len(message.get("body", b""))
            self._is_whole = not message.get("more_body", False)
        self.refused = self._checked(paused=is_paused)
        return message if self.refused is None else _DISCONNECTED

    async def send(self, message: Message) -> None:
        if self.refused is not None and not self.has_answer:
            return
        self.has_answer = True
        await self._send(message)

    def _checked(self, *, paused: bool) -> _Refused | None:
        if self._received > self._limits.max_body_bytes:
            return _too_large(self._limits.max_body_bytes)
        taken_s = (self._clock.now_ms() - self._started_ms) / 1000
        least = (taken_s - self._limits.pause_s) * self._limits.bytes_per_s
        if paused or (not self._is_whole and self._received < least):
            return _Refused(408, "too_slow", _too_slow(self._limits))
        return None


class RateLimit:
    """ASGI middleware behind the access layer: so many requests a second of each token, or address."""

    def __init__(self, app: ASGIApp, buckets: Buckets, metrics: Metrics) -> None:
        """Limit the requests to an application."""
        self._app = app
        self._buckets = buckets
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        wait_s = self._buckets.take(_client(scope)) if scope["type"] == "http" else 0
        if wait_s:
            await refuse_rate(self._metrics, wait_s, scope, receive, send)
        else:
            await self._app(scope, receive, send)


class GuessLimit:
    """ASGI middleware before the access layer: so many requests a second that show no valid token.

    An address that is over its rate gets 429 in place of 401; whoever shows a valid token from the
    same address, such as through one proxy, is not hindered.
    """

    def __init__(self, app: ASGIApp, buckets: Buckets, metrics: Metrics) -> None:
        """Limit what an application answers with 401."""
        self._app = app
        self._buckets = buckets
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        wait_s = 0

        async def unless_guessing(message: Message) -> None:
            nonlocal wait_s
            if message["type"] == "http.response.start" and message["status"] == 401:
                wait_s = self._buckets.take(_address(scope))
            if not wait_s:
                await send(message)

        await self._app(scope, receive, unless_guessing)
        if wait_s:
            await refuse_rate(self._metrics, wait_s, scope, receive, send)


class Buckets:
    """Token buckets by name; a full one is forgotten, and of too many the one that was used longest ago."""

    def __init__(self, clock: Clock, *, per_s: float, burst: float, most: int = 10_000) -> None:
        """Allow `per_s` a second and `burst` at once; `per_s` infinite allows everything."""
        self._clock = clock
        self._per_s = per_s
        self._burst = burst
        self._most = most
        self._levels: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def __len__(self) -> int:
        """Return how many buckets there are."""
        return len(self._levels)

    def take(self, name: str) -> int:
        """Take one from a bucket; return 0, or in how many whole seconds there is one again."""
        if math.isinf(self._per_s):
            return 0
        now = self._clock.now_ms()
        level, at = self._levels.pop(name, (self._burst, now))
        # A clock that was set back gives nothing, and takes nothing.
        level = min(self._burst, level + max(0, now - at) / 1000 * self._per_s)
        taken = 1 if level >= 1 else 0
        self._levels[name] = (level - taken, now)
        if len(self._levels) > self._most:
            self._levels.popitem(last=False)
        return 0 if taken else max(1, math.ceil((1 - level) / self._per_s))


async def refuse_rate(metrics: Metrics, wait_s: int, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer 429 with how long to wait."""
    metrics.refused("rate_limited")
    error = BusyError(
        "too many requests", "so many a second are answered to one token or address", f"try again in {wait_s} s"
    )
    await problem_response(error, status=429, headers={"Retry-After": str(wait_s)})(scope, receive, send)


def _client(scope: Scope) -> str:
    principal = scope.get("state", {}).get("principal")
    if isinstance(principal, Principal) and principal.name:
        return f"token {principal.name}"
    return _address(scope)


def _address(scope: Scope) -> str:
    client = scope.get("client")
    return f"address {client[0] if client else ''}"


def _announced(scope: Scope) -> int:
    headers: Mapping[bytes, bytes] = dict(scope["headers"])
    length = headers.get(b"content-length", b"0")
    # The HTTP parser has refused what is no number of at most 20 digits.
    return int(length)


async def _drain(receive: Receive) -> None:
    drained = 0
    with anyio.move_on_after(_DRAIN_S):
        while drained < _DRAINED_BYTES:
            message = await receive()
            drained += len(message.get("body", b""))
            if message["type"] != "http.request" or not message.get("more_body", False):
                return


def _too_large(most: int) -> _Refused:
    error = TooLargeError(
        f"the request's body is over {most} bytes", "larger ones are not read", "send less, or a value in parts"
    )
    return _Refused(413, "too_large", error)


def _too_slow(limits: RequestLimits) -> InvalidArgumentError:
    return InvalidArgumentError(
        "the request's body came too slowly, and nothing of it was used",
        f"a pause has at most {limits.pause_s:g} s, and {limits.bytes_per_s} bytes a second are the least",
        "send the request again as a whole",
    )


def _too_many_headers(limits: RequestLimits) -> TooLargeError:
    return TooLargeError(
        "the request has too many headers, or too long ones",
        f"at most {limits.max_headers} with {limits.max_head_bytes} bytes are read, the path and the query string included",
        "send fewer or shorter ones",
    )


def _two_lengths() -> InvalidArgumentError:
    return InvalidArgumentError(
        "the request has both Content-Length and Transfer-Encoding",
        "a body's length is told in one way, as a proxy may go by the other and see another request",
        "send one of the two",
    )


def _too_many_requests(most: int) -> BusyError:
    return BusyError(f"{most} requests are being answered", "no more are at once", "try again in a second")
