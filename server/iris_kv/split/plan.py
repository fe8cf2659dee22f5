"""A prompt divided into a core and instructions, within a budget of tokens."""

from __future__ import annotations

import difflib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from iris_kv.errors import InvalidArgumentError, TooLargeError
from iris_kv.instruction_file import UNSEEN_RULE, UNSERVED_FILE, hidden_character, slug_of
from iris_kv.prompts import MAX_SOURCE_BYTES, MAX_TABLE_TOKENS, trigger_table
from iris_kv.split.division import Piece, Span, core_parts, pieces, sections, spans_of
from iris_kv.split.outline import Part, outline
from iris_kv.split.wording import plain, said_of, tag_of, unique
from iris_kv.tokens import TokenCounter

BUDGET: Final = 3_000
"""The tokens of the rendered core, where none is given."""

_LEAST_BUDGET: Final = 300
_LARGE_BYTES: Final = 100_000
_SHARE_OF_LARGE: Final = 0.12
"""A large prompt's core takes at most this share of its tokens, where no budget is given."""
_TABLE_SHARE: Final = 0.4
_LISTED_HEADINGS: Final = 30


@dataclass(frozen=True)
class PlannedInstruction:
    """What one instruction will say of itself, and its span."""

    tag: str
    description: str
    essentials: str
    span: Span
    titles: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """Which bytes of a source stay in the core, and which instruction has the others."""

    source: bytes
    budget: int
    """The most tokens that the rendered core may have."""
    table_tokens: int
    """The most that the trigger table may take of them."""
    core: tuple[Span, ...]
    core_titles: tuple[str, ...]
    """The headings of the sections that stay in the core."""
    instructions: tuple[PlannedInstruction, ...]

    @property
    def prompt(self) -> bytes:
        """The file `system.md`: the core's spans, each from a new line on, and the marker line."""
        return b"".join([*self.core_texts, self.marker])

    @property
    def core_texts(self) -> tuple[bytes, ...]:
        """The core's spans, each with a line end where the source has none."""
        return tuple(_ended(self.source[span.start : span.end], self.newline) for span in self.core)

    @property
    def marker(self) -> bytes:
        """The marker line, behind an empty one."""
        line = b"<!-- iris:instructions max_tokens=%d -->" % self.table_tokens
        return (self.newline if self.core else b"") + line + self.newline

    @property
    def newline(self) -> bytes:
        """How the source ends its lines."""
        return b"\r\n" if b"\r\n" in self.source else b"\n"

    def owner(self, at: int) -> PlannedInstruction | None:
        """Return the instruction that has a byte of the source; None: the core has it."""
        before = bisect_right(self.instructions, at, key=lambda each: each.span.start) - 1
        return self.instructions[before] if before >= 0 and at < self.instructions[before].span.end else None

    def rendered(self) -> str:
        """Return the compact prompt as it will be served."""
        empty = self.newline if self.core else b""
        table = trigger_table(self.instructions, self.table_tokens).encode()
        return b"".join([*self.core_texts, empty, table, self.newline]).decode()


def plan_split(source: bytes, counter: TokenCounter, *, budget: int | None = None, keep: Sequence[str] = ()) -> Plan:
    """Divide a prompt; the same source, arguments and counter give the same plan.

    Args:
        source: Markdown or plain text in UTF-8.
        counter: Counts the tokens.
        budget: The most tokens of the rendered core; None: 3,000, from 100 KB up 12 % of the
            source if that is less.
        keep: Titles or slugs of sections that stay in the core.

    Raises:
        InvalidArgumentError: The source cannot be split, a heading is not there, or what is to be
            kept does not fit into the budget; the text gives the figures.
        TooLargeError: The source has more than 5 MB.
    """
    text = _checked(source)
    limit = _limit(source, counter.count(text), budget)
    return _Planner(source, counter, limit).plan(keep)


