"""The file store's frame: which cache is open, who may write now, and what time it is."""

from __future__ import annotations

import os
import secrets
import sqlite3
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final, TypeVar

from iris_kv.errors import BusyError, IrisError, UnavailableError
from iris_kv.model import Repair
from iris_kv.store.cache import CacheOptions, OpenCache
from iris_kv.store.renewal import ReadNotes
from iris_kv.store.schema import DamagedIndexError, explained
from iris_kv.store.soundness import index_problem

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from iris_kv.store.queries import Queries, Row

_ATTEMPTS: Final = 8

_T = TypeVar("_T")


class Engine:
    """One file store of one process; safe to call from several threads.

    A workspace's cache can be deleted or replaced at any time. Each operation takes the
    `OpenCache` that it works on once, and nothing changes under it.
    """

    def __init__(self, options: CacheOptions) -> None:
        """Prepare; the cache is opened when it is first needed."""
        self.options: Final = options
        self.clock: Final = options.clock
        self.pid: Final = os.getpid()
        self.origin: Final = secrets.token_hex(8)
        self.by: Final = f"{options.face} (pid {self.pid})"
        self.notes: Final = ReadNotes(options.clock)
        self._cache: OpenCache | None = None
        self._is_closed = False
        self._opening = threading.Lock()

    def cache(self) -> OpenCache:
        """Return the open cache, which may have been replaced on disk since.

        Raises:
            UnavailableError: The store is closed, or cannot be opened.
        """
        return self._cache or self.fresh_cache()

    def fresh_cache(self, *, distrust: OpenCache | None = None) -> OpenCache:
        """Return the cache that the workspace's path leads to now; `distrust` is opened anew in any case."""
        with self._opening:
            if self._is_closed:
                raise UnavailableError("the store is closed", "a closed store stays closed", "open it again")
            cache = self._cache
            if cache is None or cache is distrust or not cache.is_current():
                fresh = OpenCache(self.options)
                if cache is not None and cache.index.identity != fresh.index.identity:
                    self.notes.forget()
                self._cache = cache = fresh
            return cache

    def ask(self, question: Callable[[Queries], _T]) -> _T:
        """Put a question to the index that the workspace's path leads to now."""
        return question(self.fresh_cache().index.readers)

    def mended(self, work: Callable[[], _T]) -> _T:
        """Do some work; where the index shows itself damaged, make it anew and do the work again.

        Raises:
            CorruptError: The new index is no better.
        """
        seen = self._cache
        try:
            return work()
        except DamagedIndexError:
            if seen is not None:
                self.repair(damaged=seen)
        except (ValueError, TypeError, ArithmeticError):
            # What was read of the index is not of the kind that was written, or this is a fault of ours.
            if self.repair().rebuilt is None:
                raise
        return work()

    def repair(self, *, damaged: OpenCache | None = None) -> Repair:
        """Make the index anew if anything is wrong with it, unless another process or thread was faster.

        Args:
            damaged: The cache whose index showed itself damaged; None: it is looked at whole.
        """
        cache = damaged or self.fresh_cache()
        problem = rebuilt = None
        with cache.lock.held():
            if cache.is_current():
                problem = "it cannot be read" if damaged else index_problem(cache)
                rebuilt = None if problem is None else cache.rebuild(self.clock.now_ms())
        self.fresh_cache()
        return Repair(problem=problem, rebuilt=rebuilt)

    @contextmanager
    def writing(self) -> Generator[OpenCache]:
        """Hold the write lock of the cache that the workspace's path leads to now.

        Raises:
            BusyError: The lock was not to be had in time.
            CorruptError: The index is damaged.
            UnavailableError: The index cannot be written.
        """
        for _ in range(_ATTEMPTS):
            cache = self.cache()
            with cache.lock.held():
                if cache.is_current():
                    try:
                        yield cache
                    except sqlite3.Error as error:
                        raise explained(error) from error
                    return
            self.fresh_cache()
        raise BusyError(
            f"the cache was replaced {_ATTEMPTS} times while it was to be written",
            "one cache stands in a workspace",
            "try again in a moment",
        )

    def note_read(self, row: Row) -> int | None:
        """Note a read and return when the entry expires now; the index is told when it is time and the lock is free."""
        is_due = self.notes.note(row)
        expires_at = self.notes.expiry(row)
        if is_due:
            with suppress(IrisError, OSError, sqlite3.Error):
                cache = self.cache()
                with cache.lock.held(wait=False) as held:
                    if held and cache.is_current():
                        self.tell_reads(cache)
        return expires_at

    def flush_reads(self) -> None:
        """Tell the index of the reads noted so far."""
        with self.writing() as cache:
            self.tell_reads(cache)

    def tell_reads(self, cache: OpenCache) -> None:
        """Tell the index of the reads noted so far; the write lock must be held."""
        reads = self.notes.pending()
        if reads:
            with cache.index.writer.transaction():
                cache.index.writer.note_reads(reads, self.by)
            self.notes.settle(reads)

    def close(self) -> None:
        """Tell the index what is pending and close everything."""
        if self._cache is not None:
            with suppress(IrisError, OSError):
                self.flush_reads()
        with self._opening:
            self._is_closed = True
            cache, self._cache = self._cache, None
        if cache is not None:
            cache.close()

    def abandon(self) -> None:
        """Let go of what was open before a fork; the child opens the cache for itself."""
        if self._cache is not None:
            self._cache.abandon()
