"""The file store: the Store protocol over readable files, each call one hop to a thread.

A cancelled call never abandons a half-done put: its thread ends the put, or undoes it.
"""

from __future__ import annotations

import os
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Final

from anyio import CancelScope, move_on_after

from iris_kv.errors import ExpiredError, NotFoundError
from iris_kv.model import KEEP_NOTHING, SCOPES, Unwatched
from iris_kv.store.backup import back_up
from iris_kv.store.base import HeldReader
from iris_kv.store.cache import CacheOptions
from iris_kv.store.checks import Listing, PutRequest
from iris_kv.store.restore import restore
from iris_kv.store.threads import StoreThreads

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, Generator, Mapping
    from io import FileIO
    from pathlib import Path

    from iris_kv.model import (
        Activity,
        Archived,
        Changes,
        Clock,
        Entry,
        EntryInfo,
        Face,
        History,
        Keep,
        KeptPage,
        Limits,
        Page,
        Provenance,
        Removed,
        Repair,
        Scope,
        Usage,
        Verification,
        Watch,
    )
    from iris_kv.store.base import Reader

POLL_S: Final = 0.25


class FileStore:
    """Entries as readable files beside a SQLite index, below `.iris/kv-cache` of a workspace."""

    def __init__(self, options: CacheOptions) -> None:
        """Prepare; use `FileStore.open`."""
        self._options = options
        self._here = StoreThreads(options)
        self._before_fork: list[StoreThreads] = []

    @classmethod
    async def open(
        cls,
        workspace: Path,
        *,
        clock: Clock,
        face: Face = "library",
        create: bool = True,
        durable: bool = True,
        trust_owner: bool = False,
        lock_timeout_s: float = 10.0,
        watch: Watch | None = None,
        shared_disk: bool | None = None,
    ) -> FileStore:
        """Open the store of a workspace.

        Args:
            workspace: The workspace's folder, which must exist.
            clock: Where the time comes from.
            face: Through which face this process reads and writes, for the record.
            create: Create the cache where there is none.
            durable: Whether a put survives a power cut, or only the end of the process.
            trust_owner: Accept a cache that another user owns.
            lock_timeout_s: How long a write waits for another process's write.
            watch: Is told of reads and of waits; None: nobody is.
            shared_disk: Whether other machines may use the disk, too, so that SQLite's WAL cannot be
                used; None: as the type of its file system says.

        Raises:
            NotFoundError: There is no cache and `create` is False.
            ForbiddenError: A link, an owner or a mode is not to be trusted.
            UnavailableError: It cannot be opened, or a newer version wrote it.
            CorruptError: The index is damaged.
        """
        told = watch or Unwatched()
        store = cls(
            CacheOptions(workspace, clock, face, create, durable, trust_owner, lock_timeout_s, told, shared_disk)
        )
        await store._here.read(store._here.engine.cache)
        return store

    @property
    def origin(self) -> str:
        """Return the name of this handle in the change feed; another one in a forked child."""
        return self._threads.engine.origin

    async def head(self, scope: Scope, key: str) -> EntryInfo:
        """See `Store.head`."""
        here = self._threads
        return await here.read(lambda: here.reading.head(scope, key))

    async def get(self, scope: Scope, key: str) -> Entry:
        """See `Store.get`."""
        here = self._threads
        with self._watched(scope):
            return await here.read(lambda: here.reading.get(scope, key))

    @asynccontextmanager
    async def open_value(self, scope: Scope, key: str) -> AsyncGenerator[Reader]:
        """See `Store.open_value`; a small value is read at once, as its file costs two more hops to a thread."""
        here = self._threads
        with self._watched(scope):
            info, file = await here.read(lambda: here.reading.open_value(scope, key))
        if isinstance(file, bytes):
            yield HeldReader(info, file)
            return
        try:
            yield FileReader(info, file, here)
        finally:
            # In a thread: the last descriptor of a replaced value frees its blocks.
            with CancelScope(shield=True):
                await here.read(file.close)

    async def put(
        self,
        scope: Scope,
        key: str,
        value: bytes | AsyncIterable[bytes],
        *,
        content_type: str,
        limits: Limits,
        provenance: Provenance,
        ttl_ms: int | None = None,
        metadata: Mapping[str, str] | None = None,
        if_digest: str | None = None,
    ) -> EntryInfo:
        """See `Store.put`."""
        here = self._threads
        request = PutRequest(scope, key, content_type, limits, provenance, ttl_ms, metadata or {}, if_digest)
        if isinstance(value, bytes):
            info = await here.write(lambda: here.writing.put(request, value))
        else:
            info = await _put_chunks(here, request, value)
        here.note_written(scope)
        return info

    async def delete(
        self, scope: Scope, key: str, *, if_digest: str | None = None, keep: Keep = KEEP_NOTHING
    ) -> EntryInfo:
        """See `Store.delete`."""
        here = self._threads
        info = await here.free(lambda: here.writing.delete(scope, key, if_digest, keep))
        here.note_written(scope)
        return info

    async def clear(self, scope: Scope, *, keep: Keep = KEEP_NOTHING) -> Removed:
        """See `Store.clear`."""
        here = self._threads
        removed = await here.free(lambda: here.writing.clear(scope, keep))
        here.note_written(scope)
        return removed

    async def history(self, scope: Scope, key: str) -> History:
        """See `Store.history`."""
        here = self._threads
        return await here.read(lambda: here.versions.history(scope, key))

    async def deleted(self, scope: Scope, *, cursor: str | None = None, limit: int = 100) -> KeptPage:
        """See `Store.deleted`."""
        here = self._threads
        return await here.read(lambda: here.versions.deleted(scope, cursor, limit))

    async def restore_entry(
        self, scope: Scope, key: str, version: int | None = None, *, limits: Limits, if_digest: str | None = None
    ) -> EntryInfo:
        """See `Store.restore_entry`; the value's file gets another name, and no byte is copied."""
        here = self._threads
        info = await here.write(lambda: here.versions.restore(scope, key, version, limits, if_digest))
        here.note_written(scope)
        return info

    async def list(
        self,
        scope: Scope,
        *,
        prefix: str = "",
        cursor: str | None = None,
        limit: int = 100,
        include_expired: bool = False,
        pattern: str | None = None,
    ) -> Page:
        """See `Store.list`."""
        here = self._threads
        asked = Listing(prefix, cursor, limit, pattern)
        return await here.read(lambda: here.reading.list(scope, asked, include_expired=include_expired))

    async def latest(self, scope: Scope, limit: int, *, prefix: str = "", without: str = "") -> tuple[EntryInfo, ...]:
        """See `Store.latest`."""
        here = self._threads
        return await here.read(lambda: here.reading.latest(scope, limit, prefix, without))

    async def usage(self, scope: Scope) -> Usage:
        """See `Store.usage`."""
        here = self._threads
        return await here.read(lambda: here.reading.usage(scope))

    async def collect(self, scope: Scope | None = None) -> Removed:
        """See `Store.collect`."""
        here = self._threads
        removed = await here.free(lambda: here.upkeep.collect(scope))
        here.note_written()
        return removed

    async def collection_is_due(self) -> bool:
        """Tell whether the last collection of any process is over ten minutes old."""
        here = self._threads
        return await here.read(here.upkeep.is_due)

    async def verify(self, scope: Scope | None = None) -> Verification:
        """See `Store.verify`."""
        here = self._threads
        return await here.read(lambda: here.upkeep.verify(scope))

    async def repair(self) -> Repair:
        """Look at the whole index, and make it anew if anything is wrong with it; values are not read otherwise."""
        here = self._threads
        repair = await here.write(here.upkeep.repair)
        here.note_written(*SCOPES)
        return repair

    async def back_up(self, path: Path) -> Archived:
        """Write all entries as they are at one moment into an archive; see `back_up`."""
        here = self._threads
        return await here.read(lambda: back_up(here.engine, path))

    async def restore(self, path: Path) -> Archived:
        """Replace all entries by those of an archive; see `restore`."""
        here = self._threads
        restored = await here.write(lambda: restore(here.engine, path))
        here.note_written(*SCOPES)
        return restored

    async def count(self, day: str, deltas: Mapping[str, int]) -> None:
        """See `Store.count`."""
        here = self._threads
        await here.write(lambda: here.writing.count(day, deltas))

    async def check_writable(self) -> None:
        """Take the write lock and write the time to the index.

        Raises:
            BusyError: The lock was not to be had in time.
            UnavailableError: The disk or the index cannot be written.
        """
        here = self._threads
        await here.write(here.upkeep.check_writable)

    async def counts(self, since: str) -> Mapping[str, Mapping[str, int]]:
        """See `Store.counts`."""
        here = self._threads
        return await here.read(lambda: here.reading.counts(since))

    async def workspace_id(self) -> str:
        """See `Store.workspace_id`."""
        here = self._threads
        return await here.read(here.reading.workspace_id)

    async def activity(self, scope: Scope) -> tuple[Activity | None, Activity | None]:
        """See `Store.activity`."""
        here = self._threads
        return await here.read(lambda: here.reading.activity(scope))

    async def changes(self, after: str | None, limit: int = 1000) -> Changes:
        """See `Store.changes`."""
        here = self._threads
        return await here.read(lambda: here.reading.changes(after, limit))

    async def wait_for_change(self, after: str) -> None:
        """See `Store.wait_for_change`; other processes' changes are seen within 250 ms."""
        here = self._threads
        while True:
            notice = here.notice
            if await here.read(lambda: here.reading.has_changed(after)):
                return
            with move_on_after(POLL_S):
                await notice.wait()

    async def aclose(self) -> None:
        """See `Store.aclose`."""
        with CancelScope(shield=True):
            await self._threads.close()

    @contextmanager
    def _watched(self, scope: Scope) -> Generator[None]:
        """Tell the watch whether what is read is there."""
        try:
            yield
        except (NotFoundError, ExpiredError):
            self._options.watch.read(scope, hit=False)
            raise
        self._options.watch.read(scope, hit=True)

    @property
    def _threads(self) -> StoreThreads:
        """Return the threads of this process; SQLite's connections must not cross a fork, nor be closed behind it."""
        if self._here.pid != os.getpid():
            self._here.engine.abandon()
            self._before_fork.append(self._here)
            self._here = StoreThreads(self._options)
        return self._here


class FileReader:
    """One verified generation of a value, read from its open file."""

    def __init__(self, info: EntryInfo, file: FileIO, threads: StoreThreads) -> None:
        """Read from a file that the opener closes."""
        self._info = info
        self._file = file
        self._threads = threads

    @property
    def info(self) -> EntryInfo:
        """See `Reader.info`."""
        return self._info

    async def read(self, offset: int, n: int) -> bytes:
        """See `Reader.read`."""
        return await self._threads.read(lambda: os.pread(self._file.fileno(), n, offset))


async def _put_chunks(here: StoreThreads, request: PutRequest, chunks: AsyncIterable[bytes]) -> EntryInfo:
    upload = await here.write(lambda: here.writing.begin(request))
    try:
        async for chunk in chunks:
            await here.write(lambda chunk=chunk: here.writing.write(upload, chunk))
        return await here.write(lambda: here.writing.commit(request, upload))
    finally:
        with CancelScope(shield=True):
            await here.write(upload.discard)
