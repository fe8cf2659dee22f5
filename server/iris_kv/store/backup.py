"""A store as one archive, made while servers run.

The archive is a tar (pax, not compressed): `<scope>/<file>` for each value, then `manifest.json`
with what is known of each entry and its SHA-256, then `manifest.sha256`. A value that was
replaced while the archive was made may be in it, too; what the manifest does not name does not count.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import secrets
import tarfile
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from iris_kv.errors import UnavailableError
from iris_kv.model import SCOPES, Archived, Damage, Scope
from iris_kv.store import names
from iris_kv.store.lanes import check_cancelled
from iris_kv.store.reading import open_verified
from iris_kv.store.recovery import facts_of

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

    from iris_kv.store.cache import OpenCache
    from iris_kv.store.engine import Engine
    from iris_kv.store.queries import Queries, Row

FORMAT: Final = 1
MANIFEST: Final = "manifest.json"
SEAL: Final = "manifest.sha256"


def back_up(engine: Engine, path: Path) -> Archived:
    """Write an archive of all entries as they are at one moment, and rename it to `path`.

    Most values are copied before, without a lock; writers wait only while those are copied that
    came meanwhile.

    Raises:
        UnavailableError: The archive cannot be written; nothing stands at `path` that did not before.
    """
    with _new_file(path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        copying = _Copying(archive)
        cache = engine.fresh_cache()
        for row in _all_rows(cache.index.readers):
            check_cancelled()
            copying.copy(cache, row)
        with engine.writing() as current:
            engine.tell_reads(current)
            rows = list(_all_rows(current.index.writer))
            damaged = [_damage(row) for row in rows if not copying.copy(current, row)]
            workspace_id = current.index.writer.meta("workspace_id")
        lost = {(each.scope, each.key) for each in damaged}
        kept = [row for row in rows if (row.scope, row.key) not in lost]
        _add_manifest(archive, workspace_id, engine.clock.now_ms(), kept)
    return Archived(entries=len(kept), bytes=sum(row.size for row in kept), damaged=tuple(damaged))


class _Copying:
    """Copies values into an archive, each once."""

    def __init__(self, archive: tarfile.TarFile) -> None:
        self._archive = archive
        self._copied: dict[tuple[Scope, str], bytes] = {}

    def copy(self, cache: OpenCache, row: Row) -> bool:
        """Copy the value of a row unless it was, and tell whether it is in the archive: it may be gone or damaged."""
        if self._copied.get((row.scope, row.file)) == row.sha256:
            return True
        file = open_verified(cache.folders.scope(row.scope), row)
        if file is None:
            return False
        with file:
            file.seek(0)
            self._archive.addfile(_member(f"{row.scope}/{row.file}", row.size, row.updated_at), file)
        self._copied[row.scope, row.file] = row.sha256
        return True


def _all_rows(index: Queries) -> Iterator[Row]:
    return (row for scope in SCOPES for row in index.all_rows(scope))


def _damage(row: Row) -> Damage:
    return Damage(scope=row.scope, key=row.key, problem="its file is lost or does not match its digest")


def _add_manifest(archive: tarfile.TarFile, workspace_id: str, at_ms: int, rows: list[Row]) -> None:
    entries = [{"scope": row.scope, "key": row.key, **facts_of(row)} for row in rows]
    head = {"format": FORMAT, "workspace_id": workspace_id, "created_at": at_ms, "entries": entries}
    manifest = json.dumps(head, ensure_ascii=False, indent=1).encode()
    seal = hashlib.sha256(manifest).hexdigest().encode()
    for name, content in ((MANIFEST, manifest), (SEAL, seal + b"\n")):
        archive.addfile(_member(name, len(content), at_ms), io.BytesIO(content))


def _member(name: str, size: int, at_ms: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mtime, member.mode = size, at_ms // 1000, 0o600
    return member


@contextmanager
def _new_file(path: Path) -> Generator[io.BufferedWriter]:
    """Open a file beside `path` that only its owner may read, and rename it to that once it is on the disk."""
    temporary = path.with_name(names.TEMP_PREFIX + secrets.token_hex(8))
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise UnavailableError(
            f"the archive {path.name!r} cannot be written ({error.strerror or error})",
            "nothing was changed, neither in the store nor in an older archive of that name",
            "name a file in a folder that exists and has room",
        ) from error
    finally:
        with suppress(OSError):
            os.unlink(temporary)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
