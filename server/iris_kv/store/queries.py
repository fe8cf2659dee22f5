"""What the index can be asked: every SELECT of the file store, and the rows that come of them."""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, cast

from iris_kv.model import Activity, Author, Change, EntryInfo, Face, Provenance, Scope, Usage
from iris_kv.store.names import is_file_of
from iris_kv.store.schema import damaged_index

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator, Sequence

PAGE_ROWS: Final = 500
"""How many rows one step of a long walk takes."""

ROW: Final = (
    "scope, key, file, content_type, size, sha256, created_at, updated_at, expires_at, accessed_at,"
    " ttl, renew, version, metadata, author, face"
)
_ENTRY: Final = f"SELECT {ROW} FROM entry WHERE scope=? AND key=?"
_ROWS: Final = f"SELECT {ROW} FROM entry WHERE scope=? AND key>=? ORDER BY key LIMIT ?"
_NEWEST: Final = (
    f"SELECT {ROW} FROM entry WHERE scope=? AND substr(key,1,length(?))=? AND (?='' OR substr(key,1,length(?))<>?)"
    " ORDER BY updated_at DESC, key LIMIT ?"
)

Order = Literal["size DESC", "updated_at"]


class Row(NamedTuple):
    """One entry as the index holds it; times and TTL in milliseconds."""

    scope: Scope
    key: str
    file: str
    content_type: str
    size: int
    sha256: bytes
    created_at: int
    updated_at: int
    expires_at: int | None
    accessed_at: int | None
    ttl: int | None
    renew: int
    version: int
    metadata: str
    author: Author
    face: Face

    def info(self, expires_at: int | None) -> EntryInfo:
        """Return the row as the model, with the expiry that reads have brought about."""
        return EntryInfo(
            scope=self.scope,
            key=self.key,
            digest="sha256:" + self.sha256.hex(),
            size=self.size,
            content_type=self.content_type,
            created_at=self.created_at,
            updated_at=self.updated_at,
            expires_at=expires_at,
            ttl_ms=self.ttl,
            version=self.version,
            metadata=json.loads(self.metadata) if self.metadata != "{}" else {},
            provenance=_provenance(self.author, self.face),
        )


