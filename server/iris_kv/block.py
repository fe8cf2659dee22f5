"""The marked block that `prompt --install` keeps in a file that the host reads, such as AGENTS.md.

Removing it gives back the very bytes that were there before: the begin line says how many line
ends were put in front of it.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal, NamedTuple

from iris_kv.errors import InvalidArgumentError, NotFoundError

Outcome = Literal["created", "added", "refreshed", "unchanged"]

_BEGIN: Final = "<!-- iris-kv:begin +{n}; written by `iris-kv prompt --install`, edits inside are lost -->"
_END: Final = "<!-- iris-kv:end -->"
_LINE: Final = rb"(?:^|(?<=\A\xef\xbb\xbf))"
"""Where a line starts; an editor may have put a byte order mark in front of the first."""
_BEGIN_LINE: Final = re.compile(
    _LINE + rb"<!-- iris-kv:begin \+(?P<n>[0-2]);[^\r\n]*-->(?P<ending>\r?\n|\Z)", re.MULTILINE
)
_END_LINE: Final = re.compile(_LINE + rb"<!-- iris-kv:end -->(?:\r?\n|\Z)", re.MULTILINE)


class _Block(NamedTuple):
    start: int
    end: int
    n: int
    """How many line ends were put before it."""
    ending: bytes


def install_block(path: Path, text: str) -> Outcome:
    """Write or refresh the block in a file, and tell which.

    Raises:
        InvalidArgumentError: The file is no text, or has half a block, or more than one.
    """
    before = _content(path)
    old = before or b""
    held = _find(old, path)
    if held is None:
        after = old + _appended(old, text)
        outcome: Outcome = "created" if before is None else "added"
    else:
        after = old[: held.start] + _rendered(text, held.n, held.ending) + old[held.end :]
        outcome = "unchanged" if after == old else "refreshed"
    if outcome != "unchanged":
        _replace(path, after)
    return outcome


def uninstall_block(path: Path) -> None:
    """Take the block out of a file and leave every other byte; a file that held nothing else goes.

    Where text was added after the block, and the text before it did not end its last line, that
    line is ended, so that the two do not run together.

    Raises:
        NotFoundError: There is no such file, or no block in it.
    """
    content = _content(path) or b""
    held = _find(content, path)
    if held is None:
        raise NotFoundError(
            f"{path.name} has no block of iris-kv", "only what --install wrote is taken out", "check the file's name"
        )
    head, tail = content[: held.start], content[held.end :]
    for _ in range(held.n - 1 if held.n == 2 and tail else held.n):
        head = head.removesuffix(held.ending)
    # A link is the user's own, and what it leads to is emptied.
    if head or tail or path.is_symlink():
        _replace(path, head + tail)
    else:
        with _explained(path):
            path.unlink(missing_ok=True)


def _appended(old: bytes, text: str) -> bytes:
    ending = b"\r\n" if b"\r\n" in old else b"\n"
    n = 0 if not old else 1 if old.endswith(b"\n") else 2
    return ending * n + _rendered(text, n, ending)


def _rendered(text: str, n: int, ending: bytes) -> bytes:
    lines = [_BEGIN.format(n=n), *text.splitlines(), _END]
    return b"".join(line.encode() + ending for line in lines)


def _find(content: bytes, path: Path) -> _Block | None:
    begins, ends = list(_BEGIN_LINE.finditer(content)), list(_END_LINE.finditer(content))
    if not begins and not ends:
        return None
    if len(begins) != 1 or len(ends) != 1 or ends[0].start() < begins[0].end():
        raise InvalidArgumentError(
            f"{path.name} has {len(begins)} begin and {len(ends)} end lines of iris-kv",
            "there is one block, or none",
            "delete the lines between and with `<!-- iris-kv:begin` and `<!-- iris-kv:end -->` by hand, and try again",
        )
    return _Block(begins[0].start(), ends[0].end(), int(begins[0]["n"]), begins[0]["ending"])


def _content(path: Path) -> bytes | None:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InvalidArgumentError(
            f"{path.name} cannot be read ({error.strerror})", "it is a text file", "name another file"
        ) from None
    if b"\0" in content:
        raise InvalidArgumentError(
            f"{path.name} is binary, or text in UTF-16", "it is a text file in UTF-8", "convert it, or name another"
        )
    return content


def _replace(path: Path, content: bytes) -> None:
    """Write a file in whole and rename it into place; a link is followed, as it is the user's own."""
    target = path.resolve()
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    with _explained(path):
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if target.exists():
                os.chmod(temporary, target.stat().st_mode & 0o7777)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def _explained(path: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise InvalidArgumentError(
            f"{path.name} cannot be written ({error.strerror})", "its folder must exist and be writable", "mend that"
        ) from None
