"""The marked block that `prompt --install` keeps in a file that the host reads, such as AGENTS.md.

Removing it gives back the very bytes that were there before: the begin line says how many line
ends were put in front of it.
"""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path
from typing import Final

from iris_kv.errors import InvalidArgumentError, NotFoundError

_BEGIN: Final = "<!-- iris-kv:begin +{n}; written by `iris-kv prompt --install`, edits inside are lost -->"
_END: Final = "<!-- iris-kv:end -->"
_BEGIN_LINE: Final = re.compile(rb"^<!-- iris-kv:begin \+([0-2]);[^\r\n]*-->", re.MULTILINE)
_END_LINE: Final = re.compile(rb"^<!-- iris-kv:end -->(?:\r?\n)?", re.MULTILINE)


def install_block(path: Path, text: str) -> str:
    """Write or refresh the block in a file; tell which: `created`, `added`, `refreshed` or `unchanged`.

    Raises:
        InvalidArgumentError: The file has half a block, or more than one.
    """
    before = _content(path)
    held = _find(before or b"", path)
    ending = b"\r\n" if b"\r\n" in (before or b"") else b"\n"
    if held is not None:
        start, end, n = held
        after = before[:start] + _block(text, n, ending) + before[end:] if before else b""
        outcome = "unchanged" if after == before else "refreshed"
    else:
        old = before or b""
        n = 0 if not old else 1 if old.endswith((b"\n", b"\r")) else 2
        after = old + ending * n + _block(text, n, ending)
        outcome = "created" if before is None else "added"
    if outcome != "unchanged":
        _replace(path, after)
    return outcome


def uninstall_block(path: Path) -> None:
    """Take the block out of a file and leave every other byte; a file that held nothing else goes.

    Raises:
        NotFoundError: There is no such file, or no block in it.
    """
    before = _content(path)
    held = None if before is None else _find(before, path)
    if before is None or held is None:
        raise NotFoundError(
            f"{path.name} has no block of iris-kv", "only what --install wrote is taken out", "check the file's name"
        )
    start, end, n = held
    for _ in range(n):
        start -= 2 if before[:start].endswith(b"\r\n") else int(before[:start].endswith(b"\n"))
    after = before[:start] + before[end:]
    if after:
        _replace(path, after)
    else:
        path.unlink()


def _block(text: str, n: int, ending: bytes) -> bytes:
    lines = [_BEGIN.format(n=n), *text.splitlines(), _END]
    return b"".join(line.encode() + ending for line in lines)


def _find(content: bytes, path: Path) -> tuple[int, int, int] | None:
    """Return where the block starts and ends, and how many line ends were put before it."""
    begins, ends = list(_BEGIN_LINE.finditer(content)), list(_END_LINE.finditer(content))
    if not begins and not ends:
        return None
    if len(begins) != 1 or len(ends) != 1 or ends[0].start() < begins[0].end():
        raise InvalidArgumentError(
            f"{path.name} has {len(begins)} begin and {len(ends)} end lines of iris-kv",
            "there is one block, or none",
            "delete the lines between and with `<!-- iris-kv:begin` and `<!-- iris-kv:end -->` by hand, and try again",
        )
    return begins[0].start(), ends[0].end(), int(begins[0][1])


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InvalidArgumentError(
            f"{path.name} cannot be read ({error.strerror})", "it is a text file", "name another file"
        ) from None


def _replace(path: Path, content: bytes) -> None:
    """Write a file in whole and rename it into place; a link is followed, as it is the user's own."""
    target = path.resolve()
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.write_bytes(content)
        if target.exists():
            os.chmod(temporary, target.stat().st_mode & 0o7777)
        temporary.replace(target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InvalidArgumentError(
            f"{path.name} cannot be written ({error.strerror})", "its folder must exist and be writable", "mend that"
        ) from None
