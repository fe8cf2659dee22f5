"""The index: all SQL of the file store, over one writer connection and a pool of readers.

SQLite with WAL. The caller holds the write lock around everything that writes, checkpoints or
closes: SQLite before 3.51.3 has a WAL-reset bug that two processes doing so at once can trigger.
"""

from __future__ import annotations

import os
import sqlite3
from collections import deque
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, cast

from iris_kv.errors import UncertainError
from iris_kv.model import SCOPES, Operation, Removed, Scope
from iris_kv.store.base import MAX_CHANGES, MAX_COUNTERS
from iris_kv.store.queries import (
    KEEP_ROW,
    KEPT_ROW,
    STORED,
    Kept,
    KeptFor,
    Queries,
    Row,
    Snapshot,
    kept_values,
    stored,
)
from iris_kv.store.schema import INDEX, check_version, connect, explained

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
    from contextlib import AbstractContextManager

    Guard = Callable[[], AbstractContextManager[None]]

_STORE_ROW: Final = f"INSERT OR REPLACE INTO entry({STORED}) VALUES({','.join('?' * 17)})"
_KEEP_SCOPE: Final = (
    f"INSERT INTO version({KEPT_ROW}, seq, replaced_at, op, kept_until)"
    f" SELECT {KEPT_ROW}, :seq, :at, :op, :until FROM entry WHERE scope=:scope"
)


class Readers(Queries):
    """Queries from any thread, each on a connection that is lent from a pool; needs no lock."""

    def __init__(self, folder: int, *, durable: bool, guard: Guard) -> None:
        """Connect when first asked; as many connections are kept as threads asked at once."""
        self._guard = guard
        self._folder = folder
        self._durable = durable
        self._idle: deque[sqlite3.Connection] = deque()

    def _borrowed(self) -> sqlite3.Connection:
        try:
            return self._idle.pop()
        except IndexError:
            return connect(self._folder, durable=self._durable)

    def _fetch(self, sql: str, values: Sequence[str | int] = ()) -> list[Any]:
        with self._guard():
            connection = self._borrowed()
            try:
                return connection.execute(sql, values).fetchall()
            except sqlite3.Error as error:
                raise explained(error) from error
            finally:
                self._idle.append(connection)

    @contextmanager
    def snapshot(self) -> Generator[Queries]:
        """Answer several queries from one moment of the index."""
        with self._guard():
            connection = self._borrowed()
            try:
                connection.execute("BEGIN")
                yield Snapshot(connection)
            except sqlite3.Error as error:
                raise explained(error) from error
            finally:
                with suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                self._idle.append(connection)

    def close(self) -> None:
        """Close every connection; none may be lent."""
        while self._idle:
            self._idle.pop().close()


class Ended(NamedTuple):
    """How what is kept came to its end."""

    seq: int
    """The number of the change."""
    at: int
    op: KeptFor
    until: int | None


