"""Reading files that may be anything: a pipe, a device or a file without end does not stop the reader."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def regular_bytes(path: Path, most: int) -> bytes:
    """Return the bytes of a regular file, links followed.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no regular file, or has more than `most` bytes; the text says which.
    """
    with open(path, "rb", opener=_open_at_once) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("is not a regular file")
        raw = file.read(most + 1)
    if len(raw) > most:
        raise ValueError(f"has more than {most:,} bytes")
    return raw


def _open_at_once(path: str, flags: int) -> int:
    """Open a file; a pipe in its place does not make the reader wait for a writer."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
