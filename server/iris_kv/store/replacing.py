"""One new version of an entry: its row in the place of the old one's, and what is kept of that."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from iris_kv.store import keeping
from iris_kv.store.base import write_time
from iris_kv.store.queries import Kept, Row, Standing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from iris_kv.model import Scope
    from iris_kv.store.cache import OpenCache
    from iris_kv.store.checks import PutRequest


class Content(NamedTuple):
    """The bytes of an entry's new version."""

    size: int
    sha256: bytes
    place: Callable[[str], None]
    """Gives them a name in their scope's folder; they are there in full then."""
    restored: Kept | None = None
    """Which kept version they are; it is kept no longer, as it is the entry."""


class Step(NamedTuple):
    """What is known of a write once it is under way."""

    standing: Standing
    live: Row | None
    """The row that stands there, unless it is expired."""
    seq: int
    file: str
    now: int
    by: str
    """The writer, for the record."""


def replace_row(cache: OpenCache, request: PutRequest, content: Content, step: Step) -> tuple[Row, list[str]]:
    """Put a new row in the place of the old one, keep of that what is to be kept, and return the files that go.

    Inside a transaction.
    """
    scope, writer, live = request.scope, cache.index.writer, step.live
    old, used, kept, last = step.standing
    restored = None if content.restored is None else content.restored.row
    gone: list[str] = []
    if old is not None and live is None:
        gone += [old.file, *keeping.end_versions(cache, old)]
        last = writer.standing(scope, request.key).last_kept
    if content.restored is not None:
        gone += keeping.take_out(cache, content.restored, revives=live is None)
    if live is not None:
        gone += keeping.keep_replaced(cache, live, request.limits.keep, step.seq, step.now)
    version = 1 + max(last, live.version if live else 0, restored.version if restored else 0)
    row = _new_row(request, content, step, live or restored, version)
    writer.store_row(row)
    writer.note_write(scope, 0 if old else 1, row.size - (old.size if old else 0), step.now, step.by)
    if used + kept + row.size > request.limits.quota_bytes:
        gone += keeping.make_room(cache, scope, request.limits.quota_bytes)
    return row, gone


def _new_row(request: PutRequest, content: Content, step: Step, origin: Row | None, version: int) -> Row:
    ttl, now = request.effective_ttl_ms, write_time(step.now, origin and origin.created_at)
    return Row(
        scope=request.scope,
        key=request.key,
        file=step.file,
        content_type=request.content_type,
        size=content.size,
        sha256=content.sha256,
        created_at=now if origin is None else origin.created_at,
        updated_at=now,
        expires_at=None if ttl is None else now + ttl,
        accessed_at=None,
        ttl=ttl,
        renew=int(request.limits.renew),
        version=version,
        metadata=json.dumps(dict(request.metadata), ensure_ascii=False) if request.metadata else "{}",
        author=request.provenance.author,
        face=request.provenance.face,
    )


def unlink(cache: OpenCache, scope: Scope, files: Iterable[str]) -> None:
    """Remove values' files that no row names."""
    for file in files:
        with suppress(OSError):
            os.unlink(file, dir_fd=cache.folders.scope(scope))
