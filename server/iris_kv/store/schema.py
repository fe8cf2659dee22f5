"""The index's schema, how it is created and connected to, and SQLite's errors in our words.

A new index is built under another name and renamed into place, so that no process ever sees half
of one. Whoever opens it first gives it its journal mode.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import sqlite3
import sys
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Final, cast
from urllib.parse import quote

from iris_kv.errors import BusyError, CorruptError, IrisError, UnavailableError, UncertainError
from iris_kv.model import SCOPES
from iris_kv.store import names
from iris_kv.store.folders import check_regular, create_file

if TYPE_CHECKING:
    from collections.abc import Callable

INDEX: Final = "index.db"
SIDE_FILES: Final = (INDEX + "-wal", INDEX + "-shm")

_DAMAGE: Final = frozenset(
    {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_FORMAT}
)
_MISSING: Final = re.compile(
    r"no such (table|column|collation)|table \w+ has|Could not decode|malformed|unsupported file format"
)
"""What SQLite and Python say of tables and texts that are not what they were, without a code of its own."""
_APPLICATION_ID: Final = 0x49524B56
_BUSY_S: Final = 10.0
_MIGRATIONS: Final = (
    """
    CREATE TABLE entry(
        scope TEXT NOT NULL, key TEXT NOT NULL, file TEXT NOT NULL, content_type TEXT NOT NULL,
        size INTEGER NOT NULL, sha256 BLOB NOT NULL, created_at INTEGER NOT NULL,
        updated_at INTEGER NOT NULL, expires_at INTEGER, accessed_at INTEGER, ttl INTEGER,
        renew INTEGER NOT NULL, version INTEGER NOT NULL, metadata TEXT NOT NULL,
        author TEXT NOT NULL, face TEXT NOT NULL, crc32 INTEGER NOT NULL, PRIMARY KEY(scope, key)) WITHOUT ROWID;
    CREATE INDEX entry_expires_at ON entry(expires_at) WHERE expires_at IS NOT NULL;
    CREATE TABLE usage(
        scope TEXT PRIMARY KEY, n INTEGER NOT NULL DEFAULT 0, bytes INTEGER NOT NULL DEFAULT 0,
        kept_n INTEGER NOT NULL DEFAULT 0, kept_bytes INTEGER NOT NULL DEFAULT 0,
        written_at INTEGER, written_by TEXT, read_at INTEGER, read_by TEXT) WITHOUT ROWID;
    CREATE TABLE change(
        seq INTEGER PRIMARY KEY, scope TEXT NOT NULL, key TEXT NOT NULL,
        op TEXT NOT NULL, at INTEGER NOT NULL, origin TEXT NOT NULL);
    CREATE TABLE version(
        scope TEXT NOT NULL, key TEXT NOT NULL, seq INTEGER NOT NULL, file TEXT NOT NULL,
        content_type TEXT NOT NULL, size INTEGER NOT NULL, sha256 BLOB NOT NULL,
        created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL, expires_at INTEGER,
        ttl INTEGER, renew INTEGER NOT NULL, version INTEGER NOT NULL, metadata TEXT NOT NULL,
        author TEXT NOT NULL, face TEXT NOT NULL, crc32 INTEGER NOT NULL, replaced_at INTEGER NOT NULL, op TEXT NOT NULL,
        kept_until INTEGER, PRIMARY KEY(scope, key, seq)) WITHOUT ROWID;
    CREATE INDEX version_seq ON version(scope, seq);
    CREATE INDEX version_kept_until ON version(kept_until) WHERE kept_until IS NOT NULL;
    -- Versions go in ways of many kinds, thousands in one statement: none of them can forget the usage.
    CREATE TRIGGER version_kept AFTER INSERT ON version BEGIN
        UPDATE usage SET kept_n=kept_n+1, kept_bytes=kept_bytes+NEW.size WHERE scope=NEW.scope; END;
    CREATE TRIGGER version_gone AFTER DELETE ON version BEGIN
        UPDATE usage SET kept_n=kept_n-1, kept_bytes=kept_bytes-OLD.size WHERE scope=OLD.scope; END;
    CREATE TABLE counter(
        name TEXT NOT NULL, day TEXT NOT NULL, n INTEGER NOT NULL, PRIMARY KEY(name, day)) WITHOUT ROWID;
    CREATE TABLE meta(k TEXT PRIMARY KEY, v TEXT NOT NULL) WITHOUT ROWID;
    """,
)


class DamagedIndexError(CorruptError):
    """The index is not one, or not one of ours; the engine rebuilds it."""


def index_exists(folder: int, *, trust_owner: bool) -> bool:
    """Tell whether the `.store` folder has an index.

    Raises:
        ForbiddenError: It, or a file beside it, is not a plain file of ours.
    """
    for name in SIDE_FILES:
        check_regular(folder, name, f".store/{name}", trust_owner=trust_owner)
    return check_regular(folder, INDEX, f".store/{INDEX}", trust_owner=trust_owner)


def replace_index(
    folder: int,
    aside: int,
    at_ms: int,
    *,
    workspace_id: str,
    first_seq: int,
    fill: Callable[[sqlite3.Connection], None],
) -> None:
    """Put a new index in the place of the present one, if there is one; the write lock must be held.

    Args:
        folder: The handle of `.store`.
        aside: The folder that takes the index before this one, and its write-ahead log, which would
            be replayed into the new one.
        at_ms: The time.
        workspace_id: The id of what is stored here.
        first_seq: The number that the change feed starts with: over each that was ever used here,
            so that no name is used twice.
        fill: Writes the rows, inside the transaction that makes the tables.

    Raises:
        UncertainError: The new index is in place, but may not survive a power cut.
    """
    temporary = names.TEMP_PREFIX + secrets.token_hex(8)
    os.close(create_file(folder, temporary))
    try:
        with closing(_connection(folder, temporary)) as connection:
            _create_tables(connection, at_ms, workspace_id, first_seq)
            fill(connection)
            connection.execute("COMMIT")
        _put_aside(folder, aside)
        os.rename(temporary, INDEX, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException as error:
        for name in (temporary, temporary + "-journal"):
            with suppress(OSError):
                os.unlink(name, dir_fd=folder)
        if isinstance(error, sqlite3.Error):
            raise explained(error) from error
        raise
    try:
        os.fsync(folder)
    except OSError as error:
        raise UncertainError(
            f"the new index is in place, but the disk did not confirm it ({error.strerror})",
            "what was there before is kept aside, and no value was removed",
            "do the same again once the disk works: that is safe",
        ) from error


def _create_tables(connection: sqlite3.Connection, at_ms: int, workspace_id: str, first_seq: int) -> None:
    """Begin a transaction and make the tables in it."""
    connection.execute("PRAGMA synchronous=FULL")
    connection.executescript(f"BEGIN;{''.join(_MIGRATIONS)};PRAGMA user_version={len(_MIGRATIONS)};")
    connection.execute(f"PRAGMA application_id={_APPLICATION_ID}")
    facts = {"workspace_id": workspace_id, "created_at": at_ms, "collected_at": at_ms}
    connection.executemany("INSERT INTO meta(k, v) VALUES(?,?)", [(k, str(v)) for k, v in facts.items()])
    connection.executemany("INSERT INTO usage(scope) VALUES(?)", [(scope,) for scope in SCOPES])
    # The feed always keeps its newest row, so that max(seq) never falls: without AUTOINCREMENT,
    # which costs one more page in every commit.
    connection.execute("INSERT INTO change VALUES(?,?,'','clear',?,'')", (first_seq, SCOPES[0], at_ms))


def _put_aside(folder: int, aside: int) -> None:
    mark = secrets.token_hex(4)
    for name in (INDEX, *SIDE_FILES):
        with suppress(FileNotFoundError):
            os.rename(name, f"{name}-{mark}", src_dir_fd=folder, dst_dir_fd=aside)


def connect(folder: int, *, durable: bool) -> sqlite3.Connection:
    """Connect to the index in the `.store` folder and refuse one that this version does not know.

    Raises:
        UnavailableError: It cannot be opened, or a newer iris-kv wrote it.
        CorruptError: It is damaged, or not an index of iris-kv.
    """
    connection = None
    try:
        connection = _connection(folder, INDEX)
        for pragma in (
            f"synchronous={'FULL' if durable else 'NORMAL'}",
            "wal_autocheckpoint=4000",
            "journal_size_limit=67108864",
            "mmap_size=0",
            "trusted_schema=OFF",
            *(["fullfsync=ON"] if sys.platform == "darwin" else []),
        ):
            connection.execute(f"PRAGMA {pragma}").fetchall()
        check_schema(connection)
    except BaseException as error:
        if connection is not None:
            connection.close()
        if isinstance(error, sqlite3.Error):
            raise explained(error) from error
        if isinstance(error, UnicodeDecodeError):
            # What SQLite says of a damaged name quotes it.
            raise damaged_index() from error
        raise
    return connection


def is_cut_off(folder: int) -> bool:
    """Tell whether the index has fewer bytes than its first page says; a kill during a checkpoint leaves it so, too.

    Of a page that ends in the middle SQLite reads zeros, and may take them for no entries.
    """
    with suppress(OSError), open(INDEX, "rb", opener=lambda name, flags: os.open(name, flags, dir_fd=folder)) as file:
        head = file.read(32)
        page_bytes, pages = int.from_bytes(head[16:18]), int.from_bytes(head[28:32])
        # The format's way of saying 65,536.
        return os.fstat(file.fileno()).st_size < (65_536 if page_bytes == 1 else page_bytes) * pages
    return False


def _connection(folder: int, name: str) -> sqlite3.Connection:
    where = f"/proc/self/fd/{folder}" if sys.platform == "linux" else quote(_folder_path(folder))
    return sqlite3.connect(
        f"file:{where}/{name}?mode=rw", uri=True, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
    )


def check_schema(connection: sqlite3.Connection) -> None:
    """Refuse an index that this version does not know.

    Raises:
        UnavailableError: A newer iris-kv wrote it.
        CorruptError: It is not an index of iris-kv.
    """
    if _pragma(connection, "application_id") != _APPLICATION_ID:
        raise damaged_index()
    check_version(connection)


def check_version(connection: sqlite3.Connection) -> None:
    """Refuse tables that this version does not know.

    Raises:
        UnavailableError: A newer iris-kv changed them.
        CorruptError: There are none.
    """
    version = _pragma(connection, "user_version")
    if version == 0:
        raise damaged_index()
    if version > len(_MIGRATIONS):
        raise UnavailableError(
            f"the index has schema {version}, and this iris-kv knows up to {len(_MIGRATIONS)}",
            "a newer iris-kv wrote it; instructions and prompts are still served",
            "upgrade this iris-kv, or end the windows that run the older one",
        )


def explained(error: sqlite3.Error) -> IrisError:
    """Return the error of ours for one of SQLite's."""
    extended = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    code = extended & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return BusyError(f"the index is locked ({error})", "one process writes at a time", "try again in a moment")
    if code in _DAMAGE or extended == sqlite3.SQLITE_IOERR_SHORT_READ or _MISSING.match(str(error)):
        return damaged_index()
    if code == sqlite3.SQLITE_FULL:
        return disk_full()
    return UnavailableError(
        f"the index cannot be used ({error})",
        "the store needs a folder that this user may write, on a disk with room",
        "free space or mend the permissions of .iris/kv-cache, then try again",
    )


def damaged_index() -> DamagedIndexError:
    """Return the error for an index that is not one, or not one of ours."""
    return DamagedIndexError(
        ".iris/kv-cache/.store/index.db is damaged or not an index of iris-kv",
        "nothing is served from a damaged index; the value files beside it are untouched",
        "run `iris-kv repair` in the workspace; if that does not mend it, restore a backup",
    )


def is_disk_full(error: BaseException | None) -> bool:
    """Tell whether an error, or what caused it, says that the disk has no room."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF == sqlite3.SQLITE_FULL:
            return True
        error = error.__cause__
    return False


def disk_full() -> UnavailableError:
    """Return the error for a disk without room."""
    return UnavailableError(
        "the disk is full, so nothing was written",
        "what was stored before is intact",
        "free space on the workspace's disk, or delete entries, then try again",
    )


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return cast("int", connection.execute(f"PRAGMA {name}").fetchone()[0])


def _folder_path(folder: int) -> str:
    import fcntl  # noqa: PLC0415 - F_GETPATH exists on macOS only

    buffer = fcntl.fcntl(folder, getattr(fcntl, "F_GETPATH", 50), bytes(1024))
    return buffer.rstrip(b"\0").decode()
