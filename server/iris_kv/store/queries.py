"""What the index can be asked: every SELECT of the file store, and the rows that come of them."""

from __future__ import annotations

import json
import zlib
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, cast

from iris_kv.model import Activity, Author, Change, EntryInfo, Face, KeptVersion, Provenance, Scope, Usage
from iris_kv.store.base import MAX_DELETED
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
STORED: Final = ROW + ", crc32"
KEPT_ROW: Final = STORED.replace(" accessed_at,", "")
KEEP_ROW: Final = f"INSERT INTO version({KEPT_ROW}, seq, replaced_at, op, kept_until) VALUES({','.join('?' * 20)})"
_KEPT: Final = (
    f"SELECT {STORED.replace('accessed_at', 'NULL')}, seq, replaced_at, op, kept_until FROM version WHERE scope=?"
)
_ENTRY: Final = f"SELECT {STORED} FROM entry WHERE scope=? AND key=?"
_STANDING: Final = (
    "SELECT bytes, kept_bytes, (SELECT max(version) FROM version WHERE version.scope=?1 AND version.key=?2), entry.*"
    f" FROM usage LEFT JOIN (SELECT {STORED} FROM entry WHERE scope=?1 AND key=?2) AS entry WHERE usage.scope=?1"
)
_ROWS: Final = f"SELECT {STORED} FROM entry WHERE scope=? AND key>=? ORDER BY key LIMIT ?"
_NEWEST: Final = (
    f"SELECT {STORED} FROM entry WHERE scope=? AND substr(key,1,length(?))=? AND (?='' OR substr(key,1,length(?))<>?)"
    " ORDER BY updated_at DESC, key LIMIT ?"
)

Order = Literal["size DESC", "updated_at"]
KeptFor = Literal["update", "delete", "clear"]


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


class Kept(NamedTuple):
    """One version that is kept though it is no entry any more."""

    row: Row
    seq: int
    """The number of the change that ended it."""
    replaced_at: int
    op: KeptFor
    until: int | None
    """When it goes for good; None: with its entry."""

    @property
    def version(self) -> KeptVersion:
        """Return it as the model."""
        info = dict(self.row.info(self.row.expires_at))
        return KeptVersion(**info, replaced_at=self.replaced_at, replaced_by=self.op, kept_until=self.until)


class Standing(NamedTuple):
    """What a write finds: the row of its key, and what the scope holds."""

    row: Row | None
    bytes: int
    """What the scope's entries have."""
    kept_bytes: int
    """What is kept beside them."""
    last_kept: int
    """The highest version of the key that is kept; 0: none is."""


