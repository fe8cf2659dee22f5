"""Parts of values that stay within a token budget: where they start and end, and how to go on.

An offset counts bytes. A slice starts and ends between code points, so walking the slices gives
exactly the bytes; each says of which version it is, so that a walk never mixes two.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from iris_kv.errors import ConflictError, InvalidArgumentError
from iris_kv.json_text import quoted
from iris_kv.model import Frozen, short_digest
from iris_kv.tokens import ASSUMPTION, TokenCounter

DEFAULT_TOKENS: Final = 8_000
MAX_TOKENS: Final = 20_000
WINDOW_BYTES_PER_TOKEN: Final = 8
"""How much of a value is looked at for each token; more bytes a token than this are rare."""

_SLACK_TOKENS: Final = 24
_CODE_POINT_BYTES: Final = 4


class Wanted(NamedTuple):
    """Which slice a caller wants, and which version of the value the caller has."""

    offset: int = 0
    max_tokens: int | None = None
    """The budget of the whole answer; None takes the default."""
    known_digest: str | None = None

    @property
    def budget(self) -> int:
        """Return the budget of the answer; see `check_tokens`."""
        return check_tokens(self.max_tokens)

    def is_known(self, digest: str, what: str) -> bool:
        """Tell whether the caller asks from the start and has this version already.

        Raises:
            ConflictError: The caller goes on with another version.
        """
        if not self.known_digest:
            return False
        matches = digest.startswith(self.known_digest)
        if self.offset > 0 and not matches:
            raise ConflictError(
                f"{what} has changed since the page before: its digest is {short_digest(digest)},"
                f" no longer {short_digest(self.known_digest)}",
                "pages of two versions do not belong together",
                "start again without offset and known_digest",
            )
        return matches and self.offset == 0


class Call(NamedTuple):
    """How a caller asks for more: a tool and the arguments that it repeats; None is left out."""

    tool: str
    arguments: Mapping[str, str | int | None]

    def also(self, **arguments: str | int | None) -> Call:
        """Return the call with more arguments."""
        return Call(self.tool, {**self.arguments, **arguments})

    def at(self, offset: int, digest: str) -> str:
        """Return the call for what starts at an offset of a version."""
        given = {**self.arguments, "offset": offset, "known_digest": short_digest(digest)}
        shown = [
            f"{name}={quoted(each) if isinstance(each, str) else each}"
            for name, each in given.items()
            if each is not None
        ]
        return f"{self.tool}({', '.join(shown)})"


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
    def end(self) -> int:
        """Return where it ends."""
        return self.start + len(self.data)

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


def check_room(text: str, budget: int, counter: TokenCounter) -> str:
    """Return an answer that cannot be cut.

    Raises:
        InvalidArgumentError: It does not fit into its budget.
    """
    if counter.at_most(text) > budget:
        raise _no_room()
    return text


def text_slice(
    window: bytes, start: int, size: int, budget: int, counter: TokenCounter, framed: Callable[[Slice], str]
) -> Slice:
    """Return as much of a text as fits with all that stands around it; for a thread, as it takes milliseconds.

    Args:
        window: The text's bytes from `start` on; more than will fit, or up to its end.
        start: Where the window starts in the whole; a code point starts there.
        size: The length of the whole, in bytes.
        budget: The tokens of the whole answer.
        counter: What counts them.
        framed: Returns the whole answer around a slice.

    Raises:
        InvalidArgumentError: What stands around it leaves no room.
    """
    is_last = start + len(window) >= size
    text = window.decode("utf-8", "strict" if is_last else "ignore")
    rest = Slice(text=text, start=start, end=size, size=size)
    if is_last and counter.at_most(framed(rest)) <= budget:
        return rest
    text = counter.fitting(text, _room(framed, size, budget, counter)) or text[:1]
    return Slice(text=text, start=start, end=start + len(text.encode()), size=size)


def blob_slice(
    window: bytes, start: int, size: int, budget: int, counter: TokenCounter, framed: Callable[[Slice], str]
) -> BlobSlice:
    """Return as much of a binary value as fits in base64; the arguments are those of `text_slice`."""
    blob = BlobSlice(data=window, start=start, size=size)
    encoded = blob.base64
    rest = Slice(text=encoded, start=start, end=size, size=size)
    if blob.end >= size and counter.at_most(framed(rest)) <= budget:
        return blob
    kept = len(counter.fitting(encoded, _room(framed, size, budget, counter))) // 4 * 3
    return BlobSlice(data=window[: max(kept, 3)], start=start, size=size)


def code_point_start(data: bytes, at: int) -> int:
    """Return where the code point starts that a position lies in."""
    start = at
    while 0 < start < len(data) and start > at - _CODE_POINT_BYTES and data[start] & 0xC0 == 0x80:
        start -= 1
    return start


def continuation(part: Slice, counter: TokenCounter, following: str, parts: str = "") -> str:
    """Return the line behind a slice that says how to go on; `""` behind the last.

    `following` says how to get the next slice, `parts` how to get a smaller part.
    """
    if part.end == part.size:
        return ""
    how = "" if counter.exact else f"; cut at {ASSUMPTION}"
    return f"\n\n[bytes {part.start}-{part.end} of {part.size}{how}. Next: {following}{parts}]"


def bounded_lines(lines: Sequence[str], counter: TokenCounter, todo: str, max_tokens: int = DEFAULT_TOKENS) -> str:
    """Return the lines that fit, one below the other; if some do not, a last one says how many and what to do.

    Raises:
        InvalidArgumentError: Not even that one fits.
    """
    left = max_tokens - counter.at_most(_more(len(lines), todo))
    kept: list[str] = []
    for line in lines:
        left -= counter.at_most(line + "\n")
        if left < 0:
            kept.append(_more(len(lines) - len(kept), todo))
            break
        kept.append(line)
    return check_room("\n".join(kept), max_tokens, counter)


def _more(n: int, todo: str) -> str:
    return f"[{n} more lines do not fit; {todo}]"


def shortened(text: str, counter: TokenCounter, max_tokens: int) -> str:
    """Return an error's text without the middle of what does not fit: its end, behind `; `, says what to do."""
    most = max_tokens * WINDOW_BYTES_PER_TOKEN
    text = text.encode("utf-8", "replace").decode()
    if len(text) <= most and counter.at_most(text) <= max_tokens:
        return text
    end = counter.fitting(text[text.rfind("; ") :][:most], max_tokens // 2)
    return f"{counter.fitting(text[:most], max_tokens - counter.at_most(end) - _SLACK_TOKENS)} […] {end}"


def _room(framed: Callable[[Slice], str], size: int, budget: int, counter: TokenCounter) -> int:
    """Return the tokens left for a slice, with some for where it meets what stands around it."""
    longest = Slice(text="", start=size, end=size - 1, size=size)
    room = budget - counter.at_most(framed(longest)) - _SLACK_TOKENS
    if room < 1:
        raise _no_room()
    return room


def _no_room() -> InvalidArgumentError:
    return InvalidArgumentError(
        "max_tokens leaves no room for the value beside its header",
        f"up to {MAX_TOKENS}; the default is {DEFAULT_TOKENS}",
        "give more, or leave it out",
    )
