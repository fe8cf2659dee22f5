"""JSON as it is written: whether a text is JSON, and where in it a JSON Pointer (RFC 6901) leads.

A part is found in one pass, without making the value: what does not lead there is skipped by the
parser of the standard library, which is C. Offsets count bytes of the UTF-8 text.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from iris_kv.errors import InvalidArgumentError, IrisError, NotFoundError

JSON: Final = "application/json"

_MOST_BYTES: Final = 16 << 20
"""A parser in C cannot be stopped, and keeps every other request waiting."""
_NEAREST: Final = 5
_NAMES_KEPT: Final = 1_000
_NAME_CHARS: Final = 80
_POINTER_CHARS: Final = 200
_LONE: Final = re.compile("[\ud800-\udfff]")
_INDEX: Final = re.compile(r"0|[1-9][0-9]{0,17}")

_SPACE: Final = r"[ \t\n\r]*+"
_SCALAR: Final = r'(?:"[^"\\\x00-\x1f]*+"|-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?|true|false|null)'
_STRIDE: Final = 256
_STRIDE_OF_SCALARS: Final = re.compile(rf"(?:{_SCALAR}{_SPACE},{_SPACE}){{{_STRIDE}}}+")
_START: Final = re.compile(_SPACE)
_COLON: Final = re.compile(rf"{_SPACE}:{_SPACE}")
_COMMA: Final = re.compile(rf"{_SPACE},{_SPACE}")
_MEMBERS_END: Final = re.compile(rf"{_SPACE}\}}")
_ELEMENTS_END: Final = re.compile(rf"{_SPACE}\]")


class Outline(NamedTuple):
    """What stands directly in an object or an array."""

    names: tuple[str, ...]
    """The first members of an object, as they are read; empty for an array."""
    size: int
    """How many members or elements there are."""
    is_array: bool


class _Missing(NamedTuple):
    """Why a pointer leads nowhere: what its first `depth` tokens lead to does not hold the next one."""

    depth: int
    inside: Outline | str
    """What is there; the kind of a value that holds nothing."""


class _Place(NamedTuple):
    """Where a value stands, in characters."""

    start: int
    end: int


def is_json(content_type: str) -> bool:
    """Tell whether a content type is JSON."""
    bare = content_type.split(";", 1)[0].strip()
    return bare == JSON or bare.endswith("+json")


def json_problem(value: bytes) -> str | None:
    """Return why bytes are not JSON in UTF-8, with or without a byte order mark; None: they are."""
    try:
        _DECODER.decode(value.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return str(error)
    return None


def json_of(value: Mapping[Any, Any] | Sequence[Any]) -> str:
    """Return the JSON text of what JSON was parsed to.

    Raises:
        InvalidArgumentError: A number is too large to be one, which the parser takes for infinite.
    """
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise InvalidArgumentError(
            "the value has a number that JSON cannot express (NaN, Infinity, or one as large as 1e999)",
            "numbers are finite, and up to some 1.8e308",
            "mend it, or send the value as text",
        ) from None


def quoted(text: str) -> str:
    """Return a text on one line in double quotes, with everything escaped that is not plainly visible."""
    return json.dumps(text, ensure_ascii=not text.isprintable())


def part_at(value: bytes, pointer: str, content_type: str) -> tuple[int, int]:
    """Return where the value that a pointer names starts and ends, in bytes; takes 0.1 s for 5 MB.

    `""` is all of it. Of members with one name the last counts. A byte order mark and the space around
    a value belong to no part.

    Raises:
        InvalidArgumentError: The pointer is malformed, or the value is not JSON.
        NotFoundError: The pointer leads nowhere; the text says what is there.
    """
    tokens = _tokens(pointer)
    if not tokens:
        return 0, len(value)
    if len(value) > _MOST_BYTES:
        raise InvalidArgumentError(
            f"pointer looks into values of at most {_MOST_BYTES:,} bytes, and this one has {len(value):,}",
            "a larger one is read by offset",
            "leave pointer out, or keep the value in several entries",
        )
    text, found = _searched(value, tokens, content_type)
    if isinstance(found, _Missing):
        raise _nothing_there(pointer, tokens, found)
    start = len(text[: found.start].encode())
    return start, start + len(text[found.start : found.end].encode())


def outline(value: bytes) -> Outline | None:
    """Return what stands directly in a JSON value; None where it is not JSON, or no object or array."""
    try:
        _, found = _searched(value, [None], JSON)
    except InvalidArgumentError:
        return None
    return found.inside if isinstance(found, _Missing) and isinstance(found.inside, Outline) else None


def pointers_into(pointer: str, inside: Outline) -> list[str]:
    """Return pointers to what stands directly at a pointer: the first members, or the first and the last element."""
    if inside.is_array:
        return [f"{pointer}/{index}" for index in dict.fromkeys((0, inside.size - 1)) if inside.size]
    # Half a surrogate pair cannot be sent back in a call.
    short = [name for name in inside.names if len(name) <= _NAME_CHARS and not _LONE.search(name)]
    return [f"{pointer}/{_escaped(name)}" for name in short[:_NEAREST]]


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


# Numbers are only looked at: parsed, one of a million digits takes minutes, and over 4,300 are refused.
_DECODER: Final = json.JSONDecoder(
    parse_int=len, parse_float=len, parse_constant=_refuse_constant, object_pairs_hook=len
)


def _tokens(pointer: str) -> list[str]:
    if pointer and (pointer[0] != "/" or re.search("~(?![01])", pointer)):
        raise InvalidArgumentError(
            f"pointer {_shown(pointer)} is no JSON Pointer",
            'it is "" for the whole or starts with /, as in "/rows/0/name"; in a name, ~ is written ~0 and / is ~1',
            "mend it",
        )
    return [token.replace("~1", "/").replace("~0", "~") for token in pointer.split("/")[1:]]


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _shown(pointer: str) -> str:
    return quoted(pointer[:_POINTER_CHARS] + "…" * (len(pointer) > _POINTER_CHARS))


def _searched(value: bytes, tokens: Sequence[str | None], content_type: str) -> tuple[str, _Place | _Missing]:
    """Return the text, and where in it the tokens lead; None names no member."""
    try:
        text = value.decode()
        start = _start(text, 1 if text.startswith("\ufeff") else 0)
        found, end = _follow(text, start, tokens, 0)
        if (rest := _start(text, end)) < len(text):
            raise json.JSONDecodeError("Extra data", text, rest)
    except (ValueError, RecursionError) as error:
        problem = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise InvalidArgumentError(
            f"pointer needs JSON, and this value of type {quoted(content_type)} does not parse: {problem}",
            "a value that is not JSON is read by offset",
            "leave pointer out",
        ) from None
    return text, found


def _start(text: str, at: int) -> int:
    match = _START.match(text, at)
    return at if match is None else match.end()


def _follow(text: str, at: int, tokens: Sequence[str | None], depth: int) -> tuple[_Place | _Missing, int]:
    """Return where the tokens from `depth` on lead from the value at `at`, and where that value ends."""
    if depth < len(tokens) and text.startswith("{", at):
        return _follow_member(text, at, tokens, depth)
    if depth < len(tokens) and text.startswith("[", at):
        return _follow_element(text, at, tokens, depth)
    _, end = _DECODER.raw_decode(text, at)
    return (_Place(at, end) if depth == len(tokens) else _Missing(depth, _kind(text[at]))), end


def _follow_member(text: str, at: int, tokens: Sequence[str | None], depth: int) -> tuple[_Place | _Missing, int]:
    found: _Place | _Missing | None = None
    names: list[str] = []
    size = 0
    at = _start(text, at + 1)
    while size or not text.startswith("}", at):
        if not text.startswith('"', at):
            raise json.JSONDecodeError("Expecting property name enclosed in double quotes", text, at)
        name, at = _DECODER.raw_decode(text, at)
        at = _behind(_COLON, text, at, "Expecting ':' delimiter")
        size += 1
        if name == tokens[depth]:
            found, at = _follow(text, at, tokens, depth + 1)
        else:
            _, at = _DECODER.raw_decode(text, at)
            if len(names) < _NAMES_KEPT:
                names.append(name)
        comma = _COMMA.match(text, at)
        if comma is None:
            break
        at = comma.end()
    end = _behind(_MEMBERS_END, text, at, "Expecting ',' delimiter")
    return found or _Missing(depth, Outline(tuple(dict.fromkeys(names)), size, is_array=False)), end


def _follow_element(text: str, at: int, tokens: Sequence[str | None], depth: int) -> tuple[_Place | _Missing, int]:
    found: _Place | _Missing | None = None
    token = tokens[depth] or ""
    wanted = int(token) if _INDEX.fullmatch(token) else -1
    size = stride_from = 0
    at = _start(text, at + 1)
    while size or not text.startswith("]", at):
        if size >= stride_from and not size <= wanted < size + _STRIDE:
            stride = _STRIDE_OF_SCALARS.match(text, at)
            if stride is not None:
                size, at = size + _STRIDE, stride.end()
                continue
            stride_from = size + 4 * _STRIDE
        if size == wanted:
            found, at = _follow(text, at, tokens, depth + 1)
        else:
            _, at = _DECODER.raw_decode(text, at)
        size += 1
        comma = _COMMA.match(text, at)
        if comma is None:
            break
        at = comma.end()
    end = _behind(_ELEMENTS_END, text, at, "Expecting ',' delimiter")
    return found or _Missing(depth, Outline((), size, is_array=True)), end


def _behind(pattern: re.Pattern[str], text: str, at: int, problem: str) -> int:
    match = pattern.match(text, at)
    if match is None:
        raise json.JSONDecodeError(problem, text, at)
    return match.end()


def _kind(first: str) -> str:
    return {'"': "a string", "t": "true", "f": "false", "n": "null"}.get(first, "a number")


def _nothing_there(pointer: str, tokens: Sequence[str], missing: _Missing) -> IrisError:
    above = "".join(f"/{_escaped(token)}" for token in tokens[: missing.depth])
    token, inside = tokens[missing.depth], missing.inside
    where = _shown(above) if above else "the value"
    if isinstance(inside, str):
        allowed = f"{where} is {inside}, which holds nothing"
    elif inside.is_array:
        allowed = f"{where} is an array of {inside.size}; its indexes count from 0"
    else:
        near = difflib.get_close_matches(token[:_NAME_CHARS], [name[:_NAME_CHARS] for name in inside.names], _NEAREST)
        ordered = sorted(inside.names, key=lambda name: name[:_NAME_CHARS] not in near)
        named = ", ".join(map(quoted, pointers_into(above, inside._replace(names=tuple(ordered)))))
        allowed = f"{where} has {inside.size} members" + (f", the nearest are {named}" if named else "")
    return NotFoundError(f"pointer {_shown(pointer)} leads nowhere", allowed, "take a pointer that is there")
