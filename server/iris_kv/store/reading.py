"""Reading the file store: nothing is served but bytes that have the digest of their entry."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from contextlib import suppress
from io import FileIO
from typing import TYPE_CHECKING, Final, TypeVar

from iris_kv.errors import BusyError, CorruptError, IrisError, UnavailableError
from iris_kv.model import Activity, Changes, Damage, Entry, EntryInfo, Page, Scope, Usage
from iris_kv.store.base import MAX_COMPARED, expired, not_found
from iris_kv.store.checks import check_page
from iris_kv.store.hints import Hints
from iris_kv.store.names import check_key
from iris_kv.store.queries import PAGE_ROWS
from iris_kv.store.schema import damaged_index

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from iris_kv.store.checks import Listing
    from iris_kv.store.engine import Engine
    from iris_kv.store.queries import Row

_OPEN_VALUE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NO_FILE: Final = frozenset({errno.ENOENT, errno.ELOOP, errno.ENXIO})
_ATTEMPTS: Final = 8
_HELD_BYTES: Final = 1 << 16

_T = TypeVar("_T")


class Reading:
    """The reads of one store, each on the calling thread."""

    def __init__(self, engine: Engine) -> None:
        """Read through an engine."""
        self._engine = engine

    def head(self, scope: Scope, key: str) -> EntryInfo:
        """Return what is known of a live entry."""
        check_key(key)
        return self._info(self._live_row(scope, key))

    def get(self, scope: Scope, key: str) -> Entry:
        """Return a live entry and its verified value."""
        info, value = self._find(scope, key, _read_value)
        return Entry(info=info, value=value)

    def open_value(self, scope: Scope, key: str) -> tuple[EntryInfo, FileIO | bytes]:
        """Return a live entry and its verified file, which the caller closes, or the value where it is small."""
        return self._find(scope, key, _open_or_read)

    def _find(self, scope: Scope, key: str, load: Callable[[int, Row], _T | None]) -> tuple[EntryInfo, _T]:
        check_key(key)
        last_file = None
        for _ in range(_ATTEMPTS):
            row = self._live_row(scope, key)
            if row.file == last_file:
                raise self._set_aside(row)
            found = load(self._engine.cache().folders.scope(scope), row)
            if found is not None:
                return row.info(self._engine.note_read(row)), found
            # A writer overtook us, the cache was replaced, or the file is damaged: the index tells.
            last_file = row.file
            self._engine.fresh_cache()
        raise BusyError(
            f"{key!r} in {scope} was replaced {_ATTEMPTS} times while it was read",
            "a value is served only whole",
            "try again in a moment",
        )

    def _live_row(self, scope: Scope, key: str) -> Row:
        try:
            # A replaced index may name files that are still there: an older generation would be served.
            row = self._engine.fresh_cache().index.readers.entry(scope, key)
        except UnavailableError:
            row = None
        # Asked again where the answer would be no: the cache may have been replaced, or a renewal written down.
        if row is None or self._engine.notes.is_expired(row, self._engine.clock.now_ms()):
            row = self._engine.ask(lambda index: index.entry(scope, key))
        return self.live(scope, key, row)

    def live(self, scope: Scope, key: str, row: Row | None) -> Row:
        """Return the row unless it is absent or expired.

        Raises:
            NotFoundError: It is absent.
            ExpiredError: It is expired.
        """
        if row is None:
            raise not_found(scope, key)
        expires_at = self._engine.notes.expiry(row)
        if expires_at is not None and expires_at <= self._engine.clock.now_ms():
            raise expired(scope, key, expires_at)
        return row

    def _info(self, row: Row) -> EntryInfo:
        return row.info(self._engine.notes.expiry(row))

    def _set_aside(self, row: Row) -> CorruptError:
        """Put a damaged file aside, if its row is still the one seen, and return the error.

        Raises:
            DamagedIndexError: The row is what is damaged: another digest was written down for its file.
        """
        folders = self._engine.cache().folders
        if row.file in os.listdir(folders.scope(row.scope)):
            named = Hints(folders).rows.get((row.scope, row.file), row)
            if (named.size, named.sha256) != (row.size, row.sha256):
                raise damaged_index()
        with suppress(IrisError, OSError), self._engine.writing() as cache:
            current = cache.index.writer.entry(row.scope, row.key)
            if current is not None and current.file == row.file:
                folder = cache.folders.scope(row.scope)
                os.rename(row.file, row.file, src_dir_fd=folder, dst_dir_fd=cache.folders.quarantine)
        return CorruptError(
            f"the stored bytes of {row.key!r} in {row.scope} do not match their digest",
            "a damaged value is never served; what is left of it is in .iris/kv-cache/.store/quarantine",
            "make the value again and put it under the same key, or delete the key",
        )

    def damage(self, row: Row) -> Damage | None:
        """Verify the value of an entry, expired or not; a damaged file is put aside as a read would do."""
        for _ in range(_ATTEMPTS):
            try:
                file = open_verified(self._engine.cache().folders.scope(row.scope), row)
            except OSError as error:
                return Damage(scope=row.scope, key=row.key, problem=f"its file cannot be read ({error.strerror})")
            if file is not None:
                file.close()
                return None
            scope, key = row.scope, row.key
            current = self._engine.ask(lambda index, scope=scope, key=key: index.entry(scope, key))
            if current is None:
                return None
            if current.file == row.file:
                return Damage(scope=row.scope, key=row.key, problem=self._set_aside(row).wrong)
            row = current
        return None

    def list(self, scope: Scope, asked: Listing, *, include_expired: bool) -> Page:
        """Return a page of entries in key order."""
        prefix, glob = asked.checked()
        now = self._engine.clock.now_ms()
        found: list[EntryInfo] = []
        compared, before = 0, ""
        for row in self._rows(scope, prefix, asked):
            if asked.pattern is not None:
                if compared == MAX_COMPARED:
                    return Page(entries=tuple(found), next_cursor=before)
                compared, before = compared + 1, row.key
                if not glob.matches(row.key):
                    continue
            if include_expired or not self._engine.notes.is_expired(row, now):
                if len(found) == asked.limit:
                    return Page(entries=tuple(found), next_cursor=found[-1].key)
                found.append(self._info(row))
        return Page(entries=tuple(found), next_cursor=None)

    def _rows(self, scope: Scope, prefix: str, asked: Listing) -> Iterator[Row]:
        """Walk the rows behind a cursor whose keys start so."""
        # No key has a NUL, so this is the first text behind the cursor.
        after = max(prefix, asked.cursor + "\0") if asked.cursor else prefix
        step = asked.limit + 1 if asked.pattern is None else max(asked.limit + 1, PAGE_ROWS)
        index = self._engine.fresh_cache().index.readers
        while True:
            rows = index.rows(scope, after, step)
            for row in rows:
                if not row.key.startswith(prefix):
                    return
                yield row
            if len(rows) < step:
                return
            after = rows[-1].key + "\0"

    def latest(self, scope: Scope, limit: int, prefix: str, without: str) -> tuple[EntryInfo, ...]:
        """Return the live entries written last whose keys start so and not so, newest first."""
        check_page(limit, prefix, without)
        now = self._engine.clock.now_ms()
        index = self._engine.fresh_cache().index.readers
        reach = limit
        while True:
            rows = index.newest(scope, prefix, without, reach)
            live = [row for row in rows if not self._engine.notes.is_expired(row, now)]
            if len(live) >= limit or len(rows) < reach:
                return tuple(self._info(row) for row in live[:limit])
            reach *= 4

    def usage(self, scope: Scope) -> Usage:
        """Return what a scope holds."""
        return self._engine.ask(lambda index: index.usage(scope))

    def counts(self, since: str) -> dict[str, dict[str, int]]:
        """Return the counters by name and day."""
        return self._engine.ask(lambda index: index.counts(since))

    def workspace_id(self) -> str:
        """Return the random id that the index was created with."""
        return self._engine.fresh_cache().index.readers.meta("workspace_id")

    def activity(self, scope: Scope) -> tuple[Activity | None, Activity | None]:
        """Return when the scope was last written and last read."""
        written, read = self._engine.ask(lambda index: index.activity(scope))
        noted = self._engine.notes.last(scope, self._engine.by)
        return written, max((each for each in (read, noted) if each), key=lambda each: each.at, default=None)

    def changes(self, after: str | None, limit: int) -> Changes:
        """Return the changes after a position."""
        check_page(limit)
        index = self._engine.fresh_cache().index.readers
        store, last = index.meta("workspace_id"), index.last_change()
        at = last if after is None else _position(after, store)
        if at is None or at > last:
            return Changes(events=(), next=f"{store}:{last}", reset=True)
        found = index.changes(at, limit) if after is not None else []
        # Asked last: what is not trimmed now was not trimmed when the changes were read.
        if at < index.first_change() - 1:
            return Changes(events=(), next=f"{store}:{last}", reset=True)
        position = found[-1][0] if found else at
        return Changes(events=tuple(change for _, change in found), next=f"{store}:{position}", reset=False)

    def has_changed(self, after: str) -> bool:
        """Tell whether the feed goes on behind a position, or is another one."""
        index = self._engine.fresh_cache().index.readers
        return _position(after, index.meta("workspace_id")) != index.last_change()


def _position(text: str, store: str) -> int | None:
    """Return the number in a position of a store's feed; None for a position of another feed."""
    known, _, number = text.rpartition(":")
    return int(number) if known == store and number.isascii() and number.isdecimal() and len(number) < 19 else None