class Writer(Snapshot):
    """The one connection that writes; the write lock must be held for everything it does.

    SQLite's errors pass: whoever holds the lock translates them.
    """

    @contextmanager
    def transaction(self) -> Generator[None]:
        """Run one write transaction; an error in the body rolls it back.

        Raises:
            UncertainError: COMMIT itself failed, so the outcome is unknown.
        """
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            # A newer iris-kv may have changed the tables since this connection was made.
            check_version(self._connection)
            yield
        except BaseException:
            self._roll_back()
            raise
        try:
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back()
            raise UncertainError(
                f"the commit failed ({error}), so it is not known whether the write happened",
                "nothing that was acknowledged before is lost",
                "do the same write again: that is safe",
            ) from error

    def _roll_back(self) -> None:
        with suppress(sqlite3.Error):
            self._connection.execute("ROLLBACK")

    def store_row(self, row: Row) -> None:
        """Insert or replace a row; inside a transaction."""
        self._connection.execute(_STORE_ROW, stored(row))

    def delete_row(self, row: Row) -> None:
        """Delete a row; inside a transaction."""
        self._connection.execute("DELETE FROM entry WHERE scope=? AND key=?", (row.scope, row.key))

    def delete_scope(self, scope: Scope) -> Removed:
        """Delete a scope's rows and return what they were; inside a transaction."""
        used = self.usage(scope)
        self._connection.execute("DELETE FROM entry WHERE scope=?", (scope,))
        return Removed(entries=used.entries, bytes=used.bytes)

    def keep_row(self, row: Row, ended: Ended) -> None:
        """Keep an entry, which is then replaced or deleted; inside a transaction."""
        self._connection.execute(KEEP_ROW, kept_values(row, *ended))

    def keep_scope(self, scope: Scope, ended: Ended) -> None:
        """Keep a scope's entries that are not expired, and their versions; inside a transaction."""
        live = "(expires_at IS NULL OR expires_at>:at)"
        values = {**ended._asdict(), "scope": scope}
        self._connection.execute(
            "UPDATE version SET kept_until=:until WHERE scope=:scope AND op='update' AND kept_until IS NULL"
            f" AND key IN (SELECT key FROM entry WHERE scope=:scope AND {live})",
            values,
        )
        self._connection.execute(f"{_KEEP_SCOPE} AND {live}", values)

    def keep_replaced(self, scope: Scope, key: str, until: int | None) -> None:
        """Have the replaced versions of a key go at a time, or (None) with its entry again; inside a transaction."""
        going = "NULL" if until is not None else "NOT NULL"
        sql = f"UPDATE version SET kept_until=? WHERE scope=? AND key=? AND op='update' AND kept_until IS {going}"
        self._connection.execute(sql, (until, scope, key))

    def drop_kept(self, kept: Iterable[Kept]) -> None:
        """Keep some versions no longer; inside a transaction."""
        self._connection.executemany(
            "DELETE FROM version WHERE scope=? AND key=? AND seq=?",
            [(each.row.scope, each.row.key, each.seq) for each in kept],
        )

    def drop_replaced(self, scope: Scope) -> None:
        """Keep those replaced versions of a scope no longer that are to go with their entries; in a transaction."""
        self._connection.execute("DELETE FROM version WHERE scope=? AND op='update' AND kept_until IS NULL", (scope,))

    def drop_all_kept(self, scope: Scope) -> None:
        """Keep nothing of a scope any longer; inside a transaction."""
        self._connection.execute("DELETE FROM version WHERE scope=?", (scope,))

    def add_usage(self, scope: Scope, n: int, size: int) -> None:
        """Add to a scope's usage; inside a transaction."""
        self._connection.execute("UPDATE usage SET n=n+?, bytes=bytes+? WHERE scope=?", (n, size, scope))

    def recount(self, scope: Scope) -> None:
        """Set a scope's usage to the sums of its entries and of what is kept; inside a transaction."""
        sums = self.summed_usage(scope)
        self._connection.execute(
            "UPDATE usage SET n=?, bytes=?, kept_n=?, kept_bytes=? WHERE scope=?",
            (sums.entries, sums.bytes, sums.kept, sums.kept_bytes, scope),
        )

    def note_write(self, scope: Scope, n: int, size: int, at_ms: int, by: str) -> None:
        """Add to a scope's usage, and write down who wrote to it last; inside a transaction."""
        sql = "UPDATE usage SET n=n+?, bytes=bytes+?, written_at=?, written_by=? WHERE scope=?"
        self._connection.execute(sql, (n, size, at_ms, by, scope))

    def note_reads(self, reads: Mapping[tuple[Scope, str], int], by: str) -> None:
        """Write down when entries were last read, and renew those that renew; inside a transaction."""
        self._connection.executemany(
            "UPDATE entry SET accessed_at=max(coalesce(accessed_at, 0), :at),"
            " expires_at=CASE renew WHEN 1 THEN max(expires_at, :at+ttl) ELSE expires_at END"
            " WHERE scope=:scope AND key=:key AND updated_at<=:at",
            [{"scope": scope, "key": key, "at": at} for (scope, key), at in reads.items()],
        )
        self._connection.executemany(
            "UPDATE usage SET read_at=:at, read_by=:by WHERE scope=:scope AND coalesce(read_at, 0)<=:at",
            [{"scope": scope, "at": at, "by": by} for (scope, _), at in reads.items()],
        )

    def add_change(self, scope: Scope, key: str, op: Operation, at_ms: int, origin: str) -> int:
        """Append to the change feed and return the change's number; inside a transaction."""
        sql = "INSERT INTO change(scope, key, op, at, origin) VALUES(?,?,?,?,?)"
        return cast("int", self._connection.execute(sql, (scope, key, op, at_ms, origin)).lastrowid)

    def skip_changes(self, n: int, at_ms: int, origin: str) -> None:
        """Use up the next numbers of the change feed, the last of them for a change of all; inside a transaction."""
        sql = "INSERT INTO change SELECT max(seq)+?, ?, '', 'clear', ?, ? FROM change"
        self._connection.execute(sql, (max(n, 1), SCOPES[0], at_ms, origin))

    def trim_changes(self) -> None:
        """Forget all but the newest changes; inside a transaction."""
        self._connection.execute("DELETE FROM change WHERE seq<=?", (self.last_change() - MAX_CHANGES,))

    def add_counts(self, day: str, deltas: Mapping[str, int]) -> None:
        """Add to the counters of a day; inside a transaction."""
        self._connection.executemany(
            "INSERT INTO counter(name, day, n) VALUES(?,?,?) ON CONFLICT(name, day) DO UPDATE SET n=n+excluded.n",
            [(name, day, n) for name, n in deltas.items()],
        )

    def trim_counts(self, since: str) -> None:
        """Forget the counters of days before `since`, and the lowest of the oldest over the bound; in a transaction."""
        self._connection.execute("DELETE FROM counter WHERE day<?", (since,))
        self._connection.execute(
            "DELETE FROM counter WHERE (name, day) IN"
            " (SELECT name, day FROM counter ORDER BY day DESC, n DESC, name LIMIT -1 OFFSET ?)",
            (MAX_COUNTERS,),
        )

    def set_meta(self, key: str, value: str) -> None:
        """Note a fact; inside a transaction."""
        self._connection.execute("INSERT OR REPLACE INTO meta(k, v) VALUES(?,?)", (key, value))

    def journal_mode(self) -> str:
        """Return SQLite's name of how the index is written, such as `wal`."""
        return self._connection.execute("PRAGMA journal_mode").fetchone()[0]

    def set_journal_mode(self, mode: Literal["wal", "truncate"]) -> None:
        """Set how the index is written; `wal` is for all processes and for good, `truncate` for this connection."""
        self._connection.execute(f"PRAGMA journal_mode={mode}").fetchall()

    def checkpoint(self) -> None:
        """Move the write-ahead log into the index."""
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def close(self) -> None:
        """Close the connection; the last one of all processes checkpoints."""
        self._connection.close()


class Index:
    """The index of one store: its readers, its writer, and which file it is."""

    def __init__(self, folder: int, *, durable: bool, guard: Guard = nullcontext) -> None:
        """Connect to the index in the `.store` folder, which must exist.

        Args:
            folder: The handle of `.store`.
            durable: Whether a commit survives a power cut.
            guard: What readers hold while they ask; WAL needs nothing.
        """
        found = os.stat(INDEX, dir_fd=folder, follow_symlinks=False)
        self.identity: Final = (found.st_dev, found.st_ino)
        self.writer: Final = Writer(connect(folder, durable=durable))
        self.readers: Final = Readers(folder, durable=durable, guard=guard)

    def close(self) -> None:
        """Close every connection; nobody may be using them."""
        self.readers.close()
        self.writer.close()
