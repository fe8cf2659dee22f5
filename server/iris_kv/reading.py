"""Bounded reads of stored values, whole or by JSON Pointer: for models between fence lines, or bare.

The tag of the fence lines carries 16 hex digits of the value's digest: a value cannot contain its
own fence, and not a byte of it is changed. What stands inside is data, not instructions.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable
from functools import partial
from typing import Final

from anyio import to_thread

from iris_kv.json_text import is_json, outline, part_at, pointers_into, quoted
from iris_kv.model import EntryInfo, short_digest, utc_text
from iris_kv.slices import (
    WINDOW_BYTES_PER_TOKEN,
    BlobSlice,
    Call,
    Slice,
    Wanted,
    blob_slice,
    check_offset,
    check_room,
    code_point_start,
    continuation,
    text_slice,
)
from iris_kv.store.base import Reader
from iris_kv.tokens import TokenCounter

_CODE_POINT_BYTES: Final = 4
_INLINE_BYTES: Final = 65_536
_CHUNK: Final = 1 << 20
_OUTLINED_BYTES: Final = 8 << 20
_PARTS_SHARE: Final = 16


async def stored_answer(
    reader: Reader, wanted: Wanted, counter: TokenCounter, call: Call, uri: str, *, pointer: str | None = None
) -> str:
    """Return a slice of a stored value, or of the part that a JSON Pointer names, between fence lines.

    Args:
        reader: The value.
        wanted: Which slice; its offset counts within the part.
        counter: What counts the tokens.
        call: How the caller asks for the next slice.
        uri: The resource that gives the bytes of a binary value.
        pointer: Names a part of a JSON value; None or `""` is all of it.

    Raises:
        InvalidArgumentError: The offset is outside, there is too little room, or a pointer into what is not JSON.
        NotFoundError: The pointer leads nowhere.
        ConflictError: The value is not the version that the caller goes on with.
    """
    info, budget = reader.info, wanted.budget
    if wanted.is_known(info.digest, f"{quoted(info.key)} in {info.scope}"):
        return check_room(_unchanged_note(info), budget, counter)
    source = await _Source.of(reader)
    if pointer:
        source = await source.part(pointer)
    elif not await source.is_text():
        return check_room(_binary_note(info, uri), budget, counter)
    framed = partial(_framed, source, call, counter, "")
    part = await source.text_slice(wanted, counter, framed)
    if part.end < part.size and wanted.offset == 0 and is_json(info.content_type):
        parts = await source.parts_note()
        if counter.at_most(parts) <= budget // _PARTS_SHARE:
            framed = partial(_framed, source, call, counter, parts)
            part = await source.text_slice(wanted, counter, framed)
    return framed(part)


async def bare_slice(
    reader: Reader, wanted: Wanted, counter: TokenCounter, note: Callable[[Slice], str]
) -> Slice | BlobSlice:
    """Return a slice of a stored value for a resource: of text where all of the value is text, else in base64.

    `note` returns what stands behind a slice; it is within the budget, too.

    Raises:
        InvalidArgumentError: The offset is outside, or there is too little room.
        ConflictError: The value is not the version that the caller goes on with.
    """
    info = reader.info
    wanted.is_known(info.digest, f"{quoted(info.key)} in {info.scope}")
    source = await _Source.of(reader)

    def framed(part: Slice) -> str:
        return part.text + note(part)

    if await source.is_text():
        return await source.text_slice(wanted, counter, framed)
    return await source.blob_slice(wanted, counter, framed)


def bytes_slice(value: bytes, wanted: Wanted, counter: TokenCounter, framed: Callable[[Slice], str]) -> Slice:
    """Return a slice of a text that is at hand; for a thread, as dense text takes a tenth of a second."""
    check_offset(wanted.offset, len(value))
    start = code_point_start(value, wanted.offset)
    window = value[start : start + wanted.budget * WINDOW_BYTES_PER_TOKEN]
    return text_slice(window, start, len(value), wanted.budget, counter, framed)


def is_text(data: bytes, *, whole: bool = True) -> bool:
    """Tell whether bytes are UTF-8 without NUL; where more follows, the last code point may be cut."""
    return _is_text_so_far(codecs.getincrementaldecoder("utf-8")(), data, whole)


class _Source:
    """A stored value, or a part of it, that slices are taken from; a small one is held in memory."""

    def __init__(self, reader: Reader, start: int, size: int, pointer: str, held: bytes | None = None) -> None:
        self.info = reader.info
        self.start = start
        self.size = size
        self.pointer = pointer
        self._reader = reader
        self._held = held

    @classmethod
    async def of(cls, reader: Reader) -> _Source:
        size = reader.info.size
        return cls(reader, 0, size, "", await reader.read(0, size) if size <= _INLINE_BYTES else None)

    async def read(self, offset: int, n: int) -> bytes:
        n = min(n, self.size - offset)
        if self._held is not None:
            return self._held[self.start + offset :][:n]
        return await self._reader.read(self.start + offset, n)

    async def part(self, pointer: str) -> _Source:
        """Return what a JSON Pointer names in the value."""
        value = await self.read(0, self.size)
        start, end = await to_thread.run_sync(part_at, value, pointer, self.info.content_type)
        return _Source(self._reader, start, end - start, pointer, value)

    async def is_text(self) -> bool:
        """Tell whether all of it is text: decided once for the whole, so that no walk changes its kind half-way."""
        if self._held is not None:
            return is_text(self._held)
        decoder = codecs.getincrementaldecoder("utf-8")()
        for offset in range(0, self.size, _CHUNK):
            chunk = await self.read(offset, _CHUNK)
            if not await to_thread.run_sync(_is_text_so_far, decoder, chunk, offset + _CHUNK >= self.size):
                return False
        return True

    async def text_slice(self, wanted: Wanted, counter: TokenCounter, framed: Callable[[Slice], str]) -> Slice:
        check_offset(wanted.offset, self.size)
        before = max(0, wanted.offset - _CODE_POINT_BYTES + 1)
        data = await self.read(before, wanted.budget * WINDOW_BYTES_PER_TOKEN)
        lead = code_point_start(data, wanted.offset - before)
        return await to_thread.run_sync(
            text_slice, data[lead:], before + lead, self.size, wanted.budget, counter, framed
        )

    async def blob_slice(self, wanted: Wanted, counter: TokenCounter, framed: Callable[[Slice], str]) -> BlobSlice:
        check_offset(wanted.offset, self.size)
        data = await self.read(wanted.offset, wanted.budget * WINDOW_BYTES_PER_TOKEN)
        return await to_thread.run_sync(blob_slice, data, wanted.offset, self.size, wanted.budget, counter, framed)

    async def parts_note(self) -> str:
        """Return which pointers lead to what stands directly in it; `""` where it is too long to look, or holds none."""
        if self.size > _OUTLINED_BYTES:
            return ""
        inside = await to_thread.run_sync(outline, await self.read(0, self.size))
        pointers = [] if inside is None else pointers_into(self.pointer, inside)
        if inside is None or not pointers:
            return ""
        kind = "elements" if inside.is_array else "members"
        return f". Or one of its {inside.size} {kind}: pointer=" + ", ".join(map(quoted, pointers))


def _is_text_so_far(decoder: codecs.IncrementalDecoder, data: bytes, is_last: bool) -> bool:  # noqa: FBT001 - run_sync passes no names
    try:
        return "\0" not in decoder.decode(data, is_last)
    except UnicodeDecodeError:
        return False


def _framed(source: _Source, call: Call, counter: TokenCounter, parts: str, part: Slice) -> str:
    return _fenced(source, part) + continuation(part, counter, call.at(part.end, source.info.digest), parts)


def _fenced(source: _Source, part: Slice) -> str:
    info = source.info
    tag = "stored-" + short_digest(info.digest).removeprefix("sha256:")
    written_by = f"{info.provenance.author} via {info.provenance.face}"
    facts = f'scope={info.scope} key={quoted(info.key)} written_by="{written_by}" type={quoted(info.content_type)}'
    if source.pointer:
        end = source.start + source.size
        facts += f" pointer={quoted(source.pointer)} part={source.start}-{end}/{info.size}"
    place = f"expires={_expiry(info)} bytes={part.start}-{part.end}/{part.size}"
    return f"<{tag} {facts} {place}>\n{part.text}\n</{tag}>"


def _expiry(info: EntryInfo) -> str:
    return "never" if info.expires_at is None else utc_text(info.expires_at)


def _unchanged_note(info: EntryInfo) -> str:
    return (
        f"[{info.scope}/{quoted(info.key)} is still {info.size} bytes, digest {short_digest(info.digest)},"
        f" expires {_expiry(info)}; without known_digest it is read]\n\nunchanged"
    )


def _binary_note(info: EntryInfo, uri: str) -> str:
    return (
        f"[{info.scope}/{quoted(info.key)} is binary: {info.size} bytes of {quoted(info.content_type)},"
        f" digest {short_digest(info.digest)}, expires {_expiry(info)}."
        f" Read the resource {uri} for its base64, or on the command line: iris-kv get --output FILE]"
    )
