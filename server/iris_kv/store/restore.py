"""Puts an archive of `backup` in the place of everything that a store holds, in one step.

The whole archive is read, copied beside the values and compared with its SHA-256s before anything
is replaced. Then the values get names that were never used, and an index that names them is
renamed over the present one: processes that have the store open see the one or the other.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import tarfile
from contextlib import ExitStack, suppress
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple, cast

from iris_kv.errors import InvalidArgumentError
from iris_kv.model import SCOPES, Archived, Scope
from iris_kv.store import names
from iris_kv.store.backup import FORMAT, MANIFEST, SEAL
from iris_kv.store.folders import create_file, write_all
from iris_kv.store.hints import row_of
from iris_kv.store.lanes import check_cancelled
from iris_kv.store.rebuild import Contents, Version, install, renewed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from iris_kv.store.cache import OpenCache
    from iris_kv.store.engine import Engine
    from iris_kv.store.queries import Row

_BLOCK: Final = 1 << 20
_MOST_MANIFEST_BYTES: Final = 1 << 30


def restore(engine: Engine, path: Path) -> Archived:
    """Replace what the store holds by what an archive holds; what it held is kept as versions.

    Raises:
        InvalidArgumentError: It is no whole archive of a store; nothing was changed.
    """
    try:
        return _restore(engine, path)
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise _not_whole(f"it is damaged ({error})") from error


def _restore(engine: Engine, path: Path) -> Archived:
    with ExitStack() as opened:
        archive = _Archive(opened.enter_context(_opened(path)))
        cache = engine.fresh_cache()
        copies = _Copies(cache, durable=engine.options.durable)
        opened.callback(copies.discard)
        for row in archive.rows:
            check_cancelled()
            copies.add(row, archive.value(row))
        with engine.writing() as current:
            if current is not cache:
                raise _not_whole("the cache was replaced while the archive was read")
            entries = copies.put_in_place(current, engine.clock.now_ms(), engine.origin)
            try:
                _install(current, entries, archive.workspace_id, engine.clock.now_ms())
            finally:
                if current.folders.index_identity() not in (None, current.index.identity):
                    copies.keep()
        engine.fresh_cache()
    return Archived(entries=len(entries), bytes=sum(row.size for row in entries), damaged=())


def _install(cache: OpenCache, entries: list[Row], workspace_id: str, now_ms: int) -> None:
    index = cache.index.writer
    restored = {(row.scope, row.key) for row in entries}
    last = index.last_change()
    before = [
        Version(row, now_ms, "update", 0) if (row.scope, row.key) in restored else Version(row, now_ms, "delete", last)
        for scope in SCOPES
        for row in index.all_rows(scope)
    ]
    contents = Contents([renewed(row, now_ms) for row in entries], before, last, workspace_id)
    install(cache.folders, cache.recovery, contents, now_ms)


class _Copies:
    """The values of an archive as temporary files beside the store's own, then under their names."""

    def __init__(self, cache: OpenCache, *, durable: bool) -> None:
        self._folders = cache.folders
        self._durable = durable
        self._files: list[tuple[Row, str]] = []

    def add(self, row: Row, value: IO[bytes]) -> None:
        """Copy a value, and compare it with what the manifest says of it."""
        folder, temporary = self._folders.scope(row.scope), names.TEMP_PREFIX + secrets.token_hex(8)
        handle = create_file(folder, temporary)
        self._files.append((row, temporary))
        hashed = hashlib.sha256()
        try:
            while block := value.read(_BLOCK):
                hashed.update(block)
                write_all(handle, block)
            if self._durable:
                os.fsync(handle)
        finally:
            os.close(handle)
        if hashed.digest() != row.sha256:
            raise _not_whole(f"the value of {row.key!r} in {row.scope} does not match its digest")

    def put_in_place(self, cache: OpenCache, now_ms: int, origin: str) -> list[Row]:
        """Give the values names that were never used; the write lock must be held.

        The numbers in them are used up first and logged, so that a kill leaves files that collection
        removes, and that overtake nothing should the index be lost then.
        """
        writer = cache.index.writer
        with writer.transaction():
            first = writer.last_change() + 1
            writer.skip_changes(len(self._files), now_ms, origin)
        cache.recovery.append_restore(first, writer.last_change())
        rows: list[Row] = []
        for n, (row, temporary) in enumerate(self._files):
            folder = self._folders.scope(row.scope)
            file = names.value_file(row.scope, row.key, first + n, row.content_type)
            os.rename(temporary, file, src_dir_fd=folder, dst_dir_fd=folder)
            self._files[n] = row, file
            rows.append(row._replace(file=file))
        for scope in SCOPES:
            os.fsync(self._folders.scope(scope))
        return rows

    def keep(self) -> None:
        """Note that an index names the files now."""
        self._files.clear()

    def discard(self) -> None:
        """Remove what no index names."""
        for row, file in self._files:
            with suppress(OSError):
                os.unlink(file, dir_fd=self._folders.scope(row.scope))


