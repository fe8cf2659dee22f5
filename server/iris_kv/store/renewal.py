"""Reads noted in memory: what they renew counts at once, and the index is told now and then."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from iris_kv.model import Activity, Clock, Scope
from iris_kv.store.base import FLUSH_INTERVAL_MS, GRACE_MS

if TYPE_CHECKING:
    from iris_kv.store.queries import Row

_FLUSH_AT: Final = 1000

Reads = dict[tuple[Scope, str], int]


class ReadNotes:
    """When entries were last read by this process, as far as the index has not been told."""

    def __init__(self, clock: Clock) -> None:
        """Start with none."""
        self._clock = clock
        self._reads: Reads = {}
        self._mutex = threading.Lock()
        self._told_at = clock.now_ms()
        self._tell_at = _FLUSH_AT

    def note(self, row: Row) -> bool:
        """Note a read and tell whether the index should be told now."""
        now = self._clock.now_ms()
        with self._mutex:
            self._reads[row.scope, row.key] = now
            many = len(self._reads) >= self._tell_at
        # A clock that was set back is no reason to wait for longer.
        return many or not 0 <= now - self._told_at < FLUSH_INTERVAL_MS or _is_ending(row, now)

    def expiry(self, row: Row) -> int | None:
        """Return when an entry expires, the noted reads included."""
        if not row.renew or row.expires_at is None or row.ttl is None:
            return row.expires_at
        read_at = self._reads.get((row.scope, row.key))
        if read_at is None or read_at < row.updated_at:
            return row.expires_at
        return max(row.expires_at, read_at + row.ttl)

    def is_expired(self, row: Row, now: int) -> bool:
        """Tell whether an entry is expired at a time, the noted reads included."""
        expires_at = self.expiry(row)
        return expires_at is not None and expires_at <= now

    def last(self, scope: Scope, by: str) -> Activity | None:
        """Return the last noted read of a scope."""
        with self._mutex:
            at = max((at for (each, _), at in self._reads.items() if each == scope), default=None)
        return None if at is None else Activity(at=at, by=by)

    def pending(self) -> Reads:
        """Return what the index is to be told; it counts here until `settle`."""
        with self._mutex:
            self._told_at = self._clock.now_ms()
            self._tell_at = len(self._reads) + _FLUSH_AT
            return dict(self._reads)

    def settle(self, told: Reads) -> None:
        """Forget what the index was told."""
        with self._mutex:
            for name, at in told.items():
                if self._reads.get(name) == at:
                    del self._reads[name]
            self._tell_at = len(self._reads) + _FLUSH_AT

    def forget(self) -> None:
        """Forget everything, as the cache that was read is gone."""
        with self._mutex:
            self._reads.clear()


def _is_ending(row: Row, now: int) -> bool:
    """Tell whether other processes would take a renewed entry for expired soon.

    Told at most once in a tenth of the TTL: each time is a transaction in the path of a read.
    """
    if not row.renew or row.expires_at is None or row.ttl is None:
        return False
    tenth = row.ttl // 10
    return row.expires_at - now <= max(tenth, GRACE_MS) and now + row.ttl - row.expires_at >= tenth
