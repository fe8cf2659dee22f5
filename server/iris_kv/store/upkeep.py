"""Collection and verification of the file store."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from iris_kv.model import SCOPES, Damage, Removed, Repair, Scope, Verification
from iris_kv.store import keeping, names
from iris_kv.store.base import oldest_counted_day
from iris_kv.store.folders import open_or_create
from iris_kv.store.hints import Hints
from iris_kv.store.queries import PAGE_ROWS
from iris_kv.store.replacing import unlink
from iris_kv.store.schema import INDEX, damaged_index
from iris_kv.store.soundness import are_ahead

if TYPE_CHECKING:
    from collections.abc import Generator

    from iris_kv.store.cache import OpenCache
    from iris_kv.store.engine import Engine
    from iris_kv.store.manifests import Manifests
    from iris_kv.store.reading import Reading
    from iris_kv.store.versions import Versions
    from iris_kv.store.writing import Writing

COLLECT_EVERY_MS: Final = 600_000

QUARANTINE_FILES: Final = 1_000
QUARANTINE_BYTES: Final = 256_000_000
"""What is over either bound is removed by collection, what lies there longest first."""

_TEMPORARY_AGE_S: Final = 3600
_WAL_BYTES: Final = 8_000_000
_RECOVERY_BYTES: Final = 1_000_000
_GC_LOCK: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Upkeep:
    """What keeps a store tidy, beside its operations."""

    def __init__(
        self, engine: Engine, reading: Reading, writing: Writing, versions: Versions, manifests: Manifests
    ) -> None:
        """Look after one engine's store."""
        self._engine = engine
        self._reading = reading
        self._writing = writing
        self._versions = versions
        self._manifests = manifests

    def is_due(self) -> bool:
        """Tell whether the last collection is over ten minutes old."""
        collected_at = int(self._engine.ask(lambda index: index.meta("collected_at")) or 0)
        # One that lies ahead was noted by a clock that was set back since.
        return not 0 <= self._engine.clock.now_ms() - collected_at < COLLECT_EVERY_MS

    def check_writable(self) -> None:
        """Write the time to the index, which fails as any write would."""
        with self._engine.writing() as cache, cache.index.writer.transaction():
            cache.index.writer.set_meta("checked_at", str(self._engine.clock.now_ms()))

    def collect(self, scope: Scope | None) -> Removed:
        """Remove expired entries; for all scopes also orphans, and tidy logs and manifests.

        One process tidies at a time; another that comes meanwhile removes expired entries only.
        """
        scopes = SCOPES if scope is None else (scope,)
        with self._engine.writing() as cache:
            self._engine.tell_reads(cache)
            with cache.index.writer.transaction():
                cache.index.writer.set_meta("collected_at", str(self._engine.clock.now_ms()))
                cache.index.writer.trim_changes()
                cache.index.writer.trim_counts(oldest_counted_day(self._engine.clock.now_ms()))
        removed = self._remove_expired(scopes)
        for each in scopes:
            self._end_due(each)
        if scope is None:
            with self._alone() as alone:
                if alone:
                    self._tidy()
        return removed

    def _remove_expired(self, scopes: tuple[Scope, ...]) -> Removed:
        """Remove expired entries, letting others write after each 500."""
        n = size = 0
        while True:
            with self._engine.writing() as cache:
                rows = self._writing.remove_some_expired(cache, scopes)
            stale: set[Scope] = {row.scope for row in rows}
            self._manifests.mark_stale(*stale)
            n, size = n + len(rows), size + sum(row.size for row in rows)
            if len(rows) < PAGE_ROWS:
                return Removed(entries=n, bytes=size)

    def _end_due(self, scope: Scope) -> None:
        """Remove versions that were kept long enough, letting others write after each 500."""
        now = self._engine.clock.now_ms()
        while self._engine.ask(lambda index: index.due_kept(scope, now)):
            with self._engine.writing() as cache, cache.index.writer.transaction():
                gone = keeping.end_due(cache, scope, now)
            unlink(cache, scope, gone)

    @contextmanager
    def _alone(self) -> Generator[bool]:
        handle = open_or_create(self._engine.cache().folders.store, "gc.lock", _GC_LOCK)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(handle)

    def _tidy(self) -> None:
        # First, so that nothing is taken for an orphan because its row cannot be found.
        self._engine.ask(lambda index: index.check_integrity())
        for scope in SCOPES:
            self._remove_orphans(scope)
        with self._engine.writing() as cache:
            _remove_old_temporaries(cache.folders.store)
            _bound_quarantine(cache.folders.quarantine)
            if _size(cache.folders.store, INDEX + "-wal") > _WAL_BYTES:
                cache.index.writer.checkpoint()
            cache.write_reserve()
            self._shorten_recovery_log(cache)
        self._manifests.mark_stale(*SCOPES)
        self._manifests.write(all_sizes=True)

    def _remove_orphans(self, scope: Scope) -> None:
        """Remove files that no row names: listed without the lock, and looked at again under it."""
        cache = self._engine.cache()
        folder = cache.folders.scope(scope)
        _remove_old_temporaries(folder)
        readers = cache.index.readers
        known = {row.file for row in readers.all_rows(scope)} | readers.kept_files(scope)
        suspects = [file for file in os.listdir(folder) if file not in known and names.seq_of(file) is not None]
        if are_ahead(cache.index.readers.last_change(), suspects):
            # They are what a write-ahead log held that was lost, and no orphans.
            raise damaged_index()
        if suspects and not {row.file for row in Hints(cache.folders).newest(scope)}.isdisjoint(suspects):
            # Just written, or their rows were lost.
            self._engine.repair()
        for start in range(0, len(suspects), PAGE_ROWS):
            with self._engine.writing() as current:
                if current is cache:
                    self._remove_unnamed(cache, scope, suspects[start : start + PAGE_ROWS])

    def _remove_unnamed(self, cache: OpenCache, scope: Scope, files: list[str]) -> None:
        writer = cache.index.writer
        # First a real write: it overwrites what a commit with an unknown outcome left in the log,
        # which could otherwise come back after a crash and name one of these files.
        with writer.transaction():
            writer.set_meta("orphans_at", str(self._engine.clock.now_ms()))
        for file in set(files) - writer.named_files(scope, files):
            with suppress(OSError):
                os.unlink(file, dir_fd=cache.folders.scope(scope))

    def _shorten_recovery_log(self, cache: OpenCache) -> None:
        if cache.recovery.size() > _RECOVERY_BYTES:
            writer = cache.index.writer
            n_rows = sum(writer.usage(scope).entries for scope in SCOPES)
            cache.recovery.shorten((row for scope in SCOPES for row in writer.all_rows(scope)), n_rows)

    def repair(self) -> Repair:
        """Look at the whole index, and mend what is wrong with it."""
        cache = self._engine.fresh_cache()
        opened, cache.rebuilt = cache.rebuilt, None
        if opened is not None:
            return Repair(problem="it was lost or damaged", rebuilt=opened)
        found = self._engine.repair()
        with self._engine.writing() as cache, cache.index.writer.transaction():
            for scope in SCOPES:
                cache.index.writer.recount(scope)
        return found

    def verify(self, scope: Scope | None) -> Verification:
        """Read and hash every value; damaged ones are reported, and put aside as a read would do."""
        n = size = kept = 0
        damaged: list[Damage] = []
        matching = True
        for each in SCOPES if scope is None else (scope,):
            readers = self._engine.fresh_cache().index.readers
            for row in readers.all_rows(each):
                n, size = n + 1, size + row.size
                damage = self._reading.damage(row)
                damaged.extend([] if damage is None else [damage])
            for version in readers.all_kept(each):
                kept += 1
                damage = self._versions.damage(version)
                damaged.extend([] if damage is None else [damage])
            with readers.snapshot() as index:
                matching = matching and index.usage(each) == index.summed_usage(each)
        return Verification(entries=n, bytes=size, kept=kept, damaged=tuple(damaged), usage_matches=matching)


def _remove_old_temporaries(folder: int) -> None:
    """Remove what writers that were killed left behind; by the disk's clock, as it set the files' times."""
    for file in os.listdir(folder):
        if file.startswith(names.TEMP_PREFIX):
            with suppress(OSError):
                age_s = time.time() - os.stat(file, dir_fd=folder, follow_symlinks=False).st_mtime
                if age_s > _TEMPORARY_AGE_S:
                    os.unlink(file, dir_fd=folder)


def _bound_quarantine(folder: int) -> None:
    """Remove the files that lie longest in quarantine, as many as are over its bounds."""
    found = [(os.stat(file, dir_fd=folder, follow_symlinks=False), file) for file in os.listdir(folder)]
    n = size = 0
    # Being moved there is what changed them last.
    for status, file in sorted(found, key=lambda each: each[0].st_ctime_ns, reverse=True):
        n, size = n + 1, size + status.st_size
        if n > QUARANTINE_FILES or size > QUARANTINE_BYTES:
            with suppress(OSError):
                os.unlink(file, dir_fd=folder)


def _size(folder: int, name: str) -> int:
    with suppress(OSError):
        return os.stat(name, dir_fd=folder, follow_symlinks=False).st_size
    return 0
