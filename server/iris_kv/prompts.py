"""The system prompt: one source, two renderings, and the choice between them.

The source is plain Markdown in which one line, the marker, is replaced by the trigger table
(compact) or by the bodies of the instructions (full). All other bytes pass unchanged, so the two
cannot drift apart.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple, Protocol, cast

from iris_kv.errors import InvalidArgumentError, UnavailableError
from iris_kv.instructions import Instruction, InstructionLibrary
from iris_kv.model import digest_of
from iris_kv.regular import regular_bytes
from iris_kv.rollout import Choice, LiveRollout, Variant, check_variant
from iris_kv.tokens import estimate

MARKER: Final = b"<!-- iris:instructions -->"
"""Where the trigger table or the bodies go; with `max_tokens=900` before the end, the table may take as many."""

MAX_SOURCE_BYTES: Final = 5_000_000
"""Of the file that a prompt is rendered from."""
MAX_TABLE_TOKENS: Final = 99_999

TABLE_TOKENS: Final = 300
"""The trigger table in the compact prompt: the four shipped instructions take 228 by the estimate."""
SERVER_TOKENS: Final = 232
"""By the estimate, which lines of tags exceed by up to a thirteenth: 250 by the real tokenizer."""
SERVER_CHARS: Final = 2_048

_MARKER_LINE: Final = re.compile(rb"[ \t]*<!-- iris:instructions(?: max_tokens=(\d{1,5}))? -->(?=\s*\Z)")
_SHORT_CHARS: Final = (80, 48, 24)
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
_WHEN: Final = "When to use each: call `list_instructions` with words of your task."
_LEAD: Final = re.compile(r"use (?:this )?when (?:the task involves )?", re.IGNORECASE)
"""What the rule above the table says already."""

_log = logging.getLogger(__name__)


class Prompt(Choice):
    """A rendered system prompt, and why it is this one."""

    text: str
    digest: str


class SourceParts(NamedTuple):
    """What the file says."""

    before: bytes = b""
    """What stands before the last marker line; earlier ones are text like any other."""
    after: bytes = b""
    table_tokens: int = TABLE_TOKENS
    """What the trigger table may take, by the estimate."""


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
        self.parts = SourceParts()
        self._read()

    def refresh(self) -> bool:
        """Read the file again if it changed; tell whether the prompt changed."""
        held = self.parts
        try:
            self._read()
            self.error = None
        except InvalidArgumentError as error:
            self.error = str(error)
        return held != self.parts

    def _read(self) -> None:
        try:
            found = os.stat(self._path)
            seen = found.st_mtime_ns, found.st_size
            if seen == self._seen and self.error is None:
                return
            raw = regular_bytes(self._path, MAX_SOURCE_BYTES)
        except ValueError as error:
            raise self._bad(str(error)) from None
        except OSError as error:
            raise self._bad(f"cannot be read ({error.strerror})") from None
        self.parts = self._taken_apart(raw)
        self._seen = seen

    def _taken_apart(self, raw: bytes) -> SourceParts:
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
        before, after = b"".join(lines[: places[-1]]), b"".join(lines[places[-1] + 1 :])
        return SourceParts(before, line[marker.end() :] + after, int(marker[1] or TABLE_TOKENS))

    def _bad(self, problem: str) -> InvalidArgumentError:
        return InvalidArgumentError(
            f"the prompt source {self._path.name!r} {problem}",
            f"it is UTF-8 of at most {MAX_SOURCE_BYTES} bytes with a line {MARKER.decode()!r}",
            "mend the file",
        )


class PromptSelector:
    """Chooses and renders the system prompt.

    `compact`, the flag, may be set while the server runs: the next fetch follows it.
    """

    def __init__(self, source: Path, library: InstructionLibrary, rollout: LiveRollout, *, label: str = "") -> None:
        """Render a file with the instructions of a library, and choose as the rollout says.

        A file that cannot be read yet is read once it can; until then rendering says why it fails.
        `label` tells copies of this prompt from those of other sources; `""` is the shipped one.
        """
        self.label: Final = label
        self._path = source
        self._source: PromptSource | None = None
        self._unread: InvalidArgumentError | None = None
        self._told: str | None = None
        self._library = library
        self._rollout = rollout
        self.refresh()

    @property
    def compact(self) -> bool:
        """The flag: whether compact is served to whom the rollout gives it; without it all get full."""
        return self._rollout.flag[0]

    @compact.setter
    def compact(self, value: bool) -> None:
        self._rollout.set_flag(compact=value)

    def refresh(self) -> bool:
        """Read the source again if it changed; tell whether the prompt changed."""
        self._rollout.read()
        changed = self._first_read() if self._source is None else self._source.refresh()
        error = self._source_error
        if error is not None and error != self._told:
            _log.error("the prompt source is broken: %s", error)
        self._told = error
        return changed

    def _first_read(self) -> bool:
        try:
            self._source, self._unread = PromptSource(self._path), None
        except InvalidArgumentError as error:
            self._unread = error
        return self._unread is None

    @property
    def is_readable(self) -> bool:
        """Whether there is a source to render, be it an earlier one than the file now holds."""
        return self._source is not None

    @property
    def source_parts(self) -> SourceParts:
        """The source around the marker line; with the instructions it decides every rendering."""
        return SourceParts() if self._source is None else self._source.parts

    @property
    def errors(self) -> tuple[str, ...]:
        """What is wrong with the last edits of source and rollout; the last good ones are in force."""
        error = self._source_error
        return self._rollout.errors if error is None else (error, *self._rollout.errors)

    @property
    def _source_error(self) -> str | None:
        if self._source is None:
            return str(self._unread)
        return self._source.error

    def choose(self, variant: str | None = None, subject: str | None = None) -> Choice:
        """Return which variant a subject gets now that asks for one, or for none.

        Raises:
            InvalidArgumentError: There is no such variant.
        """
        return self._rollout.choose(None if variant is None else check_variant(variant), subject)

    def select(self, variant: str | None = None, subject: str | None = None) -> Prompt:
        """Return the prompt that a subject gets now; it reads files, so it is called in a thread.

        Raises:
            InvalidArgumentError: There is no such variant.
            UnavailableError: The source was never readable.
        """
        choice = self.choose(variant, subject)
        text = self.render(choice.variant)
        _log.info("prompt variant=%s reason=%r", choice.variant, choice.shown)
        return Prompt(**dict(choice), text=text, digest=digest_of(text.encode()))

    def render(self, variant: Variant) -> str:
        """Return the text of a variant.

        Raises:
            UnavailableError: The source was never readable.
        """
        if self._unread is not None:
            # No other prompt in its place: a wrong one would be followed without anybody's notice.
            raise UnavailableError(self._unread.wrong, self._unread.allowed, "mend the file, or take out the setting")
        before, after, table_tokens = self.source_parts
        instructions = self._library.instructions
        middle = trigger_table(instructions, table_tokens) if variant == "compact" else _bodies(instructions)
        return (before + middle.encode() + after).decode()

    def server_instructions(self) -> str:
        """Return what a client shows the model in `initialize` and `server/discover`."""
        return server_instructions(self._library.instructions)

    def installed(self) -> str:
        """Return what a file of the host says, such as AGENTS.md: the rule, the trigger table with its rules, the cache.

        Raises:
            InvalidArgumentError: There are no instructions to name.
        """
        lines = trigger_lines(self._library.instructions, self.source_parts.table_tokens, essentials=True)
        if not lines:
            raise InvalidArgumentError(
                "there are no instructions, so there is no trigger table",
                "with a prompt of your own the shipped instructions are not served",
                "name yours with --instructions FOLDER, or put them into .iris/instructions",
            )
        return "\n".join([_SERVER_RULE, *lines, _SERVER_CACHE])


def server_instructions(instructions: Sequence[Listed]) -> str:
    """Return the rule and the trigger table within the budget of server instructions."""
    rest = estimate(_SERVER_RULE + _SERVER_CACHE)
    return _within_chars(trigger_lines(instructions, SERVER_TOKENS - rest, essentials=False))


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
        return _shorter(instructions, max_tokens)
    for at, instruction in enumerate(instructions if essentials else ()):
        longer = _full_line(instruction)
        cost = estimate(longer) - estimate(lines[at])
        if cost <= left:
            lines[at], left = longer, left - cost
    return lines


def named_in(text: str, instructions: Sequence[Listed]) -> int:
    """Return how many instructions a text with the trigger table names."""
    lines = [line.removeprefix("- ") for line in text.splitlines() if line.startswith("- ")]
    named = {tag for line in lines for tag in line.partition(":")[0].split(", ")}
    return sum(instruction.tag in named for instruction in instructions)


def _shorter(instructions: Sequence[Listed], max_tokens: int) -> list[str]:
    """Return lines that are short enough for all to fit, else as many bare tags as fit."""
    for chars in _SHORT_CHARS:
        lines = [_line(instruction, chars) for instruction in instructions]
        if estimate("\n".join(lines)) <= max_tokens:
            return lines
    left = max_tokens - estimate(f"- \n{_MORE}")
    # The estimate of a short text is rounded, which adds up over many.
    costs = itertools.accumulate(estimate(instruction.tag) + 2 for instruction in instructions)
    tags = [instruction.tag for instruction, cost in zip(instructions, costs, strict=True) if cost <= left]
    return ["- " + ", ".join(tags), _MORE if len(tags) < len(instructions) else _WHEN]


def _full_line(instruction: Listed) -> str:
    always = f" Always: {one_line(instruction.essentials)}" if instruction.essentials else ""
    return _line(instruction) + always


def _line(instruction: Listed, most_chars: int = 300) -> str:
    lead = _LEAD.match(instruction.description)
    return f"- {instruction.tag}: {one_line(instruction.description[lead.end() if lead else 0 :], most_chars)}"


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
