"""The last errors of servers, kept for `doctor`: a client shows a failed server only as disconnected."""

from __future__ import annotations

import json
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from iris_kv.model import Clock, Frozen, Timestamp, utc_text

KEPT: Final = 100
_TEXT_CHARS: Final = 2_000


class ServerError(Frozen):
    """One error of a server process."""

    at: Timestamp
    pid: int
    workspace: str
    text: str


def error_log_path() -> Path:
    """Return where the errors are kept: the user's state folder, as the workspace may be what is broken."""
    base = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    # Nothing is kept for a user without a home: no file can lie below the null device.
    return Path(base if os.path.isabs(base) else os.devnull) / "iris-kv" / "errors.jsonl"


class ErrorLog(logging.Handler):
    """A log handler that keeps the errors of one server in the user's state folder; best effort."""

    def __init__(self, path: Path, workspace: str, clock: Clock) -> None:
        """Append to the file at `path`."""
        super().__init__(logging.ERROR)
        self._path = path
        self._workspace = workspace
        self._clock = clock

    def emit(self, record: logging.LogRecord) -> None:
        """Append one error and forget all but the newest."""
        try:
            text = record.getMessage()
        except Exception:  # noqa: BLE001 - a bad format string must not end the server; logging reports it
            self.handleError(record)
            return
        if record.exc_info and record.exc_info[1] is not None:
            text += f" ({type(record.exc_info[1]).__name__}: {record.exc_info[1]})"
        line = {"at": self._clock.now_ms(), "pid": os.getpid(), "workspace": self._workspace}
        with suppress(OSError):
            self._append(json.dumps({**line, "text": text[:_TEXT_CHARS]}) + "\n")

    def _append(self, line: str) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(self._path, os.O_APPEND, line.encode())
        kept = self._path.read_bytes().splitlines(keepends=True)
        if len(kept) > 2 * KEPT:
            temporary = self._path.with_suffix(f".{os.getpid()}.tmp")
            _write(temporary, os.O_TRUNC, b"".join(kept[-KEPT:]))
            temporary.replace(self._path)


def last_errors(path: Path) -> tuple[ServerError, ...]:
    """Return the newest errors, oldest first; a damaged line is left out."""
    found: list[ServerError] = []
    with suppress(OSError):
        for line in path.read_text("utf-8", "replace").splitlines()[-KEPT:]:
            with suppress(ValueError):
                found.append(ServerError.model_validate_json(line))
    return tuple(found)


def described(error: ServerError) -> str:
    """Return an error as one line for people."""
    return f"{utc_text(error.at)} pid {error.pid} in {error.workspace}: {error.text}"


def _write(path: Path, flags: int, data: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | flags, 0o600)
    try:
        os.write(handle, data)
    finally:
        os.close(handle)
