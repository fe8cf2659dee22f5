"""Writing the file store: a put is acknowledged by COMMIT, and what it replaces stays whole until then.

Before COMMIT the value's file was written, fsynced and renamed to a name that was never used, and
the folder was fsynced, all but the first under the write lock. A value's file is never overwritten.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from iris_kv.errors import CorruptError, IrisError, QuotaExceededError, UnavailableError
from iris_kv.model import SCOPES, EntryInfo, Keep, Operation, Removed, Scope
from iris_kv.store import keeping, names
from iris_kv.store.base import GRACE_MS
from iris_kv.store.checks import PutRequest, check_expected, check_if_digest, check_put, check_size
from iris_kv.store.queries import PAGE_ROWS, Order, Row, Standing
from iris_kv.store.replacing import Content, Step, replace_row, unlink
from iris_kv.store.upload import Upload

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from iris_kv.store.cache import OpenCache
    from iris_kv.store.engine import Engine
    from iris_kv.store.reading import Reading

_LARGE_BYTES: Final = 65_536
_NAMES_TRIED: Final = 100
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})

_T = TypeVar("_T")


class Writing:
    """The writes of one store, each on the calling thread."""

    def __init__(self, engine: Engine, reading: Reading) -> None:
        """Write through an engine."""
        self._engine = engine
        self._reading = reading

    def put(self, request: PutRequest, value: bytes) -> EntryInfo:
        """Write a value in one go."""
        check_put(request)
        check_size(len(value), request.limits)
        cache = self._engine.cache()
        self._refuse_early(cache, request, len(value))
        try:
            return self._upload(cache, request, value)
        except FileNotFoundError:
            # The cache, or a folder of it, was deleted under us.
            return self._upload(self._engine.fresh_cache(distrust=cache), request, value)

    def _upload(self, cache: OpenCache, request: PutRequest, value: bytes) -> EntryInfo:
        upload = Upload(cache, request.scope, request.limits)
        try:
            self.write(upload, value)
            return self._commit(request, upload)
        finally:
            upload.discard()

    def begin(self, request: PutRequest) -> Upload:
        """Start an upload of a value that comes in chunks; the caller discards it in any case."""
        check_put(request)
        return Upload(self._engine.fresh_cache(), request.scope, request.limits)

    def write(self, upload: Upload, chunk: bytes) -> None:
        """Append a chunk to an upload; on a full disk kept versions make room for it."""
        while True:
            try:
                upload.write(chunk)
            except OSError as error:
                if error.errno not in _FULL or not self._make_room_on_disk(upload.scope, len(chunk)):
                    raise
            else:
                return

    def _make_room_on_disk(self, scope: Scope, size: int) -> bool:
        """Keep the oldest versions of a scope, or else of others, no longer; tell whether there were any."""
        try:
            return self._end_oldest(scope, size)
        except IrisError:
            if not self._engine.cache().give_up_reserve():
                return False
        # Without room for a commit even so, the write's own error is the one to tell.
        ended = False
        with suppress(IrisError):
            ended = self._end_oldest(scope, size)
            self._engine.cache().write_reserve()
        return ended

    def _end_oldest(self, scope: Scope, size: int) -> bool:
        for each in sorted(SCOPES, key=lambda other: other != scope):
            with self._engine.writing() as cache, cache.index.writer.transaction():
                gone = keeping.make_room(cache, each, sum(cache.index.writer.held_bytes(each)) - size)
            unlink(cache, each, gone)
            if gone:
                return True
        return False

    def commit(self, request: PutRequest, upload: Upload) -> EntryInfo:
        """Make an upload the entry's value; it is acknowledged when this returns."""
        try:
            return self._commit(request, upload)
        except FileNotFoundError:
            raise UnavailableError(
                "the cache was deleted while the value was written",
                "nothing of it was kept",
                "put the value again",
            ) from None

    def _refuse_early(self, cache: OpenCache, request: PutRequest, size: int) -> None:
        """Spare the disk a large value that a look at the index shows to be over the quota."""
        if size < _LARGE_BYTES:
            return
        used, _ = cache.index.readers.held_bytes(request.scope)
        if used + size > request.limits.quota_bytes:
            with self._engine.writing() as current:
                self._with_room(current, request.scope, lambda: self._check_room(current, request, size))

    def _commit(self, request: PutRequest, upload: Upload) -> EntryInfo:
        sha256 = upload.finish(durable=self._engine.options.durable)
        with self._engine.writing() as cache:
            folder = cache.folders.scope(request.scope)
            content = Content(upload.size, sha256, partial(upload.rename, folder))
            row, gone = self.store(cache, request, content)
        unlink(cache, request.scope, gone)
        return row.info(row.expires_at)

    def store(self, cache: OpenCache, request: PutRequest, content: Content) -> tuple[Row, list[str]]:
        """Make content the entry; returns its row, and the files that no row names any more.

        The write lock must be held, and the files are unlinked once it is not.
        """
        row, gone = self._with_room(cache, request.scope, lambda: self._store(cache, request, content))
        cache.recovery.append_put(row)
        return row, gone

    def _with_room(self, cache: OpenCache, scope: Scope, work: Callable[[], _T]) -> _T:
        """Do some work; where the quota refuses it, do it again without the scope's expired entries."""
        try:
            return work()
        except QuotaExceededError:
            if not self.remove_expired(cache, (scope,)).entries:
                raise
        return work()

    def _store(self, cache: OpenCache, request: PutRequest, content: Content) -> tuple[Row, list[str]]:
        scope, writer = request.scope, cache.index.writer
        with writer.transaction():
            standing = self._check_room(cache, request, content.size)
            old, now = standing.row, self._engine.clock.now_ms()
            live = None if old is None or self._engine.notes.is_expired(old, now) else old
            seq, file = self._free_name(cache, request, "create" if live is None else "update", now)
            # Undone only here: when COMMIT itself fails, the row may be in the log, and the file must stay.
            try:
                content.place(file)
                if self._engine.options.durable:
                    os.fsync(cache.folders.scope(scope))
                return replace_row(cache, request, content, Step(standing, live, seq, file, now, self._engine.by))
            except BaseException:
                unlink(cache, scope, [file])
                raise

    def _free_name(self, cache: OpenCache, request: PutRequest, op: Operation, now: int) -> tuple[int, str]:
        """Append to the change feed and return the change's number with the file name that goes with it.

        A commit that failed with its outcome unknown leaves a file whose number is not used up; the
        next number is taken then.
        """
        folder = cache.folders.scope(request.scope)
        file = ""
        for _ in range(_NAMES_TRIED):
            seq = cache.index.writer.add_change(request.scope, request.key, op, now, self._engine.origin)
            file = names.value_file(request.scope, request.key, seq, request.content_type)
            try:
                os.stat(file, dir_fd=folder, follow_symlinks=False)
            except FileNotFoundError:
                return seq, file
        raise CorruptError(
            f"files with the next {_NAMES_TRIED} names of {request.key!r} stand there already",
            "names are never used twice, so another program put them there",
            f"move {file!r} and its like out of .iris/kv-cache/{request.scope} and write again",
        )

    def _check_room(self, cache: OpenCache, request: PutRequest, size: int) -> Standing:
        """Return what is to be replaced, after the checks that need the write lock.

        Raises:
            ConflictError: `if_digest` does not match.
            QuotaExceededError: There is no room, even without the scope's kept versions.
        """
        scope = request.scope
        standing = cache.index.writer.standing(scope, request.key)
        old = standing.row
        if request.if_digest is not None:
            is_live = old is not None and not self._engine.notes.is_expired(old, self._engine.clock.now_ms())
            check_expected(old.info(None) if old and is_live else None, request.if_digest, scope, request.key)
        used = standing.bytes - (0 if old is None else old.size)
        if used + size > request.limits.quota_bytes:
            raise self._quota_error(cache, request, size, used)
        return standing

    def _quota_error(self, cache: OpenCache, request: PutRequest, size: int, used: int) -> QuotaExceededError:
        def named(order: Order) -> str:
            rows = cache.index.writer.ranked(request.scope, order, 3)
            return ", ".join(f"{row.key!r} ({row.size} bytes)" for row in rows) or "none"

        return QuotaExceededError(
            f"{request.key!r} has {size} bytes, and {request.scope} holds {used} of {request.limits.quota_bytes}",
            f"largest: {named('size DESC')}; oldest: {named('updated_at')}",
            "delete what is not needed any more, or raise the quota of the scope in the settings",
        )

    def delete(self, scope: Scope, key: str, if_digest: str | None, keep: Keep) -> EntryInfo:
        """Delete a live entry and return what it was."""
        names.check_key(key)
        check_if_digest(if_digest)
        with self._engine.writing() as cache:
            writer = cache.index.writer
            row = self._reading.live(scope, key, writer.entry(scope, key))
            info = row.info(self._engine.notes.expiry(row))
            check_expected(info, if_digest, scope, key)
            now = self._engine.clock.now_ms()
            with writer.transaction():
                seq = writer.add_change(scope, key, "delete", now, self._engine.origin)
                gone = keeping.keep_deleted(cache, row, keep, seq, now)
                writer.delete_row(row)
                writer.note_write(scope, -1, -row.size, now, self._engine.by)
            cache.recovery.append_removed("delete", {seq: row})
        unlink(cache, scope, gone)
        return info

    def clear(self, scope: Scope, keep: Keep) -> Removed:
        """Delete every entry of a scope."""
        with self._engine.writing() as cache:
            # What was renewed is not expired, and so kept.
            self._engine.tell_reads(cache)
            writer = cache.index.writer
            now = self._engine.clock.now_ms()
            files = os.listdir(cache.folders.scope(scope))
            with writer.transaction():
                seq = writer.add_change(scope, "", "clear", now, self._engine.origin)
                kept = keeping.keep_cleared(cache, scope, keep, seq, now, files)
                removed = writer.delete_scope(scope)
                writer.note_write(scope, -removed.entries, -removed.bytes, now, self._engine.by)
            cache.recovery.append_clear(seq, scope)
        unlink(cache, scope, (file for file in files if 0 < (names.seq_of(file) or 0) < seq and file not in kept))
        return removed

    def remove_expired(self, cache: OpenCache, scopes: tuple[Scope, ...]) -> Removed:
        """Remove all expired entries of some scopes; the write lock must be held."""
        self._engine.tell_reads(cache)
        n = size = 0
        while True:
            rows = self.remove_some_expired(cache, scopes)
            n, size = n + len(rows), size + sum(row.size for row in rows)
            if len(rows) < PAGE_ROWS:
                return Removed(entries=n, bytes=size)

    def remove_some_expired(self, cache: OpenCache, scopes: tuple[Scope, ...]) -> list[Row]:
        """Remove up to 500 expired entries of some scopes and return them; the write lock must be held."""
        writer = cache.index.writer
        now = self._engine.clock.now_ms()
        rows = [
            row for row in writer.expired_rows(scopes, now, now - GRACE_MS) if self._engine.notes.is_expired(row, now)
        ]
        if rows:
            removed: dict[int, Row] = {}
            gone: list[tuple[Scope, list[str]]] = []
            with writer.transaction():
                for row in rows:
                    removed[writer.add_change(row.scope, row.key, "expire", now, self._engine.origin)] = row
                    gone.append((row.scope, [row.file, *keeping.end_versions(cache, row)]))
                    writer.delete_row(row)
                    writer.add_usage(row.scope, -1, -row.size)
            cache.recovery.append_removed("expire", removed)
            for scope, files in gone:
                unlink(cache, scope, files)
        return rows

    def count(self, day: str, deltas: Mapping[str, int]) -> None:
        """Add to the counters of a day."""
        with self._engine.writing() as cache, cache.index.writer.transaction():
            cache.index.writer.add_counts(day, deltas)