class _Head(NamedTuple):
    workspace_id: str
    rows: list[Row]


class _Archive:
    """An archive whose members are known and whose manifest is whole; its values are not read yet."""

    def __init__(self, archive: tarfile.TarFile) -> None:
        self._archive = archive
        self._members = dict(_members(archive))
        manifest = self._content(MANIFEST)
        if self._content(SEAL).strip() != hashlib.sha256(manifest).hexdigest().encode():
            raise _not_whole("its manifest does not match its digest")
        self.workspace_id, self.rows = _parsed(manifest)

    def _content(self, name: str) -> bytes:
        member = self._members.get(name)
        if member is None or member.size > _MOST_MANIFEST_BYTES:
            raise _not_whole(f"it has no {name}")
        return self._reader(member).read()

    def value(self, row: Row) -> IO[bytes]:
        """Return a reader of a value."""
        member = self._members.get(f"{row.scope}/{row.file}")
        if member is None or member.size != row.size:
            raise _not_whole(f"it has no value of {row.key!r} in {row.scope}")
        return self._reader(member)

    def _reader(self, member: tarfile.TarInfo) -> IO[bytes]:
        return cast("IO[bytes]", self._archive.extractfile(member))


def _members(archive: tarfile.TarFile) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """Walk the members; each is a plain file with a name that a backup gives, and nothing else is let in."""
    seen: set[str] = set()
    for member in archive:
        if not member.isreg() or member.issparse() or not _is_expected(member.name):
            raise _not_whole(f"it has a member {member.name!r}, which no backup has")
        if member.name in seen and member.name in (MANIFEST, SEAL):
            raise _not_whole(f"it has {member.name} twice")
        seen.add(member.name)
        yield member.name, member


def _is_expected(name: str) -> bool:
    scope, _, file = name.partition("/")
    return name in (MANIFEST, SEAL) or (scope in SCOPES and names.seq_of(file) is not None)


def _parsed(manifest: bytes) -> _Head:
    try:
        head = cast("dict[str, Any]", json.loads(manifest))
        if head["format"] != FORMAT:
            raise _not_whole(f"its format is {head['format']!r}, and this iris-kv knows {FORMAT}")
        workspace_id = bytes.fromhex(head["workspace_id"]).hex()
        rows = [_row(facts) for facts in head["entries"]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _not_whole("its manifest is not one of iris-kv") from error
    if len({(row.scope, row.key) for row in rows}) != len(rows):
        raise _not_whole("its manifest has a key twice")
    return _Head(workspace_id, rows)


def _row(facts: dict[str, Any]) -> Row:
    scope: Scope = facts["scope"]
    row = row_of(scope, facts["key"], facts) if scope in SCOPES else None
    if row is None:
        raise _not_whole(f"its manifest has an entry that no store could have written: {facts['key']!r}")
    return row


def _opened(path: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(path, mode="r:")
    except (OSError, tarfile.TarError) as error:
        raise _not_whole(f"it cannot be read ({error})") from error


def _not_whole(problem: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"the archive cannot be restored: {problem}",
        "only a whole archive of `iris-kv backup` is; nothing was changed",
        "name another archive",
    )
