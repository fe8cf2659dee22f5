"""Copies of the index that a rebuild reads: the recovery log and the manifests.

`.store/recovery.jsonl` gets one line for every put, delete, clear and expiry: the CRC-32 of the
JSON in 8 hex digits, a space, the JSON. `<scope>/.index.json` is a readable list of a scope's
entries. Both are hints: the value files and their SHA-256 decide.
"""

from __future__ import annotations

import json
import os
import secrets
import zlib
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Literal

from iris_kv.store import names
from iris_kv.store.folders import create_file, open_or_create, write_all

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from iris_kv.model import Scope
    from iris_kv.store.queries import Row

RECOVERY: Final = "recovery.jsonl"

_APPEND: Final = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_BLOCK: Final = 1 << 20

_compact: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class RecoveryLog:
    """The append-only log of one store; a write that fails is mostly ignored, as it is only a hint.

    The write lock must be held for everything but `size`.
    """

    def __init__(self, folder: int) -> None:
        """Write to the log in the `.store` folder; it is opened for each write, as another process may replace it."""
        self._folder = folder

    def append_put(self, row: Row) -> None:
        """Add the line of a put."""
        self._append(_put_line(row))

    def append_removed(self, op: Literal["delete", "expire"], rows: Mapping[int, Row]) -> None:
        """Add the lines of entries that were removed, each by its number in the change feed."""
        lines = [_line({"op": op, "seq": seq, "scope": row.scope, "key": row.key}) for seq, row in rows.items()]
        self._append(b"".join(lines))

    def append_clear(self, seq: int, scope: Scope) -> None:
        """Add the line of a clear."""
        self._append(_line({"op": "clear", "seq": seq, "scope": scope}))

    def append_restore(self, first: int, last: int) -> None:
        """Add the line of an archive's restore, whose files have these numbers; this one must not fail.

        Raises:
            OSError: It did.
        """
        self._append_surely(_line({"op": "restore", "first": first, "seq": last}))

    def _append(self, lines: bytes) -> None:
        with suppress(OSError):
            self._append_surely(lines)

    def _append_surely(self, lines: bytes) -> None:
        handle = open_or_create(self._folder, RECOVERY, _APPEND)
        try:
            _append_whole(handle, lines)
        finally:
            os.close(handle)

    def size(self) -> int:
        """Return the log's length in bytes; 0 if there is none."""
        with suppress(OSError):
            return os.stat(RECOVERY, dir_fd=self._folder, follow_symlinks=False).st_size
        return 0

    def shorten(self, rows: Iterable[Row], n_rows: int) -> None:
        """Replace the log by one line for each live entry, if it has over twice as many lines."""
        with suppress(OSError):
            if self._lines() > 2 * n_rows:
                self.replace(rows)

    def replace(self, rows: Iterable[Row]) -> None:
        """Replace the log by one line for each row."""
        replace_file(self._folder, RECOVERY, (_put_line(row) for row in rows))

    def _lines(self) -> int:
        handle = os.open(RECOVERY, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._folder)
        try:
            return sum(block.count(b"\n") for block in iter(lambda: os.read(handle, _BLOCK), b""))
        finally:
            os.close(handle)


def _append_whole(handle: int, lines: bytes) -> None:
    """Append lines; half of one, on a full disk, would spoil the next one, too. Nothing to a file with a second name."""
    found = os.fstat(handle)
    if found.st_nlink > 1:
        return
    size = found.st_size
    try:
        write_all(handle, lines)
    except OSError:
        os.ftruncate(handle, size)
        raise


def write_manifest(folder: int, seq: int, workspace_id: str, rows: Iterable[Row]) -> None:
    """Write a scope's `.index.json` as of the change `seq`; one line an entry, each with its checksum.

    The last line has the checksum of all before it: only a whole manifest tells what is not there.
    """

    def parts() -> Iterator[bytes]:
        head = {"format": 1, "derived": True, "workspace_id": workspace_id, "seq": seq}
        yield json.dumps(head)[:-1].encode() + b', "entries": {'
        for n, row in enumerate(rows):
            facts = json.dumps(with_checksum(row.key, facts_of(row)), ensure_ascii=False)
            yield f"{',' if n else ''}\n{json.dumps(row.key, ensure_ascii=False)}: {facts}".encode()

    replace_file(folder, names.MANIFEST, _sealed(parts()))


def _sealed(parts: Iterable[bytes]) -> Iterator[bytes]:
    checksum = 0
    for part in parts:
        checksum = zlib.crc32(part, checksum)
        yield part
    yield b'\n}, "crc32": "%08x"}\n' % checksum


def with_checksum(key: str, facts: dict[str, object]) -> dict[str, object]:
    """Return a manifest's facts of an entry with the checksum of them and the key."""
    text = json.dumps([key, facts], ensure_ascii=False).encode()
    return {**facts, "crc32": f"{zlib.crc32(text):08x}"}


def replace_file(folder: int, name: str, parts: Iterable[bytes]) -> None:
    """Write a file in whole and rename it into place."""
    temporary = names.TEMP_PREFIX + secrets.token_hex(8)
    handle = create_file(folder, temporary)
    try:
        with os.fdopen(handle, "wb", closefd=False) as file:
            file.writelines(parts)
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary, dir_fd=folder)
        raise
    finally:
        os.close(handle)


def _put_line(row: Row) -> bytes:
    seq = names.seq_of(row.file)
    return _line({"op": "put", "seq": seq, "scope": row.scope, "key": row.key, **facts_of(row)})


def _line(record: dict[str, object]) -> bytes:
    text = _compact(record).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def facts_of(row: Row) -> dict[str, object]:
    """Return what a copy of the index says of a row besides its scope and key."""
    return {
        "file": row.file,
        "content_type": row.content_type,
        "size": row.size,
        "sha256": row.sha256.hex(),
        "created_at": row.created_at,
        "updated_at": row.updated_at,
        "expires_at": row.expires_at,
        "ttl": row.ttl,
        "renew": row.renew,
        "version": row.version,
        "metadata": json.loads(row.metadata) if row.metadata != "{}" else {},
        "author": row.author,
        "face": row.face,
    }
