"""Bounded reads: every answer stays within its token budget, and says how to go on.

An offset counts bytes of the stored value. A slice starts and ends between code points, so
walking the slices gives exactly the stored bytes. Values come back between fence lines whose tag
carries 16 hex digits of the value's digest: a value cannot contain its own fence, and not a byte
of it is changed. What stands inside is data, not instructions.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Final

from anyio import to_thread

from iris_kv.errors import InvalidArgumentError
from iris_kv.instructions import Instruction, InstructionLibrary, LibraryError, Section
from iris_kv.model import EntryInfo, Frozen, short_digest, utc_text
from iris_kv.store.base import Reader
from iris_kv.tokens import WORST_BYTES_PER_TOKEN, TokenCounter

DEFAULT_TOKENS: Final = 8_000
MAX_TOKENS: Final = 20_000

_WINDOW_BYTES_PER_TOKEN: Final = 8
_SLACK_TOKENS: Final = 24
_CODE_POINT_BYTES: Final = 4


class Slice(Frozen):
    """A part of a text, by bytes of the whole."""

    text: str
    start: int
    end: int
    size: int
    """The length of the whole, in bytes."""

    @property
    def is_whole(self) -> bool:
        """Whether this is all there is."""
        return self.start == 0 and self.end == self.size


class BlobSlice(Frozen):
    """A part of a binary value."""

    data: bytes
    start: int
    size: int

    @property
    def base64(self) -> str:
        """Return the bytes in base64."""
        return base64.b64encode(self.data).decode("ascii")


def check_tokens(max_tokens: int | None) -> int:
    """Return the budget of an answer, in tokens.

    Raises:
        InvalidArgumentError: It is below 1; one above the cap is cut to the cap.
    """
    if max_tokens is None:
        return DEFAULT_TOKENS
    if max_tokens < 1:
        raise InvalidArgumentError(
            f"max_tokens is {max_tokens}", f"1 to {MAX_TOKENS}; the default is {DEFAULT_TOKENS}", "give more"
        )
    return min(max_tokens, MAX_TOKENS)


def check_offset(offset: int, size: int) -> None:
    """Refuse an offset outside the value.

    Raises:
        InvalidArgumentError: It is negative or behind the end.
    """
    if not 0 <= offset <= size:
        raise InvalidArgumentError(
            f"offset {offset} is outside the value of {size} bytes",
            f"0 to {size}, counted in bytes",
            "take the offset that the answer before this one named",
        )


async def stored_answer(
    reader: Reader, offset: int, max_tokens: int | None, counter: TokenCounter, continue_with: str
) -> str:
    """Return a slice of a stored value between its fence lines.

    Args:
        reader: The value.
        offset: Where to start, in bytes.
        max_tokens: The budget of the whole answer; None takes the default.
        counter: What counts the tokens.
        continue_with: How the caller asks for the next slice; `{offset}` is filled in.
    """
    info = reader.info
    check_offset(offset, info.size)

    def framed(part: Slice) -> str:
        return _fenced(info, part) + _continuation(part, counter, continue_with)

    budget = check_tokens(max_tokens)
    blank = Slice(text="", start=info.size, end=info.size - 1, size=info.size)
    start, window = await _window(reader, offset, budget)
    if not is_text(window, whole=start + len(window) >= info.size):
        return _binary_note(info)
    room = budget - _cost(framed, blank, counter)
    return framed(await to_thread.run_sync(_cut, window, start, info.size, room, counter))


def instruction_answer(
    instruction: Instruction,
    section: Section | None,
    offset: int,
    counter: TokenCounter,
    *,
    degraded: str | None,
    max_tokens: int | None = None,
) -> str:
    """Return an instruction, or one of its sections, behind one header line; for a thread, as 1 MB takes seconds.

    `offset` counts bytes of the section asked for, or of the body. `degraded` says why the store
    could not answer, if it could not: the library's text is the same.
    """
    body = instruction.body if section is None else instruction.body[section.start : section.end]
    check_offset(offset, len(body))
    asked = "" if section is None else f', section="{section.slug}"'
    header = instruction_header(instruction, counter, degraded)

    def framed(part: Slice) -> str:
        call = f'get_instruction(tag="{instruction.tag}"{asked}, offset={{offset}})'
        return header + "\n\n" + part.text + _continuation(part, counter, call)

    budget = check_tokens(max_tokens)
    blank = Slice(text="", start=len(body), end=len(body) - 1, size=len(body))
    start = _code_point_start(body, offset)
    window = body[start : start + budget * _WINDOW_BYTES_PER_TOKEN]
    return framed(_cut(window, start, len(body), budget - _cost(framed, blank, counter), counter))


def instruction_header(instruction: Instruction, counter: TokenCounter, degraded: str | None) -> str:
    """Return the one line that says what an instruction is: tag, version, origin, digest, tokens, sections."""
    slugs = ", ".join(section.slug for section in instruction.sections if section.level <= _HEADER_LEVEL)
    parts = [
        f"tag={instruction.tag}",
        f"version={instruction.version or 'none'}",
        f"origin={instruction.origin}",
        f"digest={short_digest(instruction.digest)}",
        f"tokens={'' if counter.exact else '~'}{instruction.tokens}",
    ]
    if degraded is not None:
        parts.append(f"degraded={degraded}")
    line = f"[{' '.join(parts)} sections={slugs}"
    return line[:_HEADER_CHARS] + ("…]" if len(line) > _HEADER_CHARS else "]")


def instruction_list(library: InstructionLibrary, query: str | None, counter: TokenCounter) -> str:
    """Return the instructions that match a query, or all: tag, tokens and when to use it, one a line.

    Stays within the default budget; what does not fit is left to a narrower query.
    """
    found = library.instructions if query is None else library.matching(query)
    about = "~" if not counter.exact else ""
    lines = [f"{each.tag} ({about}{each.tokens} tokens): {each.description}" for each in found]
    if not lines:
        lines = [f"no instruction matches {quoted((query or '')[:_QUERY_CHARS])}; leave the query out to see all"]
    errors = [f"error in {error.file}: {error.problem}" for error in library.errors]
    below = bounded_lines(errors, counter, "mend these first", DEFAULT_TOKENS // 4) if errors else ""
    above = bounded_lines(
        lines, counter, "narrow them with a query of several words", DEFAULT_TOKENS - counter.at_most(below)
    )
    return f"{above}\n{below}" if below else above


def bounded_lines(lines: Sequence[str], counter: TokenCounter, todo: str, max_tokens: int = DEFAULT_TOKENS) -> str:
    """Return the lines that fit, one below the other; if some do not, a last one says how many and what to do."""
    left = max_tokens - _SLACK_TOKENS * 2
    kept: list[str] = []
    for line in lines:
        left -= counter.at_most(line + "\n")
        if left < 0:
            kept.append(f"[{len(lines) - len(kept)} more lines do not fit; {todo}]")
            break
        kept.append(line)
    return "\n".join(kept)


def fitting_errors(errors: Sequence[LibraryError], counter: TokenCounter) -> tuple[LibraryError, ...]:
    """Return the first errors that leave room for the rest of an answer that says each of them twice."""
    costs = accumulate(2 * counter.at_most(f"{error.file} {error.problem}") + _ERROR_TOKENS for error in errors)
    return tuple(error for error, cost in zip(errors, costs, strict=True) if cost <= DEFAULT_TOKENS // 2)


_HEADER_LEVEL: Final = 2
_HEADER_CHARS: Final = 1_500
_QUERY_CHARS: Final = 200
_ERROR_TOKENS: Final = 30


async def blob_slice(reader: Reader, offset: int, max_tokens: int | None) -> BlobSlice:
    """Return a part of a binary value whose base64 stays within the budget, at 1.4 bytes a token."""
    check_offset(offset, reader.info.size)
    n = int(check_tokens(max_tokens) * WORST_BYTES_PER_TOKEN) // 4 * 3
    return BlobSlice(data=await reader.read(offset, max(n, 3)), start=offset, size=reader.info.size)


async def text_slice(reader: Reader, offset: int, max_tokens: int | None, counter: TokenCounter) -> Slice | None:
    """Return a bare slice of a text value, without fence; None where the value is binary."""
    check_offset(offset, reader.info.size)
    budget = check_tokens(max_tokens)
    start, window = await _window(reader, offset, budget)
    if not is_text(window, whole=start + len(window) >= reader.info.size):
        return None
    return await to_thread.run_sync(_cut, window, start, reader.info.size, budget, counter)


def bytes_slice(value: bytes, offset: int, max_tokens: int | None, counter: TokenCounter) -> Slice:
    """Return a bare slice of a text that is at hand; for a thread, as dense text takes a tenth of a second."""
    check_offset(offset, len(value))
    budget = check_tokens(max_tokens)
    start = _code_point_start(value, offset)
    return _cut(value[start : start + budget * _WINDOW_BYTES_PER_TOKEN], start, len(value), budget, counter)


def is_text(data: bytes, *, whole: bool = True) -> bool:
    """Tell whether bytes are UTF-8 without NUL; where more follows, the last code point may be cut."""
    if b"\0" in data:
        return False
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return not whole and error.reason == "unexpected end of data"
    return True


def quoted(text: str) -> str:
    """Return a text on one line in double quotes, with everything escaped that is not plainly visible."""
    return json.dumps(text, ensure_ascii=not text.isprintable())


def _fenced(info: EntryInfo, part: Slice) -> str:
    tag = "stored-" + short_digest(info.digest).removeprefix("sha256:")
    written_by = f"{info.provenance.author} via {info.provenance.face}"
    facts = f'scope={info.scope} key={quoted(info.key)} written_by="{written_by}" type={quoted(info.content_type)}'
    expires = "never" if info.expires_at is None else utc_text(info.expires_at)
    return f"<{tag} {facts} expires={expires} bytes={part.start}-{part.end}/{info.size}>\n{part.text}\n</{tag}>"


def _continuation(part: Slice, counter: TokenCounter, call: str) -> str:
    if part.end == part.size:
        return ""
    how = "" if counter.exact else "; cut at an assumed 1.4 bytes a token, as no tokenizer is installed"
    return f"\n\n[bytes {part.start}-{part.end} of {part.size}{how}. Next: {call.replace('{offset}', str(part.end))}]"


def _binary_note(info: EntryInfo) -> str:
    expires = "never" if info.expires_at is None else utc_text(info.expires_at)
    return (
        f"[{info.scope}/{quoted(info.key)} is binary: {info.size} bytes of {quoted(info.content_type)},"
        f" digest {short_digest(info.digest)}, expires {expires}."
        " Read it as a resource, which gives base64, or with the command line: iris-kv get --output FILE]"
    )


def _cost(framed: Callable[[Slice], str], blank: Slice, counter: TokenCounter) -> int:
    """Return the tokens of everything around a slice, with room for longer numbers."""
    return counter.at_most(framed(blank)) + _SLACK_TOKENS


def _cut(window: bytes, start: int, size: int, budget: int, counter: TokenCounter) -> Slice:
    if budget < 1:
        raise InvalidArgumentError(
            "max_tokens leaves no room for the value beside its header",
            f"up to {MAX_TOKENS}; the default is {DEFAULT_TOKENS}",
            "give more, or leave it out",
        )
    decoded = window.decode("utf-8", "strict" if start + len(window) >= size else "ignore")
    text = counter.fitting(decoded, budget) or decoded[:1]
    return Slice(text=text, start=start, end=start + len(text.encode()), size=size)


async def _window(reader: Reader, offset: int, budget: int) -> tuple[int, bytes]:
    """Return the start of the code point that `offset` lies in, and enough bytes from there."""
    before = max(0, offset - _CODE_POINT_BYTES + 1)
    data = await reader.read(before, budget * _WINDOW_BYTES_PER_TOKEN)
    lead = _code_point_start(data, offset - before)
    return before + lead, data[lead:]


def _code_point_start(data: bytes, at: int) -> int:
    start = at
    while 0 < start < len(data) and start > at - _CODE_POINT_BYTES and data[start] & 0xC0 == 0x80:
        start -= 1
    return start