class Queries:
    """What can be asked of the index; subclasses say over which connection."""

    def _fetch(self, sql: str, values: Sequence[str | int] = ()) -> list[Any]:
        raise NotImplementedError

    def entry(self, scope: Scope, key: str) -> Row | None:
        """Return the row of a key."""
        found = self._fetch(_ENTRY, (scope, key))
        return _row(found[0]) if found else None

    def rows(self, scope: Scope, after: str, limit: int) -> list[Row]:
        """Return rows in key order whose key is at or behind `after`."""
        return [_row(row) for row in self._fetch(_ROWS, (scope, after, limit))]

    def all_rows(self, scope: Scope) -> Iterator[Row]:
        """Walk a scope's rows in key order, a page at a time."""
        after = ""
        while True:
            rows = self.rows(scope, after, PAGE_ROWS)
            yield from rows
            if len(rows) < PAGE_ROWS:
                return
            after = rows[-1].key + "\0"

    def newest(self, scope: Scope, prefix: str, without: str, limit: int) -> list[Row]:
        """Return the rows written last whose keys start with `prefix` and not with `without`, where it is not empty."""
        found = self._fetch(_NEWEST, (scope, prefix, prefix, without, without, without, limit))
        return [_row(row) for row in found]

    def ranked(self, scope: Scope, order: Order, limit: int) -> list[Row]:
        """Return the first rows of a scope in an order."""
        sql = f"SELECT {ROW} FROM entry WHERE scope=? ORDER BY {order}, key LIMIT ?"
        return [_row(row) for row in self._fetch(sql, (scope, limit))]

    def expired_rows(self, scopes: Sequence[Scope], due: int, renewable_due: int) -> list[Row]:
        """Return up to 500 rows that expired at or before `due`, or `renewable_due` if reads renew them."""
        marks = ",".join("?" * len(scopes))
        sql = (
            f"SELECT {ROW} FROM entry WHERE expires_at<=? AND (renew=0 OR expires_at<=?)"
            f" AND scope IN ({marks}) ORDER BY expires_at LIMIT {PAGE_ROWS}"
        )
        return [_row(row) for row in self._fetch(sql, (due, renewable_due, *scopes))]

    def named_files(self, scope: Scope, files: Sequence[str]) -> set[str]:
        """Return which of some value files (at most 500) a row names."""
        marks = ",".join("?" * len(files))
        sql = " UNION ".join(f"SELECT file FROM {t} WHERE scope=? AND file IN ({marks})" for t in ("entry", "version"))
        return {file for (file,) in self._fetch(sql, (scope, *files) * 2)}

    def usage(self, scope: Scope) -> Usage:
        """Return what a scope holds."""
        ((n, size),) = self._fetch("SELECT n, bytes FROM usage WHERE scope=?", (scope,))
        return Usage(entries=n, bytes=size)

    def summed_usage(self, scope: Scope) -> Usage:
        """Return what a scope holds by adding its entries up."""
        ((n, size),) = self._fetch("SELECT count(*), coalesce(sum(size), 0) FROM entry WHERE scope=?", (scope,))
        return Usage(entries=n, bytes=size)

    def activity(self, scope: Scope) -> tuple[Activity | None, Activity | None]:
        """Return when a scope was last written and last read, as far as the index knows."""
        sql = "SELECT written_at, written_by, read_at, read_by FROM usage WHERE scope=?"
        (found,) = self._fetch(sql, (scope,))
        written, read = (None if at is None else Activity(at=at, by=by) for at, by in (found[:2], found[2:]))
        return written, read

    def changes(self, after: int, limit: int) -> list[tuple[int, Change]]:
        """Return changes behind a number, each with its own."""
        sql = "SELECT seq, scope, key, op, origin FROM change WHERE seq>? ORDER BY seq LIMIT ?"
        return [
            (seq, Change(scope=scope, key=key, op=op, origin=origin))
            for seq, scope, key, op, origin in self._fetch(sql, (after, limit))
        ]

    def last_change(self) -> int:
        """Return the number of the last change."""
        return cast("int", self._fetch("SELECT max(seq) FROM change")[0][0])

    def first_change(self) -> int:
        """Return the number of the oldest change that is kept."""
        return cast("int", self._fetch("SELECT min(seq) FROM change")[0][0])

    def counts(self, since: str) -> dict[str, dict[str, int]]:
        """Return the counters by name and day."""
        found: dict[str, dict[str, int]] = {}
        for name, day, n in self._fetch("SELECT name, day, n FROM counter WHERE day>=?", (since,)):
            found.setdefault(name, {})[day] = n
        return found

    def integrity(self) -> str:
        """Return the first thing that SQLite finds wrong with the index; `ok` if there is none."""
        return self._fetch("PRAGMA integrity_check(1)")[0][0]

    def meta(self, key: str) -> str:
        """Return a noted fact; ``""`` if it was never noted."""
        found = self._fetch("SELECT v FROM meta WHERE k=?", (key,))
        return found[0][0] if found else ""


class Snapshot(Queries):
    """Queries over one connection, whose caller translates SQLite's errors."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Ask over a connection that only this thread uses now."""
        self._connection = connection

    def _fetch(self, sql: str, values: Sequence[str | int] = ()) -> list[Any]:
        return self._connection.execute(sql, values).fetchall()


def _row(values: Sequence[Any]) -> Row:
    """Return a row, unless its file's name is none of its key, or leads out of its folder.

    A bit that flipped in a key would pass every other check, and a clone may bring an index along.
    """
    row = Row._make(values)
    if "/" in row.file or "\0" in row.file or not is_file_of(row.file, row.scope, row.key):
        raise damaged_index()
    return row


@cache
def _provenance(author: Author, face: Face) -> Provenance:
    return Provenance(author=author, face=face)
