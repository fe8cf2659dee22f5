"""One cache folder as one process has opened it: its folders, its lock, its index, its log."""

from __future__ import annotations

import os
import sqlite3
from contextlib import ExitStack, nullcontext, suppress
from typing import TYPE_CHECKING, Final, NamedTuple

from iris_kv.errors import IrisError
from iris_kv.model import Clock, Face, Rebuilt, Watch
from iris_kv.store.disks import is_shared
from iris_kv.store.folders import CacheFolders, create_file, write_all
from iris_kv.store.hints import last_logged
from iris_kv.store.index import Index
from iris_kv.store.lock import WriteLock
from iris_kv.store.rebuild import rebuild_index
from iris_kv.store.recovery import RecoveryLog
from iris_kv.store.schema import DamagedIndexError, explained, index_exists, is_cut_off

if TYPE_CHECKING:
    from pathlib import Path

RESERVE: Final = "reserve"
RESERVE_BYTES: Final = 256 * 1024


class CacheOptions(NamedTuple):
    """How a store is opened; see `FileStore.open`."""

    workspace: Path
    clock: Clock
    face: Face
    create: bool
    durable: bool
    trust_owner: bool
    lock_timeout_s: float
    watch: Watch
    shared_disk: bool | None


class OpenCache:
    """Everything that is open of one cache; a cache that replaces it gets an `OpenCache` of its own.

    Threads that still work on a replaced one hold a reference to it, and the last of them closes it.
    """

    def __init__(self, options: CacheOptions) -> None:
        """Open the cache, or create it; a current one is opened without writing anything."""
        self._pid = os.getpid()
        with ExitStack() as opened:
            self.folders: Final = CacheFolders(
                options.workspace, create=options.create, trust_owner=options.trust_owner
            )
            opened.callback(self.folders.close)
            self.lock: Final = WriteLock(self.folders.store, options.lock_timeout_s, options.watch)
            opened.callback(self.lock.close)
            self.recovery: Final = RecoveryLog(self.folders.store)
            self.rebuilt: Rebuilt | None = None
            """What was found when the index was made anew to be opened; None: it was whole."""
            self._is_shared = is_shared(self.folders.store) if options.shared_disk is None else options.shared_disk
            self.index: Final = self._open_index(options)
            opened.callback(self.index.close)
            self._opened = opened.pop_all()

    def _connected(self, options: CacheOptions) -> Index:
        """Connect to the index; WAL needs memory that all processes share, which a disk of several machines has not."""
        guard = self.lock.shared if self._is_shared else nullcontext
        index = Index(self.folders.store, durable=options.durable, guard=guard)
        try:
            mode = "truncate" if self._is_shared else "wal"
            if index.writer.journal_mode() != mode:
                with self.lock.held():
                    index.writer.set_journal_mode(mode)
            if is_cut_off(self.folders.store):
                index.writer.check_integrity()
        except BaseException as error:
            index.close()
            if isinstance(error, sqlite3.Error):
                raise explained(error) from error
            raise
        return index

    def _open_index(self, options: CacheOptions) -> Index:
        """Return the index, which is made anew where it is lost or damaged.

        One that is behind the recovery log lost its write-ahead log, or is an old copy.
        """
        seen, logged = self.folders.index_identity(), last_logged(self.folders.store)
        index = None
        with suppress(DamagedIndexError):
            if index_exists(self.folders.store, trust_owner=options.trust_owner):
                index = self._connected(options)
                if index.readers.last_change() >= logged:
                    return index
        with self.lock.held():
            if index is not None:
                index.close()
            if self.folders.index_identity() == seen:
                result = self.rebuild(options.clock.now_ms())
                # A cache that is created for the first time is not mended.
                self.rebuilt = result if seen is not None or result.found_anything else None
        return self._connected(options)

    def rebuild(self, now_ms: int) -> Rebuilt:
        """Make the index anew, and put the present one aside; the write lock must be held.

        This cache is replaced by it, so `is_current` is False from then on.
        """
        result = rebuild_index(self.folders, self.recovery, now_ms)
        self.write_reserve()
        return result

    def is_current(self) -> bool:
        """Tell whether the workspace's path still leads here, and not to a cache that replaced it."""
        return self.folders.index_identity() == self.index.identity and self.lock.is_current()

    def write_reserve(self) -> None:
        """Lay down the space that deleting and collecting need on a full disk; best effort."""
        with suppress(OSError):
            handle = create_file(self.folders.store, RESERVE)
            try:
                write_all(handle, bytes(RESERVE_BYTES))
            except OSError:
                os.unlink(RESERVE, dir_fd=self.folders.store)
            finally:
                os.close(handle)

    def give_up_reserve(self) -> bool:
        """Let go of that space, and tell whether there was any; collection lays it down again."""
        try:
            os.unlink(RESERVE, dir_fd=self.folders.store)
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Close everything; nobody may be using it.

        SQLite's closing takes the write lock. Where another process does not let go of it, that
        process has the index open too, so that closing here does not checkpoint.
        """
        with self._opened, suppress(IrisError, OSError), self.lock.held():
            self.index.close()
            self.lock.sign_off()

    def abandon(self) -> None:
        """Close the plain descriptors behind a fork; SQLite's connections must not cross one, nor be closed."""
        self.lock.close()
        self.folders.close()

    def __del__(self) -> None:
        if hasattr(self, "_opened") and self._pid == os.getpid():
            self._opened.close()
