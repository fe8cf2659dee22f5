"""Conditional requests and ranges (RFC 9110, 13 and 14): what ETags and byte ranges ask for."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

from starlette.datastructures import Headers

from iris_kv.errors import ConflictError, ExpiredError, InvalidArgumentError, NotFoundError
from iris_kv.model import EntryInfo

_TAG: Final = r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"'
_TAGS: Final = re.compile(rf"[ \t,]*{_TAG}(?:[ \t]*,[ \t,]*{_TAG})*[ \t,]*")
_ONE_TAG: Final = re.compile(_TAG)
_DIGEST: Final = re.compile(r'"(sha256:[0-9a-f]{64})"')
_RANGE: Final = re.compile(r"bytes[ \t]*=[ \t]*([0-9]{0,18})[ \t]*-[ \t]*([0-9]{0,18})[ \t]*", re.IGNORECASE)
_MAX_CHARS: Final = 8_192


class Span(NamedTuple):
    """The bytes from `start` up to `end`."""

    start: int
    end: int


class UnsatisfiableError(Exception):
    """A range that starts behind the last byte."""


def etag(info: EntryInfo) -> str:
    """Return an entry's ETag: its digest in quotes."""
    return f'"{info.digest}"'


def is_unchanged(headers: Headers, info: EntryInfo) -> bool:
    """Tell whether `If-None-Match` names what a client would get.

    Raises:
        InvalidArgumentError: The header is malformed.
    """
    given = _given(headers, "if-none-match")
    if given is None:
        return False
    return given == "*" or etag(info) in [tag.removeprefix("W/") for tag in _tags(given, "If-None-Match")]


async def expected_digest(headers: Headers, current: Callable[[], Awaitable[EntryInfo]]) -> str | None:
    """Return what a write must find: a digest, `""` for nothing; None: anything.

    Args:
        headers: The request's.
        current: Tells what is known of the entry; asked only where several would do.

    Raises:
        InvalidArgumentError: A header is malformed, or they contradict one another.
        ConflictError: What is there is none of what `If-Match` names.
    """
    match, none_match = _given(headers, "if-match"), _given(headers, "if-none-match")
    if none_match is not None:
        if none_match != "*" or match is not None:
            raise InvalidArgumentError(
                "If-None-Match on a write, with an ETag or beside If-Match",
                "a write has If-None-Match: * (only if absent), or If-Match (only over that)",
                "send one of the two",
            )
        return ""
    return None if match is None else await _matched(match, current)


async def _matched(match: str, current: Callable[[], Awaitable[EntryInfo]]) -> str:
    tags = [] if match == "*" else _tags(match, "If-Match")
    # Weak tags never match here, and neither does what is no digest of ours.
    digests = [found[1] for tag in tags if (found := _DIGEST.fullmatch(tag))]
    if len(tags) == len(digests) == 1:
        return digests[0]
    try:
        there = (await current()).digest
    except (NotFoundError, ExpiredError):
        there = None
    if there is not None and (match == "*" or there in digests):
        return there
    raise ConflictError(
        "nothing is there" if there is None else f'the entry has the ETag "{there}"',
        f"the write was to happen only over If-Match: {match[:200]}",
        "read the entry, merge your change into it, and write again with its ETag",
    )


def asked_span(headers: Headers, info: EntryInfo) -> Span | None:
    """Return the bytes that `Range` asks for; None: all, as where `If-Range` names another version.

    What is malformed, in another unit, or several ranges at once is ignored, as the standard has it.

    Raises:
        UnsatisfiableError: There are no such bytes.
    """
    found = _RANGE.fullmatch(_given(headers, "range") or "")
    condition = _given(headers, "if-range")
    if found is None or (condition is not None and condition != etag(info)):
        return None
    first, last = found.groups()
    if not first:
        return _suffix(last, info.size)
    start = int(first)
    if last and int(last) < start:
        return None
    if start >= info.size:
        raise UnsatisfiableError
    return Span(start, min(int(last) + 1, info.size) if last else info.size)


def _suffix(last: str, size: int) -> Span | None:
    if last and not int(last):
        raise UnsatisfiableError
    # The last bytes of nothing are all there is, which no 206 can express.
    return Span(max(0, size - int(last)), size) if last and size else None


def _given(headers: Headers, name: str) -> str | None:
    lines = headers.getlist(name)
    return ", ".join(lines).strip(" \t") if lines else None


def _tags(given: str, name: str) -> list[str]:
    # A bound on the header, as a pattern over it goes back and forth.
    if len(given) > _MAX_CHARS or _TAGS.fullmatch(given) is None:
        raise InvalidArgumentError(
            f"{name} is {given[:200]!r}",
            "it is * or a list of ETags, which are in double quotes",
            'send the ETag of the last answer, such as "sha256:…", with its quotes',
        )
    return _ONE_TAG.findall(given)
