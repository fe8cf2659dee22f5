"""Versions of the file store that were replaced or deleted: what is kept, and making one the entry again.

A restore gives the value's file a second name, which carries the new change's number as every name
does, and takes the old name away once the index names the new one: no byte is copied, no name is
used twice, and a kill in between leaves a file too many, never a row without one.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from iris_kv.errors import CorruptError, IrisError
from iris_kv.model import Damage, EntryInfo, History, KeptPage, Limits, Provenance, Scope
from iris_kv.store.base import expired, no_version, not_found
from iris_kv.store.checks import PutRequest, check_if_digest, check_page, check_size
from iris_kv.store.folders import create_file
from iris_kv.store.names import check_key
from iris_kv.store.queries import PAGE_ROWS
from iris_kv.store.reading import open_verified
from iris_kv.store.replacing import Content, unlink

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import FileIO

    from iris_kv.store.engine import Engine
    from iris_kv.store.queries import Kept, Queries, Row
    from iris_kv.store.reading import Reading
    from iris_kv.store.writing import Writing

_NO_LINKS: Final = frozenset({errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOSYS, errno.EOPNOTSUPP})


class Versions:
    """The kept versions of one store, each call on the calling thread."""

    def __init__(self, engine: Engine, reading: Reading, writing: Writing) -> None:
        """Read and write through an engine."""
        self._engine = engine
        self._reading = reading
        self._writing = writing

    def history(self, scope: Scope, key: str) -> History:
        """Return what an entry is and which of its versions are kept."""
        check_key(key)
        with self._engine.fresh_cache().index.readers.snapshot() as index:
            row, kept = index.entry(scope, key), self._kept(index, scope, key)
        expires_at = None if row is None else self._engine.notes.expiry(row)
        is_live = row is not None and not self._is_over(expires_at)
        if not is_live and not kept:
            raise not_found(scope, key) if expires_at is None else expired(scope, key, expires_at)
        live = row.info(expires_at) if row is not None and is_live else None
        return History(live=live, kept=tuple(each.version for each in kept))

    def deleted(self, scope: Scope, cursor: str | None, limit: int) -> KeptPage:
        """Return a page of deleted entries, each as it was last."""
        check_page(limit, cursor or "")
        index = self._engine.fresh_cache().index.readers
        found: list[Kept] = []
        for each in self._deleted(index, scope, cursor):
            if not self._is_over(each.until) and self._live(index.entry(scope, each.row.key)) is None:
                if len(found) == limit:
                    return KeptPage(entries=tuple(each.version for each in found), next_cursor=found[-1].row.key)
                found.append(each)
        return KeptPage(entries=tuple(each.version for each in found), next_cursor=None)

    def _deleted(self, index: Queries, scope: Scope, cursor: str | None) -> Iterator[Kept]:
        after = cursor + "\0" if cursor else ""
        while True:
            page = index.deleted(scope, after, PAGE_ROWS)
            yield from page
            if len(page) < PAGE_ROWS:
                return
            after = page[-1].row.key + "\0"

    def restore(self, scope: Scope, key: str, version: int | None, limits: Limits, if_digest: str | None) -> EntryInfo:
        """Make a kept version the entry again."""
        check_key(key)
        check_if_digest(if_digest)
        kept = self._choose(self._engine.fresh_cache().index.readers, scope, key, version)
        check_size(kept.row.size, limits)
        with self._open(kept) as file:
            if self._engine.options.durable:
                # It may have been written without.
                os.fsync(file.fileno())
            with self._engine.writing() as cache:
                found = self._choose(cache.index.writer, scope, key, kept.row.version)
                if found.row.file != kept.row.file:
                    raise no_version(scope, key, version, ())
                folder = cache.folders.scope(scope)
                content = Content(
                    found.row.size,
                    found.row.sha256,
                    partial(_name_again, folder, file, found.row.file),
                    found,
                )
                row, gone = self._writing.store(cache, _request(found.row, limits, if_digest), content)
        unlink(cache, scope, gone)
        return row.info(row.expires_at)

    def _choose(self, index: Queries, scope: Scope, key: str, version: int | None) -> Kept:
        kept = self._kept(index, scope, key)
        for each in kept:
            if version is None or each.row.version == version:
                return each
        raise no_version(scope, key, version, [each.row.version for each in kept])

    def _kept(self, index: Queries, scope: Scope, key: str) -> list[Kept]:
        """Return what is kept of a key now, collected or not, the newest first."""
        row = index.entry(scope, key)
        # Those that go with their entry are gone once it is expired.
        is_expired = row is not None and self._live(row) is None
        return [
            each
            for each in index.kept(scope, key)
            if not self._is_over(each.until) and not (is_expired and each.op == "update" and each.until is None)
        ]

    def _live(self, row: Row | None) -> Row | None:
        return None if row is None or self._is_over(self._engine.notes.expiry(row)) else row

    def _is_over(self, at_ms: int | None) -> bool:
        return at_ms is not None and at_ms <= self._engine.clock.now_ms()

    def _open(self, kept: Kept) -> FileIO:
        """Open a kept value, verified.

        Raises:
            CorruptError: Its bytes do not match their digest.
            NotFoundError: It was removed meanwhile.
        """
        row = kept.row
        file = open_verified(self._engine.cache().folders.scope(row.scope), row)
        if file is not None:
            return file
        self._engine.ask(lambda index: self._choose(index, row.scope, row.key, row.version))
        self._set_aside(kept)
        raise CorruptError(
            f"the stored bytes of version {row.version} of {row.key!r} in {row.scope} do not match their digest",
            "a damaged version is never restored; what is left of it is in .iris/kv-cache/.store/quarantine",
            "restore another version, or make the value again and put it",
        )

    def _set_aside(self, kept: Kept) -> None:
        """Put a damaged file aside and keep its version no longer, if it is still kept."""
        row = kept.row
        with suppress(IrisError, OSError), self._engine.writing() as cache:
            if cache.index.writer.named_files(row.scope, [row.file]):
                with suppress(FileNotFoundError):
                    folder = cache.folders.scope(row.scope)
                    os.rename(row.file, row.file, src_dir_fd=folder, dst_dir_fd=cache.folders.quarantine)
                with cache.index.writer.transaction():
                    cache.index.writer.drop_kept([kept])

    def damage(self, kept: Kept) -> Damage | None:
        """Verify a kept value; one that is damaged is put aside and kept no longer."""
        row = kept.row
        try:
            self._open(kept).close()
        except CorruptError as error:
            return Damage(scope=row.scope, key=row.key, problem=error.wrong)
        except IrisError:
            return None
        except OSError as error:
            problem = f"the file of its version {row.version} cannot be read ({error.strerror})"
            return Damage(scope=row.scope, key=row.key, problem=problem)
        return None


def _request(row: Row, limits: Limits, if_digest: str | None) -> PutRequest:
    by = Provenance(author=row.author, face=row.face)
    return PutRequest(row.scope, row.key, row.content_type, limits, by, row.ttl, json.loads(row.metadata), if_digest)


def _name_again(folder: int, content: FileIO, file: str, name: str) -> None:
    """Give a file a second name, or copy it where the file system knows no such thing."""
    try:
        os.link(file, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        content.seek(0)
        with os.fdopen(create_file(folder, name), "wb") as copy:
            shutil.copyfileobj(content, copy)
            copy.flush()
            os.fsync(copy.fileno())
