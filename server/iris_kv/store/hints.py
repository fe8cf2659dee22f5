"""What the recovery log and the manifests say of a store whose index is lost or damaged.

Both are written by `recovery`. Anything may stand in them: a line counts only with its checksum,
and only if the name of its file is the one that its scope, key and number make.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import zlib
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, cast

from iris_kv.errors import IrisError
from iris_kv.model import SCOPES, Scope
from iris_kv.store import names
from iris_kv.store.queries import Row
from iris_kv.store.recovery import RECOVERY, with_checksum

if TYPE_CHECKING:
    from collections.abc import Iterator

    from iris_kv.store.folders import CacheFolders

MAX_SEQ: Final = 1 << 53
"""No store gets so far; a planted number above it would leave none to count on with."""

_OPEN: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_LINE_START: Final = re.compile(rb"[0-9a-f]{8} \{")
_SEAL: Final = re.compile(rb'\n\}, "crc32": "([0-9a-f]{8})"\}\n\Z')
_TAIL_BYTES: Final = 256 * 1024
"""Over the longest line: 64 KiB of metadata, each character escaped at most twice, and the rest."""
_MOST: Final = 253_402_300_799_999
"""The last millisecond that RFC 3339 can write down."""
_AUTHORS: Final = frozenset({"canonical", "user", "agent"})
_FACES: Final = frozenset({"mcp", "rest", "cli", "library", "seeder"})


class Hints:
    """Which generations the copies of an index name, and which keys they say are gone."""

    def __init__(self, folders: CacheFolders) -> None:
        """Read them; what is not there or damaged says nothing."""
        self.rows: Final[dict[tuple[Scope, str], Row]] = {}
        """Every generation that is named, by scope and file."""
        self.last_seq = 0
        """The highest number that any of them has."""
        self.workspace_id = ""
        """The id in a whole manifest; empty: there is none."""
        self._restoring: list[range] = []
        self._gone: dict[tuple[Scope, str], int] = {}
        self._cleared: dict[Scope, int] = {}
        self._complete: dict[Scope, tuple[int, frozenset[str]]] = {}
        for line in _lines(folders.store):
            for record in _line_records(line):
                self._note(record)
        for scope in SCOPES:
            self._read_manifest(folders.scope(scope), scope)

    def gone_at(self, row: Row) -> int | None:
        """Return the number of the last change that is known to have removed a key behind a generation; None: none."""
        seq = seq_of(row)
        manifest_seq, keys = self._complete.get(row.scope, (0, frozenset()))
        unlisted_at = 0 if row.key in keys else manifest_seq
        gone = max(self._gone.get((row.scope, row.key), 0), self._cleared.get(row.scope, 0), unlisted_at)
        return gone if gone >= seq else None

    def is_of_restore(self, file: str) -> bool:
        """Tell whether a file was placed by a restore, whose index names it if it came to an end."""
        return any(names.seq_of(file) in numbers for numbers in self._restoring)

    def newest(self, scope: Scope) -> Iterator[Row]:
        """Return the newest generation of each key of a scope that was not removed since."""
        newest: dict[str, Row] = {}
        for row in sorted((row for (each, _), row in self.rows.items() if each == scope), key=seq_of):
            newest[row.key] = row
        return (row for row in newest.values() if self.gone_at(row) is None)

    def _note(self, record: dict[str, Any]) -> None:
        seq, scope, key = record.get("seq"), record.get("scope"), record.get("key")
        if not isinstance(seq, int) or not 0 < seq < MAX_SEQ:
            return
        first = record.get("first")
        if record.get("op") == "restore" and isinstance(first, int):
            self._restoring.append(range(first, seq + 1))
        if scope not in SCOPES:
            return
        self.last_seq = max(self.last_seq, seq)
        if "file" in record:
            self._add(row_of(scope, key, record))
        elif record.get("op") == "clear":
            self._cleared[scope] = max(seq, self._cleared.get(scope, 0))
        elif isinstance(key, str):
            self._gone[scope, key] = max(seq, self._gone.get((scope, key), 0))

    def _add(self, row: Row | None) -> None:
        if row is None:
            return
        known = self.rows.get((row.scope, row.file))
        if known is not None and known.expires_at is not None and row.expires_at is not None:
            # A manifest knows of reads that renewed the entry since its line was written.
            row = row._replace(expires_at=max(known.expires_at, row.expires_at))
        self.rows[row.scope, row.file] = row
        self.last_seq = max(self.last_seq, seq_of(row))

    def _read_manifest(self, folder: int, scope: Scope) -> None:
        text = _content(folder, names.MANIFEST)
        keys: set[str] = set()
        for row in _manifest_rows(scope, text):
            keys.add(row.key)
            self._add(row)
        seal = _SEAL.search(text)
        if seal is not None and int(seal[1], 16) == zlib.crc32(text[: seal.start()]):
            head = json.loads(text.split(b', "entries": {', 1)[0] + b"}")
            self._complete[scope] = head["seq"], frozenset(keys)
            self.last_seq = max(self.last_seq, head["seq"])
            self.workspace_id = head["workspace_id"]


def last_logged(folder: int) -> int:
    """Return the number of the last whole line of the recovery log in the `.store` folder; 0 if there is none."""
    for line in reversed(_content(folder, RECOVERY, last=_TAIL_BYTES).splitlines()):
        seqs = [record.get("seq") for record in _line_records(line)]
        known = [seq for seq in seqs if isinstance(seq, int) and seq < MAX_SEQ]
        if known:
            return max(known)
    return 0


def seq_of(row: Row) -> int:
    """Return the number of a generation."""
    return names.seq_of(row.file) or 0


def row_of(scope: Scope, key: object, facts: dict[str, Any]) -> Row | None:
    """Return the row that a record describes; None: it does not describe one that this store could have written."""
    try:
        row = Row(
            scope=scope,
            key=_text(key),
            file=_text(facts["file"]),
            content_type=_text(facts["content_type"]),
            size=_number(facts["size"]),
            sha256=bytes.fromhex(facts["sha256"]),
            created_at=_number(facts["created_at"]),
            updated_at=_number(facts["updated_at"]),
            expires_at=_number_or_none(facts["expires_at"]),
            accessed_at=None,
            ttl=_number_or_none(facts["ttl"]),
            renew=_number(facts["renew"]),
            version=_number(facts["version"]),
            metadata=_metadata(facts["metadata"]),
            author=facts["author"],
            face=facts["face"],
        )
        names.check_key(row.key)
        return row if is_possible(row) else None
    except (KeyError, TypeError, ValueError, IrisError):
        return None


def is_possible(row: Row) -> bool:
    """Tell whether this store could have written a row."""
    return (
        names.value_file(row.scope, row.key, seq_of(row), row.content_type) == row.file
        and 0 < seq_of(row) < MAX_SEQ
        and len(row.sha256) == hashlib.sha256().digest_size
        and row.author in _AUTHORS
        and row.face in _FACES
    )


def _lines(folder: int) -> Iterator[bytes]:
    with suppress(OSError), os.fdopen(os.open(RECOVERY, _OPEN, dir_fd=folder), "rb") as log:
        if stat.S_ISREG(os.fstat(log.fileno()).st_mode):
            yield from log


def _line_records(line: bytes) -> Iterator[dict[str, Any]]:
    """Return what stands in a line, also behind half of another one that a kill left."""
    for start in _LINE_START.finditer(line):
        text = line[start.end() - 1 :].removesuffix(b"\n")
        if zlib.crc32(text) == int(line[start.start() : start.start() + 8], 16):
            yield json.loads(text)
            return


def _manifest_rows(scope: Scope, text: bytes) -> Iterator[Row]:
    for line in text.splitlines()[1:]:
        with suppress(ValueError, AttributeError, KeyError, TypeError):
            ((key, facts),) = json.loads(b"{" + line.removesuffix(b",") + b"}").items()
            checksum = facts.pop("crc32")
            row = row_of(scope, key, facts)
            if row is not None and with_checksum(key, facts)["crc32"] == checksum:
                yield row


def _content(folder: int, name: str, last: int | None = None) -> bytes:
    """Return what stands in a plain file, or its end; nothing where there is none."""
    with suppress(OSError), os.fdopen(os.open(name, _OPEN, dir_fd=folder), "rb") as file:
        found = os.fstat(file.fileno())
        if stat.S_ISREG(found.st_mode):
            file.seek(0 if last is None else max(0, found.st_size - last))
            return file.read()
    return b""


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _number(value: object) -> int:
    if not isinstance(value, int) or not 0 <= value <= _MOST:
        raise TypeError
    return value


def _metadata(value: object) -> str:
    if not isinstance(value, dict) or not all(
        isinstance(each, str) for each in cast("dict[str, object]", value).values()
    ):
        raise TypeError
    return json.dumps(value, ensure_ascii=False)


def _number_or_none(value: object) -> int | None:
    return None if value is None else _number(value)
