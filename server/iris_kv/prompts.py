"""The system prompt: one source, two renderings, and the choice between them.

The source is plain Markdown in which one line, the marker, is replaced by the trigger table
(compact) or by the bodies of the instructions (full). All other bytes pass unchanged, so the two
cannot drift apart.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal, Protocol, cast

from iris_kv.errors import InvalidArgumentError
from iris_kv.instructions import Instruction, InstructionLibrary
from iris_kv.model import Frozen, digest_of
from iris_kv.tokens import estimate

Variant = Literal["compact", "full"]
VARIANTS: Final[tuple[Variant, ...]] = ("compact", "full")
MARKER: Final = b"<!-- iris:instructions -->"
"""Where the trigger table or the bodies go; with `max_tokens=900` before the end, the table may take as many."""

TABLE_TOKENS: Final = 300
"""The trigger table in the compact prompt: the four shipped instructions take 228 by the estimate."""
SERVER_TOKENS: Final = 232
"""By the estimate, which lines of tags exceed by up to a thirteenth: 250 by the real tokenizer."""
SERVER_CHARS: Final = 2_048

_MARKER_LINE: Final = re.compile(rb"[ \t]*<!-- iris:instructions(?: max_tokens=(\d{1,5}))? -->(?=\s*\Z)")
_SHORT_CHARS: Final = 80
_MAX_SOURCE_BYTES: Final = 5_000_000
_RULE: Final = (
    "Before you start a task of a kind listed here, call `get_instruction` with its tag and follow what it"
    " returns. Call it again after your context was compacted."
)
_SERVER_RULE: Final = (
    "Instructions for kinds of task are kept here, not in your prompt. Do not start such a task before you have"
    " called get_instruction with its tag; call it again after your context was compacted. Tags:"
)
_SERVER_CACHE: Final = (
    "Start work with get_project_summary. Look with get_artifact before you redo costly work; keep such results"
    " with put_artifact."
)
_MORE: Final = "More exist: call `list_instructions` with words of your task."

_log = logging.getLogger(__name__)


class Prompt(Frozen):
    """A rendered system prompt, and why it is this one."""

    variant: Variant
    reason: str
    """Such as `argument`, `default` or `environment USE_KV_CACHE_PROMPT`."""
    text: str
    digest: str


class PromptSource:
    """The file that the prompt is rendered from; a broken edit keeps the last good one."""

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            InvalidArgumentError: It cannot be read, or has no marker line.
        """
        self._path = path
        self._seen: tuple[int, int] | None = None
        self.error: str | None = None
        self.before = b""
        """What stands before the last marker line; those before it are text like any other."""
        self.after = b""
        self.table_tokens = TABLE_TOKENS
        """What the trigger table may take, by the estimate."""
        self._read()

    def refresh(self) -> bool:
        """Read the file again if it changed; tell whether the prompt changed."""
        held = self.before, self.after, self.table_tokens
        try:
            self._read()
            self.error = None
        except InvalidArgumentError as error:
            self.error = str(error)
        return held != (self.before, self.after, self.table_tokens)

    def _read(self) -> None:
        try:
            found = os.stat(self._path)
            seen = found.st_mtime_ns, found.st_size
            if seen == self._seen and self.error is None:
                return
            raw = self._path.read_bytes() if found.st_size <= _MAX_SOURCE_BYTES else b""
        except OSError as error:
            raise self._bad(f"cannot be read ({error.strerror})") from None
        self._take(raw)
        self._seen = seen

    def _take(self, raw: bytes) -> None:
        lines = raw.splitlines(keepends=True)
        places = [number for number, line in enumerate(lines) if _MARKER_LINE.match(line)]
        if not places:
            raise self._bad("has no marker line")
        try:
            raw.decode()
        except UnicodeDecodeError:
            raise self._bad("is not UTF-8") from None
        line = lines[places[-1]]
        marker = cast("re.Match[bytes]", _MARKER_LINE.match(line))
        self.before = b"".join(lines[: places[-1]])
        self.after = line[marker.end() :] + b"".join(lines[places[-1] + 1 :])
        self.table_tokens = TABLE_TOKENS if marker[1] is None else int(marker[1])

    def _bad(self, problem: str) -> InvalidArgumentError:
        return InvalidArgumentError(
            f"the prompt source {self._path.name!r} {problem}",
            f"it is UTF-8 of at most {_MAX_SOURCE_BYTES} bytes with a line {MARKER.decode()!r}",
            "mend the file",
        )


