"""Tells whether an index can be trusted: its pages, its rows, and what the copies of them say.

SQLite has no checksums. Rows of values have one each, which every read checks; that a row is missing is
seen by SQLite's own look at its pages, or where the recovery log or a manifest name it.
"""

from __future__ import annotations

import os
import re
import sqlite3
from typing import TYPE_CHECKING, Final

from iris_kv.model import SCOPES, Scope
from iris_kv.store import names
from iris_kv.store.hints import MAX_SEQ, Hints, is_possible, seq_of
from iris_kv.store.lanes import check_cancelled
from iris_kv.store.schema import DamagedIndexError, explained

if TYPE_CHECKING:
    from collections.abc import Iterable

    from iris_kv.store.cache import OpenCache
    from iris_kv.store.index import Writer
    from iris_kv.store.queries import Row

_ID: Final = re.compile("[0-9a-f]{32}")


def index_problem(cache: OpenCache) -> str | None:
    """Return what is wrong with the index of a cache, in words; None: nothing. The write lock must be held.

    Raises:
        UnavailableError: It cannot be told, as the disk cannot be read.
    """
    try:
        return _problem(cache)
    except sqlite3.Error as error:
        told = explained(error)
        if isinstance(told, DamagedIndexError):
            return "it cannot be read"
        raise told from error
    except (DamagedIndexError, ValueError, TypeError, ArithmeticError):
        return "a row of it is not what was written"


def _problem(cache: OpenCache) -> str | None:
    writer = cache.index.writer
    found = writer.integrity()
    if found != "ok":
        return f"SQLite says: {found}"
    if not (writer.meta("collected_at").isdecimal() and _ID.fullmatch(writer.meta("workspace_id"))):
        return "its facts are not what was written"
    hints = Hints(cache.folders)
    if writer.last_change() < hints.last_seq:
        return "it is older than the recovery log"
    for scope in SCOPES:
        check_cancelled()
        problem = _scope_problem(cache, hints, scope)
        if problem is not None:
            return problem
    return None


def _scope_problem(cache: OpenCache, hints: Hints, scope: Scope) -> str | None:
    writer = cache.index.writer
    rows = {row.file: row for row in writer.all_rows(scope)}
    for row in rows.values():
        named = hints.rows.get((scope, row.file))
        if not is_possible(row) or (named is not None and _lasting(named) != _lasting(row)):
            return f"its row of {row.key!r} in {scope} is not what was written"
    files = set(os.listdir(cache.folders.scope(scope)))
    if are_ahead(writer.last_change(), files):
        return f"it is older than the files of {scope}"
    for row in hints.newest(scope):
        if row.file in files - rows.keys() and _is_missed(writer, row):
            return f"it has no row of {row.key!r} in {scope}"
    return None


def _is_missed(writer: Writer, row: Row) -> bool:
    """Tell whether an index lost a row whose file is there.

    Whoever is killed behind a commit has not logged what came after it, nor removed its file.
    """
    is_named = bool(writer.named_files(row.scope, [row.file]))
    return not is_named and writer.last_change_of(row.scope, row.key) <= seq_of(row)


def _lasting(row: Row) -> Row:
    """Return what reading an entry does not change."""
    return row._replace(expires_at=None, accessed_at=None)


def are_ahead(last_change: int, files: Iterable[str]) -> bool:
    """Tell whether some of a scope's files were written behind the last change that an index knows.

    The next change's put may be under way. Puts of one key that failed at their commit, or were killed
    before it, are no sign of a loss: each takes the number behind the one before it.
    """
    numbered = {(names.key_hash_of(file), names.seq_of(file) or 0) for file in files}
    return any(last_change + 1 < seq < MAX_SEQ and (key, seq - 1) not in numbered for key, seq in numbered)
