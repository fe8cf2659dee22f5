"""The manifests: a readable `.index.json` beside each scope's values, written a little after them."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from iris_kv.errors import IrisError
from iris_kv.store.recovery import write_manifest

if TYPE_CHECKING:
    from iris_kv.model import Scope
    from iris_kv.store.engine import Engine

_AT_LEAST_S: Final = 2.0
_SHARE: Final = 20
_ENTRIES: Final = 5_000


class Manifests:
    """Which manifests lag behind, and the timer that has them written.

    They are written from a snapshot of the index and without the write lock: they are hints, and
    a big one would hold writers up for a second.
    """

    def __init__(self, engine: Engine) -> None:
        """Start with none that lags behind."""
        self._engine = engine
        self._stale: set[Scope] = set()
        self._timer: threading.Timer | None = None
        self._took_s = 0.0
        self._is_closed = False
        self._mutex = threading.Lock()
        self._writing = threading.Lock()
        """Held by the timer's thread from before it looks whether this is closed until it is done."""

    def mark_stale(self, *scopes: Scope) -> None:
        """Note that manifests lag behind, and have them written a little later."""
        with self._mutex:
            self._stale.update(scopes)
            if self._stale and self._timer is None and not self._is_closed:
                self._timer = threading.Timer(max(_AT_LEAST_S, _SHARE * self._took_s), self._on_timer)
                self._timer.daemon = True
                self._timer.start()

    def _on_timer(self) -> None:
        with self._writing:
            with self._mutex:
                self._timer = None
                if self._is_closed:
                    return
            with suppress(IrisError):
                self.write(all_sizes=False)

    def write(self, *, all_sizes: bool) -> None:
        """Write the manifests that lag behind; those of over 5,000 entries only with `all_sizes`.

        On a disk that is full or fails the store does without them.
        """
        with self._mutex:
            stale = sorted(self._stale)
        started = time.perf_counter()
        for scope in stale:
            with suppress(OSError):
                self._write_one(scope, all_sizes=all_sizes)
        self._took_s = time.perf_counter() - started

    def _write_one(self, scope: Scope, *, all_sizes: bool) -> None:
        cache = self._engine.cache()
        with cache.index.readers.snapshot() as index:
            if all_sizes or index.usage(scope).entries <= _ENTRIES:
                with self._mutex:
                    self._stale.discard(scope)
                folder, workspace_id = cache.folders.scope(scope), index.meta("workspace_id")
                write_manifest(folder, index.last_change(), workspace_id, index.all_rows(scope))

    def close(self) -> None:
        """Stop the timer and write what lags behind."""
        with self._mutex:
            self._is_closed = True
            timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
            timer.join()
        # One that fired before may still be at it, and what it writes to is closed next.
        with self._writing, suppress(IrisError):
            self.write(all_sizes=True)