def _open_value(folder: int, row: Row) -> int | None:
    """Open a value's file; None if there is none. What else goes wrong says nothing of the value, and is raised."""
    try:
        return os.open(row.file, _OPEN_VALUE, dir_fd=folder)
    except OSError as error:
        if error.errno in _NO_FILE:
            return None
        raise


def _read_value(folder: int, row: Row) -> bytes | None:
    """Return the value if the file has exactly the row's bytes; None: gone or different."""
    handle = _open_value(folder, row)
    if handle is None:
        return None
    try:
        value = _read_whole(handle, row.size) if _looks_right(handle, row) else None
    finally:
        os.close(handle)
    return value if value is not None and hashlib.sha256(value).digest() == row.sha256 else None


def _open_or_read(folder: int, row: Row) -> FileIO | bytes | None:
    return _read_value(folder, row) if row.size <= _HELD_BYTES else open_verified(folder, row)


def open_verified(folder: int, row: Row) -> FileIO | None:
    """Return the value's open file if it has exactly the row's bytes; None: gone or different."""
    handle = _open_value(folder, row)
    if handle is None:
        return None
    file = FileIO(handle, "rb")
    try:
        if _looks_right(handle, row) and hashlib.file_digest(file, "sha256").digest() == row.sha256:
            return file
    except BaseException:
        file.close()
        raise
    file.close()
    return None


def _looks_right(handle: int, row: Row) -> bool:
    found = os.fstat(handle)
    return found.st_size == row.size and stat.S_ISREG(found.st_mode)


def _read_whole(handle: int, size: int) -> bytes:
    """Read up to one byte more than the size, so that a file that grew is seen."""
    value = os.read(handle, size + 1)
    while len(value) < size and (part := os.read(handle, size + 1 - len(value))):
        value += part
    return value
