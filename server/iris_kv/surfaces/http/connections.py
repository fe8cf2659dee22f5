"""HTTP/1.1 connections that cannot be held for nothing: time for a request's head, and a bound on their number."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, NamedTuple

from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from iris_kv.surfaces.http.metrics import Metrics


class ConnectionLimits(NamedTuple):
    """How many connections there may be, and how long one may be silent."""

    most: int = 4_000
    """One more closes the one that has been without a request for longest."""
    head_s: float = 15.0
    """How long the first byte and the rest of a request's head may take."""
    keep_alive_s: float = 30.0
    """How long a connection stays open behind an answer."""
    stalled_s: float = 60.0
    """How often is looked whether a client still takes what is sent to it."""
    taken_per_s: int = 1_000
    """How many bytes it must take on average from one look to the next, where as many wait for it."""


def protocol(limits: ConnectionLimits, metrics: Metrics) -> Callable[..., asyncio.Protocol]:
    """Return what makes uvicorn's connections, bounded."""
    waiting: dict[_BoundedConnection, None] = {}

    def connection(
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> _BoundedConnection:
        return _BoundedConnection(config, server_state, app_state, _loop, limits, metrics, waiting)

    return connection


class _BoundedConnection(H11Protocol):
    """A connection; it is `waiting` while none of its requests is being answered, oldest first."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        loop: asyncio.AbstractEventLoop | None,
        limits: ConnectionLimits,
        metrics: Metrics,
        waiting: dict[_BoundedConnection, None],
    ) -> None:
        super().__init__(config, server_state, app_state, loop)
        self._limits = limits
        self._metrics = metrics
        self._waiting = waiting
        self._head: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        # asyncio does it for sockets that name their protocol; `socket.create_server` makes others.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if len(self.connections) > self._limits.most:
            self._metrics.refused("too_many_connections")
            # Whoever opens connections and asks nothing loses one; where all are at work, this one goes.
            loser = next(iter(self._waiting), self)
            # It is lost only in the loop's next turn, and of a burst each one has to cost another.
            self._waiting.pop(loser, None)
            loser.transport.abort()
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._is_answering():
            self._stop_waiting()
        elif self._head is None:
            self._wait()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._is_answering():
            self._waiting[self] = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._look_later()

    def resume_writing(self) -> None:
        self._go_on()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._go_on()
        self._stop_waiting()
        super().connection_lost(exc)

    def _is_answering(self) -> bool:
        cycle = self.cycle
        return cycle is not None and not cycle.response_complete  # pyright: ignore[reportUnnecessaryComparison] - None before the first request

    def _look_later(self) -> None:
        unsent = self.transport.get_write_buffer_size()
        self._stalled = self.loop.call_later(self._limits.stalled_s, self._look, unsent)

    def _look(self, unsent_before: int) -> None:
        taken = unsent_before - self.transport.get_write_buffer_size()
        if taken < self._limits.stalled_s * self._limits.taken_per_s:
            # Without this, whoever asks much and reads nothing holds a connection and its request for good.
            self._metrics.refused("too_slow")
            self.transport.abort()
        else:
            self._look_later()

    def _go_on(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _wait(self) -> None:
        self._waiting[self] = None
        self._head = self.loop.call_later(self._limits.head_s, self.transport.abort)

    def _stop_waiting(self) -> None:
        self._waiting.pop(self, None)
        if self._head is not None:
            self._head.cancel()
            self._head = None