class _Planner:
    def __init__(self, source: bytes, counter: TokenCounter, budget: int) -> None:
        self._source = source
        self._counter = counter
        self._budget = budget
        self._root = outline(source, lambda text: counter.count(text.decode()))
        self._said: dict[Span, tuple[str, str]] = {}

    def plan(self, keep: Sequence[str]) -> Plan:
        """Return the plan with the largest core that was found to fit."""
        kept = kept_parts(self._root, keep)
        room = self._budget
        while True:
            plan = self._with(core_parts(self._root, kept, room))
            over = self._over(plan)
            if over <= 0:
                return _checked_core(plan)
            if room < 0:
                raise _kept_too_much(plan, kept, self._enough(plan))
            room -= over

    def _over(self, plan: Plan) -> int:
        return self._counter.count(plan.rendered()) - plan.budget

    def _enough(self, plan: Plan) -> int:
        """Return a budget that a core has room in; with a larger one the trigger table takes more, too."""
        while (over := self._over(plan)) > 0:
            budget = plan.budget + over
            plan = replace(plan, budget=budget, table_tokens=_table_tokens(budget))
        return plan.budget

    def _with(self, parts: Sequence[Part]) -> Plan:
        core = spans_of(parts, self._source)
        return Plan(
            source=self._source,
            budget=self._budget,
            table_tokens=_table_tokens(self._budget),
            core=core,
            core_titles=tuple(plain(each.title) for part in parts for each in sections(part)),
            instructions=tuple(self._named(pieces(self._root, core, self._source))),
        )

    def _named(self, found: Sequence[Piece]) -> list[PlannedInstruction]:
        taken = {Path(UNSERVED_FILE).stem}
        named: list[PlannedInstruction] = []
        for number, piece in enumerate(found, 1):
            span = Span(piece.start, piece.end)
            tag = unique(tag_of(piece.titles, number), taken)
            taken.add(tag)
            named.append(PlannedInstruction(tag, *self._says(span, piece), span, piece.titles))
        return named

    def _says(self, span: Span, piece: Piece) -> tuple[str, str]:
        if span not in self._said:
            text = self._source[span.start : span.end]
            self._said[span] = said_of(text, piece.titles, piece.within)
        return self._said[span]


def kept_parts(root: Part, keep: Sequence[str]) -> list[Part]:
    """Return the sections with these titles or slugs, without those inside another one.

    Raises:
        InvalidArgumentError: A heading is not there; the text lists those there are.
    """
    known = list(sections(root))
    found: list[Part] = []
    for name in keep:
        fitting = [part for part in known if name == part.title or slug_of(plain(name)) == slug_of(plain(part.title))]
        if not fitting:
            every = list(dict.fromkeys(plain(part.title) for part in known))
            titles = list(dict.fromkeys([*difflib.get_close_matches(name, every, 5, 0.3), *every]))
            titles.sort(key=lambda title: name.casefold() not in title.casefold())
            more = f" and {len(titles) - _LISTED_HEADINGS:,} more" if len(titles) > _LISTED_HEADINGS else ""
            raise InvalidArgumentError(
                f"--keep {name!r}: there is no such heading",
                f"the headings are {', '.join(map(repr, titles[:_LISTED_HEADINGS])) + more}" if titles else "none",
                "take one of them" if titles else "leave --keep out, as the source has no headings",
            )
        found += fitting
    outer = {part.start: part for part in sorted(found, key=lambda part: part.end)}.values()
    return [part for part in outer if not any(each.start < part.start < each.end for each in outer)]


def too_large(size: int) -> TooLargeError:
    """Return the error for a prompt of this many bytes."""
    return TooLargeError(
        f"the prompt has {size:,} bytes", f"at most {MAX_SOURCE_BYTES:,} are split", "divide it by hand first"
    )


def _checked(source: bytes) -> str:
    if len(source) > MAX_SOURCE_BYTES:
        raise too_large(len(source))
    try:
        text = source.decode()
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(
            f"byte {error.start:,} of the prompt is not UTF-8", "a prompt is UTF-8", "convert it"
        ) from None
    hidden = hidden_character(text)
    if hidden is not None:
        raise InvalidArgumentError(f"the prompt's {hidden}", UNSEEN_RULE, "take it out, and split again")
    if not text.strip("\ufeff \t\r\n"):
        raise InvalidArgumentError("the prompt is empty", "a prompt has text", "name another file")
    return text


def _limit(source: bytes, tokens: int, budget: int | None) -> int:
    if budget is None:
        return min(BUDGET, int(tokens * _SHARE_OF_LARGE)) if len(source) >= _LARGE_BYTES else BUDGET
    if budget < _LEAST_BUDGET:
        raise InvalidArgumentError(
            f"--budget is {budget}", f"at least {_LEAST_BUDGET} tokens; the default is {BUDGET:,}", "give more"
        )
    return budget


def _checked_core(plan: Plan) -> Plan:
    if len(plan.prompt) > MAX_SOURCE_BYTES:
        raise TooLargeError(
            f"the core would have {len(plan.prompt):,} bytes",
            f"at most {MAX_SOURCE_BYTES:,} are served",
            "give a smaller --budget, or keep less",
        )
    return plan


def _kept_too_much(plan: Plan, kept: Sequence[Part], enough: int) -> InvalidArgumentError:
    tokens = sum(part.tokens for part in kept)
    return InvalidArgumentError(
        f"what --keep names does not fit: it takes {tokens:,} tokens, and the trigger table of"
        f" {len(plan.instructions)} instructions {enough - tokens:,}",
        f"the rendered core has at most {plan.budget:,} tokens",
        f"give --budget {enough}, or keep less",
    )


def _table_tokens(budget: int) -> int:
    return min(int(budget * _TABLE_SHARE), MAX_TABLE_TOKENS)


def _ended(text: bytes, newline: bytes) -> bytes:
    return text if text.endswith((b"\n", b"\r")) else text + newline
