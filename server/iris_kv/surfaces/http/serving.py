"""The HTTP server: its address, its middleware from the outside in, and its orderly end."""

from __future__ import annotations

import logging
import os
import resource
import signal
import socket
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Final, NamedTuple

import uvicorn
from starlette.middleware import Middleware

from iris_kv.errors import InvalidArgumentError
from iris_kv.model import Clock
from iris_kv.settings import MEGABYTE, Settings
from iris_kv.surfaces.http.access import Access
from iris_kv.surfaces.http.app import build_app
from iris_kv.surfaces.http.connections import ConnectionLimits, protocol
from iris_kv.surfaces.http.health import Health
from iris_kv.surfaces.http.limits import MAX_HEAD_BYTES, Bounded, Buckets, GuessLimit, RateLimit, RequestLimits
from iris_kv.surfaces.http.metrics import Metrics
from iris_kv.surfaces.http.observability import Observed
from iris_kv.surfaces.http.platform import Platform

OPEN_REQUESTS_S: Final = 10
"""How long requests that are being answered may take once the server is to end."""
_CLOSING_S: Final = 15.0
"""How long workspaces may take to close behind that; what was acknowledged is safe in any case."""

_JSON_GROWTH: Final = 2
"""A value in JSON is longer than its bytes, in the worst case by more; then it can be sent as a raw body."""
_BACKLOG: Final = 512
_DESCRIPTORS_BESIDE: Final = 1_000
_GUESSES_PER_S: Final = 5.0
_GUESSES_BURST: Final = 20.0

_log = logging.getLogger(__name__)


class Address(NamedTuple):
    """Where a server listens."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Return the address of `HOST:PORT`, `[IPV6]:PORT` or `:PORT`, which is the loopback's.

        Raises:
            InvalidArgumentError: It is none.
        """
        host, colon, port = text.rpartition(":")
        is_bracketed = host.startswith("[") and host.endswith("]")
        is_port = port.isascii() and port.isdigit() and int(port) <= 65_535
        if not colon or not is_port or (":" in host and not is_bracketed):
            raise InvalidArgumentError(
                f"--http is {text!r}, which is no address",
                "it is HOST:PORT with a port from 0 to 65535, such as 127.0.0.1:8765 or [::1]:8765; port 0 takes a free one",
                "mend it, or leave the value out",
            )
        return cls(host.strip("[]") or "127.0.0.1", int(port))

    def __str__(self) -> str:
        """Return it as it stands in a URL."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def bound(address: Address) -> socket.socket:
    """Return a socket that listens.

    Raises:
        InvalidArgumentError: There is no such address here, or it is taken.
    """
    try:
        family, _, _, _, where = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(where, family=family, backlog=_BACKLOG)
    except OSError as error:
        raise InvalidArgumentError(
            f"{address} cannot be listened on: {error.strerror}",
            "it is a free port at an address of this machine",
            "choose another with --http HOST:PORT, or end what uses it",
        ) from None


def where(listening: socket.socket) -> Address:
    """Return the address that a socket was given."""
    host, port, *_ = listening.getsockname()
    return Address(host, port)


class HttpLimits(NamedTuple):
    """What the server's clients may take together and each."""

    requests: RequestLimits
    connections: ConnectionLimits
    per_s: float
    """Requests a second of one token or address; infinite: as many as come."""

    @classmethod
    def of(cls, settings: Settings) -> HttpLimits:
        """Return the limits of a server with these settings."""
        per_s = settings.http.requests_per_second
        # A larger body than the largest value cannot be of use.
        value_bytes = int(settings.max_value_mb * MEGABYTE)
        return cls(
            RequestLimits(max_body_bytes=_JSON_GROWTH * value_bytes + MEGABYTE),
            ConnectionLimits(most=min(ConnectionLimits().most, _descriptors() - _DESCRIPTORS_BESIDE)),
            float("inf") if per_s == "unlimited" else per_s,
        )


class HttpServer:
    """The application with everything around it, and the server that runs it."""

    def __init__(
        self,
        platform: Platform,
        settings: Settings,
        access: Access,
        metrics: Metrics,
        clock: Clock,
        limits: HttpLimits,
    ) -> None:
        """Compose; `serve` runs it.

        Args:
            platform: What is served.
            settings: The server's own, not a sandbox's.
            access: Who is let in.
            metrics: Where it counts.
            clock: Tells the rates of requests and bodies.
            limits: See `HttpLimits`.
        """
        self.health = Health(platform, metrics)
        self.app = build_app(platform, settings.profile, access)
        self.app.router.routes.extend(self.health.routes())
        rate = Buckets(clock, per_s=limits.per_s, burst=2 * limits.per_s)
        guesses = Buckets(clock, per_s=_GUESSES_PER_S, burst=_GUESSES_BURST)
        # Behind the gate: it has to know who asks.
        self.app.user_middleware.insert(1, Middleware(RateLimit, buckets=rate, metrics=metrics))
        known = GuessLimit(self.app, guesses, metrics)
        self.asgi = Observed(Bounded(known, limits.requests, metrics, clock), metrics)
        self._platform = platform
        self._server = _Server(self._config(settings, limits, metrics), self._end_streams)

    def _config(self, settings: Settings, limits: HttpLimits, metrics: Metrics) -> uvicorn.Config:
        trusted = settings.http.trusted_proxies
        return uvicorn.Config(
            self.asgi,
            http=protocol(limits.connections, metrics),  # pyright: ignore[reportArgumentType] - it calls what it is given
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=bool(trusted),
            forwarded_allow_ips=list(trusted),
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            timeout_keep_alive=int(limits.connections.keep_alive_s),
            timeout_graceful_shutdown=OPEN_REQUESTS_S,
        )

    def _end_streams(self) -> None:
        self.health.is_closing = True
        self.app.state.endpoint.end_streams()
        self._platform.end_streams()

    async def serve(self, listening: socket.socket) -> None:
        """Serve until SIGTERM or SIGINT; open requests are finished then, and every workspace is closed."""
        await self._server.serve([listening])


class _Server(uvicorn.Server):
    """uvicorn with our ways to end: at the first signal in order and with exit code 0, at the second at once."""

    def __init__(self, config: uvicorn.Config, end_streams: Callable[[], None]) -> None:
        super().__init__(config)
        self._end_streams = end_streams
        self._patience = threading.Timer(OPEN_REQUESTS_S + _CLOSING_S, os._exit, (1,))
        self._patience.daemon = True

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        wanted = (signal.SIGTERM, signal.SIGINT)
        before = {each: signal.signal(each, self.handle_exit) for each in wanted}
        try:
            yield
        finally:
            self._patience.cancel()
            for each, handler in before.items():
                signal.signal(each, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        del frame
        if self.should_exit:
            os._exit(128 + sig)
        self.should_exit = True
        self._patience.start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        _log.info("shutting down: finishing open requests for up to %d s", OPEN_REQUESTS_S)
        self._end_streams()
        await super().shutdown(sockets)


def raise_descriptor_limit() -> None:
    """Let this process open as many files and connections as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _descriptors() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(2 * _DESCRIPTORS_BESIDE, 1_000_000 if soft == resource.RLIM_INFINITY else soft)
