"""One piece of work at a time for each key: who wants the same waits, and gets the same."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, NamedTuple, TypeVar

import anyio

_T = TypeVar("_T")


class Landed(NamedTuple, Generic[_T]):
    """What a piece of work gave."""

    value: _T
    is_own: bool
    """Whether this caller did it, and not one whom it waited for."""


class _Flight(Generic[_T]):
    def __init__(self) -> None:
        self.turn = anyio.Lock()
        self.landed: Landed[_T] | None = None
        self.callers = 0


class Flights(Generic[_T]):
    """The work that is under way in this process, by key."""

    def __init__(self) -> None:
        """Start with none."""
        self._flights: dict[Hashable, _Flight[_T]] = {}

    async def share(self, key: Hashable, work: Callable[[], Awaitable[_T]]) -> Landed[_T]:
        """Do some work, or wait for whom does it already; if that one is cancelled, the next in turn takes over."""
        flight = self._flights.setdefault(key, _Flight())
        flight.callers += 1
        try:
            async with flight.turn:
                if flight.landed is not None:
                    return flight.landed._replace(is_own=False)
                flight.landed = Landed(await work(), is_own=True)
                return flight.landed
        finally:
            flight.callers -= 1
            # Who comes after the landing starts anew, so that no failure is handed on for good.
            if (flight.landed is not None or flight.callers == 0) and self._flights.get(key) is flight:
                del self._flights[key]
