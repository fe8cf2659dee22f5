"""What becomes of values that are replaced, deleted or expire: kept for a while, or removed.

Everything here runs inside a write transaction, and returns the files that no row names once it has
committed; the caller unlinks them then, so that a row never names a file that is gone.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from iris_kv.store.base import MAX_DELETED
from iris_kv.store.index import Ended

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from iris_kv.model import Keep, Scope
    from iris_kv.store.cache import OpenCache
    from iris_kv.store.queries import Kept, Row


def keep_replaced(cache: OpenCache, old: Row, keep: Keep, seq: int, now: int) -> list[str]:
    """Keep a live entry that the change `seq` is about to replace, and so many of its versions as may be."""
    writer = cache.index.writer
    if not keep.versions or not _is_whole(cache, old):
        return [old.file, *_drop(cache, writer.replaced(old.scope, old.key, keep.versions))]
    gone = _drop(cache, writer.replaced(old.scope, old.key, keep.versions - 1))
    writer.keep_row(old, Ended(seq, now, "update", None))
    return gone


def keep_deleted(cache: OpenCache, row: Row, keep: Keep, seq: int, now: int) -> list[str]:
    """Keep an entry that the change `seq` is about to delete, and its versions; or nothing of it, ever."""
    writer, until = cache.index.writer, now + keep.deleted_ms
    kept = writer.kept(row.scope, row.key)
    if not keep.deleted_ms:
        return [row.file, *_drop(cache, kept)]
    deleted = [each for each in kept if each.op != "update"]
    writer.keep_replaced(row.scope, row.key, until)
    if not _is_whole(cache, row):
        return [row.file]
    writer.keep_row(row, Ended(seq, now, "delete", until))
    return _drop(cache, deleted[MAX_DELETED - 1 :])


def keep_cleared(cache: OpenCache, scope: Scope, keep: Keep, seq: int, now: int, files: Iterable[str]) -> set[str]:
    """Keep the live entries of a scope that the change `seq` is about to clear; returns what of `files` stays."""
    writer = cache.index.writer
    if keep.deleted_ms:
        writer.keep_scope(scope, Ended(seq, now, "clear", now + keep.deleted_ms))
        _drop(cache, writer.surplus_deleted(scope))
        writer.drop_replaced(scope)
    else:
        writer.drop_all_kept(scope)
    named = writer.kept_files(scope)
    gone = named.difference(files)
    if gone:
        _drop(cache, [each for each in writer.all_kept(scope) if each.row.file in gone])
    return named


def end_versions(cache: OpenCache, row: Row) -> list[str]:
    """Keep the versions of an entry no longer, as it expires."""
    kept = cache.index.writer.kept(row.scope, row.key)
    return _drop(cache, [each for each in kept if each.op == "update" and each.until is None])


def take_out(cache: OpenCache, kept: Kept, *, revives: bool) -> list[str]:
    """Keep a version no longer, as it becomes the entry again; if that was deleted, its versions go with it again."""
    if revives:
        cache.index.writer.keep_replaced(kept.row.scope, kept.row.key, None)
    return _drop(cache, [kept])


def make_room(cache: OpenCache, scope: Scope, quota_bytes: int) -> list[str]:
    """Keep the oldest versions of a scope no longer, until all that it holds is within its quota."""
    writer = cache.index.writer
    over = sum(writer.held_bytes(scope)) - quota_bytes
    gone: list[str] = []
    while over > 0 and (oldest := writer.oldest_kept(scope)):
        going: list[Kept] = []
        for each in oldest:
            if over > 0:
                going.append(each)
                over -= each.row.size
        gone += _drop(cache, going)
    return gone


def end_due(cache: OpenCache, scope: Scope, now: int) -> list[str]:
    """Keep up to 500 versions of a scope no longer whose time is over."""
    return _drop(cache, cache.index.writer.due_kept(scope, now))


def _drop(cache: OpenCache, kept: Sequence[Kept]) -> list[str]:
    cache.index.writer.drop_kept(kept)
    return [each.row.file for each in kept]


def _is_whole(cache: OpenCache, row: Row) -> bool:
    """Tell whether a value's file is there in full: what was found damaged is not worth keeping."""
    try:
        found = os.stat(row.file, dir_fd=cache.folders.scope(row.scope), follow_symlinks=False)
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size == row.size
