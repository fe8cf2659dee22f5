"""The synchronous store of one process, and the threads that work on it: four read and one writes at a time.

Each call is one hop to a thread that does all the work.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Final, TypeVar

import anyio

from iris_kv.errors import IrisError, UnavailableError
from iris_kv.store.engine import Engine
from iris_kv.store.lanes import Lane
from iris_kv.store.manifests import Manifests
from iris_kv.store.reading import Reading
from iris_kv.store.schema import disk_full, is_disk_full
from iris_kv.store.upkeep import Upkeep
from iris_kv.store.versions import Versions
from iris_kv.store.writing import Writing

if TYPE_CHECKING:
    from collections.abc import Callable

    from iris_kv.model import Scope
    from iris_kv.store.cache import CacheOptions

READERS: Final = 4

_T = TypeVar("_T")


class StoreThreads:
    """Runs work on the store in threads, and knows when none is left."""

    def __init__(self, options: CacheOptions) -> None:
        """Prepare; the cache is opened by the first work."""
        self.pid: Final = os.getpid()
        self.engine: Final = Engine(options)
        self.reading: Final = Reading(self.engine)
        self.writing: Final = Writing(self.engine, self.reading)
        self.versions: Final = Versions(self.engine, self.reading, self.writing)
        self.manifests: Final = Manifests(self.engine)
        self.upkeep: Final = Upkeep(self.engine, self.reading, self.writing, self.versions, self.manifests)
        self._readers = Lane(READERS)
        self._writer = Lane(1)
        self.notice = anyio.Event()
        """Set at the next change that this process makes, and replaced then."""
        self._running = 0
        self._idle = threading.Condition()

    async def read(self, work: Callable[[], _T]) -> _T:
        """Do some reading."""
        return await self._run(work, self._readers)

    async def write(self, work: Callable[[], _T]) -> _T:
        """Do some writing; no other of this process's runs meanwhile."""
        return await self._run(work, self._writer)

    async def free(self, work: Callable[[], _T]) -> _T:
        """Do some writing that frees space; on a full disk the reserve is given up for it."""
        return await self.write(lambda: self._with_reserve(work))

    def _with_reserve(self, work: Callable[[], _T]) -> _T:
        try:
            return work()
        except (IrisError, OSError) as error:
            if not (is_disk_full(error) and self.engine.cache().give_up_reserve()):
                raise
        return work()

    async def _run(self, work: Callable[[], _T], lane: Lane) -> _T:
        try:
            return await lane.run(lambda: self._counted(work))
        except OSError as error:
            raise _disk_error(error) from error

    def _counted(self, work: Callable[[], _T]) -> _T:
        with self._idle:
            self._running += 1
        try:
            return self.engine.mended(work)
        finally:
            with self._idle:
                self._running -= 1
                self._idle.notify_all()

    def note_written(self, *scopes: Scope) -> None:
        """Have the manifests of some scopes written anew, and wake everyone who waits for a change."""
        self.manifests.mark_stale(*scopes)
        notice, self.notice = self.notice, anyio.Event()
        notice.set()

    async def close(self) -> None:
        """Write what is pending and close, once nothing runs any more.

        A task that asyncio cancels twice waits no longer for its thread, which may still be at work.
        """
        await self._writer.run(self._close)

    def _close(self) -> None:
        with self._idle:
            self._idle.wait_for(lambda: self._running == 0)
        self.manifests.close()
        self.engine.close()


def _disk_error(error: OSError) -> UnavailableError:
    if is_disk_full(error):
        return disk_full()
    return UnavailableError(
        f"the disk answered {error.strerror or type(error).__name__}",
        "what was stored before is intact",
        "mend the disk or the permissions of .iris/kv-cache, then try again",
    )
