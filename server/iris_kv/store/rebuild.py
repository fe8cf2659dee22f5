"""Makes a lost or damaged index anew from the recovery log, the manifests and the value files.

A generation counts only if its file has the size and SHA-256 that was written down for it. The
newest of a key is its entry, unless the key was removed behind it. Older ones, those of removed keys
and files that nothing names are kept as versions, never served. Everything else is quarantined.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import stat
import time
import uuid
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING, Final, NamedTuple

from iris_kv.model import DAY_MS, SCOPES, Damage, Rebuilt, Scope
from iris_kv.store import names
from iris_kv.store.hints import MAX_SEQ, Hints, seq_of
from iris_kv.store.lanes import check_cancelled
from iris_kv.store.queries import KEEP_ROW, STORED, KeptFor, Row, kept_values, stored
from iris_kv.store.recovery import write_manifest
from iris_kv.store.schema import replace_index

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable

    from iris_kv.store.folders import CacheFolders
    from iris_kv.store.recovery import RecoveryLog

_OPEN: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_TELL_EVERY_S: Final = 1.0
_STORE_ROW: Final = f"INSERT INTO entry({STORED}) VALUES({','.join('?' * 17)})"

_log = logging.getLogger(__name__)


class Version(NamedTuple):
    """A generation that is kept beside the entries."""

    row: Row
    replaced_at: int
    op: KeptFor
    """What ended it: `update` or `delete`."""
    ended_by: int
    """The number of the change that removed its key; 0: none that is known."""


class Contents(NamedTuple):
    """What an index is to hold."""

    entries: list[Row]
    versions: list[Version]
    last_seq: int
    """The highest number that was ever used."""
    workspace_id: str


def rebuild_index(folders: CacheFolders, log: RecoveryLog, now_ms: int) -> Rebuilt:
    """Make the index anew and put what was there aside; the write lock must be held.

    A task that is cancelled meanwhile ends it before anything is changed.
    """
    found = _Search(folders, now_ms)
    contents = found.contents()
    # First, so that a kill between the two leaves no file that nothing names for collection to remove.
    for scope, file in found.rejected:
        _put_aside(folders, scope, file)
    install(folders, log, contents, now_ms)
    result = Rebuilt(
        entries=len(contents.entries),
        versions=len(contents.versions),
        recovered=len(found.unnamed),
        quarantined=len(found.rejected),
        damaged=tuple(found.damaged),
    )
    _log_result(result)
    return result


def install(folders: CacheFolders, log: RecoveryLog, contents: Contents, now_ms: int) -> None:
    """Put an index with these contents in the place of the present one; the write lock must be held."""

    def fill(connection: sqlite3.Connection) -> None:
        connection.executemany(_STORE_ROW, map(stored, contents.entries))
        _store_versions(connection, contents.versions)
        connection.execute(
            "UPDATE usage SET (n, bytes) ="
            " (SELECT count(*), coalesce(sum(size), 0) FROM entry WHERE entry.scope=usage.scope)"
        )

    replace_index(
        folders.store,
        folders.quarantine,
        now_ms,
        workspace_id=contents.workspace_id,
        # Two further, so that whoever read the feed up to the last change is told that it starts anew.
        first_seq=contents.last_seq and contents.last_seq + 2,
        fill=fill,
    )
    if contents.last_seq:
        with suppress(OSError):
            _write_copies(folders, log, contents)


def _store_versions(connection: sqlite3.Connection, versions: Iterable[Version]) -> None:
    """Keep generations as history; inside a transaction."""
    connection.executemany(KEEP_ROW, (_version_values(each) for each in versions))


def _version_values(version: Version) -> tuple[object, ...]:
    until = None if version.op == "update" else version.replaced_at + DAY_MS
    return kept_values(version.row, seq_of(version.row), version.replaced_at, version.op, until)


def _write_copies(folders: CacheFolders, log: RecoveryLog, contents: Contents) -> None:
    """Write the log and the manifests anew, so that they say nothing of the index before this one."""
    log.replace(chain(contents.entries, (each.row for each in contents.versions)))
    for each in contents.versions:
        if each.ended_by:
            log.append_removed("delete", {each.ended_by: each.row})
    for scope in SCOPES:
        rows = [row for row in contents.entries if row.scope == scope]
        write_manifest(folders.scope(scope), contents.last_seq, contents.workspace_id, rows)


def renewed(row: Row, now_ms: int) -> Row:
    """Return a row as if it had been read now, as the reads that renewed it may be lost."""
    if not row.renew or row.ttl is None or row.expires_at is None:
        return row
    return row._replace(expires_at=max(row.expires_at, now_ms + row.ttl))


class _Search:
    """Looks at every value file once, and says what each is."""

    def __init__(self, folders: CacheFolders, now_ms: int) -> None:
        self._folders = folders
        self._now = now_ms
        self._hints = Hints(folders)
        self._last_seq = self._hints.last_seq
        self._whole: list[Row] = []
        self._unreadable: set[tuple[Scope, str]] = set()
        self.unnamed: list[Row] = []
        """Complete files that nothing names, as rows of `recovered/…`."""
        self.rejected: list[tuple[Scope, str]] = []
        """Files that are not what they should be."""
        self.damaged: list[Damage] = []
        """Entries without a whole file."""
        self._look_at_all()

    def _look_at_all(self) -> None:
        files: list[tuple[Scope, str]] = [
            (scope, file) for scope in SCOPES for file in _value_files(self._folders.scope(scope))
        ]
        if files:
            _log.warning("the index of this cache is lost or damaged: making it anew from %d files", len(files))
        told = time.monotonic()
        for n, (scope, file) in enumerate(files):
            check_cancelled()
            self._look_at(scope, file)
            if time.monotonic() - told > _TELL_EVERY_S:
                told = time.monotonic()
                _log.warning("making the index anew: %d of %d files", n + 1, len(files))

    def _look_at(self, scope: Scope, file: str) -> None:
        self._last_seq = max(self._last_seq, names.seq_of(file) or 0)
        named = self._hints.rows.get((scope, file))
        try:
            found = _read(self._folders.scope(scope), file)
        except OSError:
            if named is not None:
                # Perhaps it can be read later, so it stays where it is.
                self._unreadable.add((scope, file))
                return
            found = None
        if found is None or (named is not None and (found.size, found.sha256) != (named.size, named.sha256)):
            self.rejected.append((scope, file))
        elif named is None:
            self.unnamed.append(_recovered(scope, file, found))
        else:
            self._whole.append(named)

    def contents(self) -> Contents:
        """Decide what is an entry and what is kept as a version."""
        written = sorted((row for row in self.unnamed if not self._hints.is_of_restore(row.file)), key=seq_of)
        overtaking = {(row.scope, names.key_hash_of(row.file)): row for row in written}
        live: dict[tuple[Scope, str], Row] = {}
        for row in chain.from_iterable(self._hints.newest(scope) for scope in SCOPES):
            # A later file that nothing names has the hash of its key in its name: then what is named
            # is not what the key held last.
            later = overtaking.get((row.scope, names.key_hash_of(row.file)))
            if later is None or seq_of(later) < seq_of(row):
                live[row.scope, row.key] = row
        versions = [Version(row, self._now, "delete", 0) for row in self.unnamed]
        for row in self._whole:
            now_live = live.get((row.scope, row.key))
            if now_live is None:
                versions.append(Version(row, self._now, "delete", self._hints.gone_at(row) or 0))
            elif now_live is not row:
                versions.append(Version(row, now_live.updated_at, "update", 0))
        readable = {(row.scope, row.file) for row in self._whole} | self._unreadable
        self.damaged = [_damage(row) for row in live.values() if (row.scope, row.file) not in readable]
        entries = [renewed(row, self._now) for row in live.values()]
        return Contents(entries, versions, self._last_seq, self._hints.workspace_id or uuid.uuid4().hex)


class _Found(NamedTuple):
    size: int
    sha256: bytes
    written_at: int


def _read(folder: int, file: str) -> _Found | None:
    """Return what a file holds; None: it is not a plain file."""
    try:
        handle = os.open(file, _OPEN, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            return None
        raise
    with os.fdopen(handle, "rb", buffering=0) as opened:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            return None
        sha256 = hashlib.file_digest(opened, "sha256").digest()
        return _Found(opened.tell(), sha256, status.st_mtime_ns // 1_000_000)


def _recovered(scope: Scope, file: str, found: _Found) -> Row:
    """Return the row of a file of which only the name tells; whoever wrote it is trusted least."""
    slug, suffix = file.rpartition("__")[0], file.rpartition(".")[2]
    return Row(
        scope=scope,
        key=f"recovered/{slug}",
        file=file,
        content_type=names.content_type_of(suffix) or "application/octet-stream",
        size=found.size,
        sha256=found.sha256,
        created_at=found.written_at,
        updated_at=found.written_at,
        expires_at=None,
        accessed_at=None,
        ttl=None,
        renew=0,
        version=1,
        metadata="{}",
        author="agent",
        face="library",
    )


def _damage(row: Row) -> Damage:
    return Damage(scope=row.scope, key=row.key, problem="its file is lost or does not match its digest")


def _value_files(folder: int) -> list[str]:
    return sorted(file for file in os.listdir(folder) if 0 < (names.seq_of(file) or 0) < MAX_SEQ)


def _put_aside(folders: CacheFolders, scope: Scope, file: str) -> None:
    with suppress(OSError):
        os.rename(file, file, src_dir_fd=folders.scope(scope), dst_dir_fd=folders.quarantine)


def _log_result(result: Rebuilt) -> None:
    if result.found_anything:
        _log.warning(
            "made the index anew: %d entries, %d older or deleted versions (%d of unknown keys), %d files quarantined,"
            " %d values lost",
            result.entries,
            result.versions,
            result.recovered,
            result.quarantined,
            len(result.damaged),
        )