class PromptSelector:
    """Chooses and renders the system prompt.

    `compact` may be set while the server runs: the next fetch follows it.
    """

    def __init__(self, source: PromptSource, library: InstructionLibrary, *, compact: bool, reason: str) -> None:
        """Choose `compact` or not by default, for the reason given."""
        self._source = source
        self._library = library
        self._compact = compact
        self._reason = reason

    @property
    def reason(self) -> str:
        """Why `compact` is what it is."""
        return self._reason

    @property
    def compact(self) -> bool:
        """Whether the compact prompt is served where no argument asks for one."""
        return self._compact

    @compact.setter
    def compact(self, value: bool) -> None:
        self._compact = value
        self._reason = "set while running"

    def refresh(self) -> bool:
        """Read the source again if it changed; tell whether the prompt changed."""
        return self._source.refresh()

    @property
    def source_state(self) -> tuple[bytes, bytes]:
        """The source around the marker line; with the instructions it decides every rendering."""
        return self._source.before, self._source.after

    @property
    def error(self) -> str | None:
        """What is wrong with the source's last edit; the last good one is served."""
        return self._source.error

    def select(self, variant: str | None = None) -> Prompt:
        """Return the prompt that an argument asks for, else the configured one.

        Raises:
            InvalidArgumentError: There is no such variant.
        """
        if variant is None:
            chosen: Variant = "compact" if self._compact else "full"
            reason = self._reason
        else:
            chosen, reason = check_variant(variant), "argument"
        text = self.render(chosen)
        _log.info("prompt variant=%s reason=%r", chosen, reason)
        return Prompt(variant=chosen, reason=reason, text=text, digest=digest_of(text.encode()))

    def render(self, variant: Variant) -> str:
        """Return the text of a variant."""
        instructions = self._library.instructions
        table_tokens = self._source.table_tokens
        middle = trigger_table(instructions, table_tokens) if variant == "compact" else _bodies(instructions)
        return (self._source.before + middle.encode() + self._source.after).decode()

    def server_instructions(self) -> str:
        """Return what a client shows the model in `initialize` and `server/discover`."""
        return server_instructions(self._library.instructions)


def server_instructions(instructions: Sequence[Listed]) -> str:
    """Return the rule and the trigger table within the budget of server instructions."""
    rest = estimate(_SERVER_RULE + _SERVER_CACHE)
    return _within_chars(trigger_lines(instructions, SERVER_TOKENS - rest, essentials=False))


def check_variant(variant: str) -> Variant:
    """Return a variant's name.

    Raises:
        InvalidArgumentError: There is no such variant.
    """
    for known in VARIANTS:
        if variant == known:
            return known
    raise InvalidArgumentError(f"unknown prompt variant {variant!r}", "compact or full", "take one of the two")


class Listed(Protocol):
    """What the trigger table says of an instruction."""

    @property
    def tag(self) -> str:
        """See `Instruction`."""
        ...

    @property
    def description(self) -> str:
        """See `Instruction`."""
        ...

    @property
    def essentials(self) -> str:
        """See `Instruction`."""
        ...


def trigger_table(instructions: Sequence[Listed], max_tokens: int = TABLE_TOKENS) -> str:
    """Return what stands in the compact prompt in place of the marker; `""` without instructions."""
    lines = trigger_lines(instructions, max_tokens, essentials=True)
    return "## Instructions\n\n" + _RULE + "\n\n" + "\n".join(lines) if lines else ""


def trigger_lines(instructions: Sequence[Listed], max_tokens: int, *, essentials: bool) -> list[str]:
    """Return the trigger table, cut to what fits by an estimate that is the same in every process.

    Each line has a tag and when to use it, with `essentials` also its two rules where there is room
    for them. Where there is no room for all lines, they get shorter, and the rest is left to a search.
    """
    lines = [_line(instruction) for instruction in instructions]
    left = max_tokens - estimate("\n".join(lines))
    if left < 0:
        shorter = [_line(instruction, _SHORT_CHARS) for instruction in instructions]
        return _fitting(shorter, max_tokens)
    for at, instruction in enumerate(instructions if essentials else ()):
        longer = _full_line(instruction)
        cost = estimate(longer) - estimate(lines[at])
        if cost <= left:
            lines[at], left = longer, left - cost
    return lines


def _fitting(lines: Sequence[str], max_tokens: int) -> list[str]:
    """Return the lines that fit, all of them or with a last line that says how to find the rest."""
    if estimate("\n".join(lines)) <= max_tokens:
        return list(lines)
    left = max_tokens - estimate("\n" + _MORE)
    kept: list[str] = []
    for line in lines:
        cost = estimate(line + "\n")
        # One that is too long for what is left does not hide those behind it.
        if cost <= left:
            kept.append(line)
            left -= cost
    return [*kept, _MORE]


def _full_line(instruction: Listed) -> str:
    always = f" Always: {one_line(instruction.essentials)}" if instruction.essentials else ""
    return _line(instruction) + always


def _line(instruction: Listed, most_chars: int = 300) -> str:
    return f"- {instruction.tag}: {one_line(instruction.description, most_chars)}"


def one_line(text: str, limit: int = 300) -> str:
    """Return a text as one line of at most `limit` characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def _bodies(instructions: Sequence[Instruction]) -> str:
    if not instructions:
        return ""
    parts = [instruction.body.decode().strip("\n") for instruction in instructions]
    return "## Instructions\n\nFollow the part that fits the task.\n\n" + "\n\n".join(parts)


def _within_chars(lines: Sequence[str]) -> str:
    kept = list(lines)
    while True:
        text = "\n".join([_SERVER_RULE, *kept, _SERVER_CACHE])
        if len(text) <= SERVER_CHARS or not kept:
            return text
        kept = [*kept[:-2], _MORE] if kept[-1] == _MORE else [*kept[:-1], _MORE]