class Queries:
    """What can be asked of the index; subclasses say over which connection."""

    def _fetch(self, sql: str, values: Sequence[str | int] = ()) -> list[Any]:
        raise NotImplementedError

    def entry(self, scope: Scope, key: str) -> Row | None:
        """Return the row of a key."""
        found = self._fetch(_ENTRY, (scope, key))
        return _row(found[0]) if found else None

    def standing(self, scope: Scope, key: str) -> Standing:
        """Return all that a write has to know of a key and its scope."""
        (found,) = self._fetch(_STANDING, (scope, key))
        used, kept, version, *row = found
        return Standing(None if row[0] is None else _row(row), used, kept, version or 0)

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
        sql = f"SELECT {STORED} FROM entry WHERE scope=? ORDER BY {order}, key LIMIT ?"
        return [_row(row) for row in self._fetch(sql, (scope, limit))]

    def expired_rows(self, scopes: Sequence[Scope], due: int, renewable_due: int) -> list[Row]:
        """Return up to 500 rows that expired at or before `due`, or `renewable_due` if reads renew them."""
        marks = ",".join("?" * len(scopes))
        sql = (
            f"SELECT {STORED} FROM entry WHERE expires_at<=? AND (renew=0 OR expires_at<=?)"
            f" AND scope IN ({marks}) ORDER BY expires_at LIMIT {PAGE_ROWS}"
        )
        return [_row(row) for row in self._fetch(sql, (due, renewable_due, *scopes))]

    def named_files(self, scope: Scope, files: Sequence[str]) -> set[str]:
        """Return which of some value files (at most 500) a row names."""
        marks = ",".join("?" * len(files))
        sql = " UNION ".join(f"SELECT file FROM {t} WHERE scope=? AND file IN ({marks})" for t in ("entry", "version"))
        return {file for (file,) in self._fetch(sql, (scope, *files) * 2)}

    def kept(self, scope: Scope, key: str) -> list[Kept]:
        """Return what is kept of a key, the newest first."""
        return [_kept(row) for row in self._fetch(f"{_KEPT} AND key=? ORDER BY seq DESC", (scope, key))]

    def replaced(self, scope: Scope, key: str, skip: int) -> list[Kept]:
        """Return the replaced versions of a key but for the newest `skip`, the newest first."""
        found = self._fetch(
            f"{_KEPT} AND key=? AND op='update' ORDER BY seq DESC LIMIT -1 OFFSET ?", (scope, key, skip)
        )
        return [_kept(row) for row in found]

    def oldest_kept(self, scope: Scope) -> list[Kept]:
        """Return the 500 versions of a scope that were replaced or deleted longest ago, the oldest first."""
        return [_kept(row) for row in self._fetch(f"{_KEPT} ORDER BY seq, key LIMIT {PAGE_ROWS}", (scope,))]

    def due_kept(self, scope: Scope, now: int) -> list[Kept]:
        """Return up to 500 versions of a scope that were kept long enough."""
        found = self._fetch(f"{_KEPT} AND kept_until<=? ORDER BY kept_until LIMIT {PAGE_ROWS}", (scope, now))
        return [_kept(row) for row in found]

    def surplus_deleted(self, scope: Scope) -> list[Kept]:
        """Return the deleted versions of a scope over the number that is kept of one key."""
        ranked = "SELECT *, row_number() OVER (PARTITION BY key ORDER BY seq DESC) AS n FROM version"
        sql = _KEPT.replace("FROM version", f"FROM ({ranked} WHERE scope=? AND op<>'update')")
        return [_kept(row) for row in self._fetch(f"{sql} AND n>{MAX_DELETED}", (scope, scope))]

    def deleted(self, scope: Scope, after: str, limit: int) -> list[Kept]:
        """Return the newest deleted version of each key at or behind `after`, in key order."""
        newest = "seq=(SELECT max(seq) FROM version AS other WHERE other.scope=version.scope AND other.key=version.key"
        sql = f"{_KEPT} AND key>=? AND op<>'update' AND {newest} AND op<>'update') ORDER BY key LIMIT ?"
        return [_kept(row) for row in self._fetch(sql, (scope, after, limit))]

    def all_kept(self, scope: Scope) -> Iterator[Kept]:
        """Walk what is kept in a scope in the order of keys, a page at a time."""
        key, seq = "", 0
        while True:
            sql = f"{_KEPT} AND (key, seq)>(?, ?) ORDER BY key, seq LIMIT {PAGE_ROWS}"
            found = [_kept(row) for row in self._fetch(sql, (scope, key, seq))]
            yield from found
            if len(found) < PAGE_ROWS:
                return
            key, seq = found[-1].row.key, found[-1].seq

    def kept_files(self, scope: Scope) -> set[str]:
        """Return the files of everything that is kept in a scope."""
        return {file for (file,) in self._fetch("SELECT file FROM version WHERE scope=?", (scope,))}

    def usage(self, scope: Scope) -> Usage:
        """Return what a scope holds."""
        (found,) = self._fetch("SELECT n, bytes, kept_n, kept_bytes FROM usage WHERE scope=?", (scope,))
        return _usage(found)

    def held_bytes(self, scope: Scope) -> tuple[int, int]:
        """Return how many bytes a scope's entries have, and what is kept beside them."""
        (found,) = self._fetch("SELECT bytes, kept_bytes FROM usage WHERE scope=?", (scope,))
        return found

    def summed_usage(self, scope: Scope) -> Usage:
        """Return what a scope holds by adding everything up."""
        both = (f"SELECT count(*), coalesce(sum(size), 0) FROM {table} WHERE scope=?" for table in ("entry", "version"))
        live, kept = (self._fetch(sql, (scope,))[0] for sql in both)
        return _usage((*live, *kept))

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

    def last_change_of(self, scope: Scope, key: str) -> int:
        """Return the number of the last change of a key, or of its whole scope, that is kept; 0: none is."""
        sql = "SELECT coalesce(max(seq), 0) FROM change WHERE scope=? AND (key=? OR (op='clear' AND origin<>''))"
        return cast("int", self._fetch(sql, (scope, key))[0][0])

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

    def check_integrity(self) -> None:
        """Look at all pages of the index.

        Raises:
            DamagedIndexError: Something is wrong with them.
        """
        if self.integrity() != "ok":
            raise damaged_index()

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


def stored(row: Row) -> tuple[object, ...]:
    """Return the values of the columns `STORED`: the row, and the checksum of what no read changes in it."""
    return (*row, _checksum(row))


def kept_values(row: Row, seq: int, replaced_at: int, op: KeptFor, until: int | None) -> tuple[object, ...]:
    """Return the values of `KEEP_ROW`."""
    values, at_access = stored(row), Row._fields.index("accessed_at")
    return (*values[:at_access], *values[at_access + 1 :], seq, replaced_at, op, until)


def _checksum(row: Row) -> int:
    lasting = (*row[:5], repr(row.sha256), row.created_at, row.updated_at, *row[10:])
    return zlib.crc32("\0".join(map(str, lasting)).encode())


def _row(values: Sequence[Any]) -> Row:
    """Return a row that is what was stored, and whose file lies in its folder: a clone may bring an index along.

    SQLite has no checksums: without this a flipped bit would serve another's value, or other metadata.
    """
    row, checksum = Row._make(values[:16]), values[16]
    is_early = row.ttl is not None and (row.expires_at is None or row.expires_at < row.updated_at + row.ttl)
    if checksum != _checksum(row) or is_early or "/" in row.file or "\0" in row.file:
        raise damaged_index()
    return row


def _kept(values: Sequence[Any]) -> Kept:
    return Kept(_row(values), *values[17:])


def _usage(values: Sequence[int]) -> Usage:
    n, size, kept, kept_size = values
    return Usage(entries=n, bytes=size, kept=kept, kept_bytes=kept_size)


@cache
def _provenance(author: Author, face: Face) -> Provenance:
    return Provenance(author=author, face=face)
