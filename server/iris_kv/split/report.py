"""What a split saves and what it moved, counted."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Final

from iris_kv.instruction_file import over_limits
from iris_kv.model import Frozen
from iris_kv.prompts import named_in, server_instructions
from iris_kv.split.division import Span
from iris_kv.split.manifest import Manifest, PieceRecord
from iris_kv.split.plan import Plan
from iris_kv.split.wording import RULE_WORD
from iris_kv.tokens import TokenCounter

_HEADER_TOKENS: Final = 70
"""About what the header line of an answer takes."""


class MovedRule(Frozen):
    """A line with must, never, always, required or forbidden that is not in the core."""

    line: int
    """Its number in the source, from 1."""
    text: str
    tag: str
    """The instruction that has it."""


class Triggers(Frozen):
    """How many instructions a model is told of without asking; `list_instructions` finds every one."""

    described: int
    """Those with a line of their own, or at least their tag, in the compact prompt."""
    at_the_start: int
    """Those in the server instructions, which clients show first."""


class SplitReport(Frozen):
    """What `iris-kv split` says; every number but bytes is of tokens or reads."""

    exact: bool
    """Whether the tokens are counted, not estimated."""
    tokens_before: int
    core_headings: tuple[str, ...]
    """The headings of the sections that stay in the core whole."""
    core_tokens: int
    """The rendered compact prompt: the core with the trigger table."""
    tool_tokens: int
    """What a client shows the model of `tools/list`."""
    server_tokens: int
    """The server instructions."""
    standing_tokens: int
    """The three together: what every request carries after the split."""
    deferred_standing_tokens: int
    """The same where the client shows the bare names of most tools."""
    source_bytes: int
    covered_bytes: int
    """How many bytes of the source stand in the core or in an instruction, exactly once."""
    triggers: Triggers
    pieces: tuple[PieceRecord, ...]
    oversized: tuple[str, ...]
    """Tags of instructions over 3,500 tokens or 500 lines: one list, fence or table that was not cut."""
    moved_rules: tuple[MovedRule, ...]
    read_tokens: int
    """What one instruction costs on average, with its call and header."""
    break_even_reads: int
    """How many instructions a session may read until it carries more than before."""
    break_even_tokens: int
    """A prompt of fewer tokens costs more with iris-kv than it saves, one read included."""

    pays: bool
    """Whether the split saves tokens in a session with one read."""


def report_of(
    plan: Plan, manifest: Manifest, counter: TokenCounter, *, tool_tokens: int, deferred_tool_tokens: int
) -> SplitReport:
    """Return the report of a plan; both kinds of tool tokens are what a client shows of `tools/list`."""
    core = counter.count(plan.rendered())
    server_text = server_instructions(plan.instructions)
    server = counter.count(server_text)
    standing = core + tool_tokens + server
    before = manifest.source.tokens
    read = _read_tokens(manifest.pieces, counter)
    spans = [*plan.core, *(each.span for each in plan.instructions)]
    return SplitReport(
        exact=counter.exact,
        tokens_before=before,
        core_headings=plan.core_titles,
        triggers=Triggers(
            described=named_in(plan.rendered(), plan.instructions),
            at_the_start=named_in(server_text, plan.instructions),
        ),
        core_tokens=core,
        tool_tokens=tool_tokens,
        server_tokens=server,
        standing_tokens=standing,
        deferred_standing_tokens=core + deferred_tool_tokens + server,
        source_bytes=len(plan.source),
        covered_bytes=_covered(spans),
        pieces=manifest.pieces,
        oversized=tuple(each.tag for each in manifest.pieces if _is_oversized(plan, each)),
        moved_rules=tuple(_moved_rules(plan)),
        read_tokens=read,
        break_even_reads=max(0, before - standing) // read if read else 0,
        break_even_tokens=standing + read,
        pays=before > standing + read,
    )


def _covered(spans: Sequence[Span]) -> int:
    """Return how many bytes are in exactly one span; a gap or an overlap would take from it."""
    reached = covered = 0
    for start, end in sorted(spans):
        covered += end - max(start, reached) - max(0, reached - start)
        reached = max(reached, end)
    return covered


def _is_oversized(plan: Plan, piece: PieceRecord) -> bool:
    return any(over_limits(plan.source[piece.start : piece.end], piece.tokens))


def _read_tokens(pieces: Sequence[PieceRecord], counter: TokenCounter) -> int:
    """Return what one read of an instruction costs on average: the call, the header and the text."""
    calls = [json.dumps({"name": "get_instruction", "arguments": {"tag": each.tag}}) for each in pieces]
    costs = [each.tokens + counter.count(call) + _HEADER_TOKENS for each, call in zip(pieces, calls, strict=True)]
    return sum(costs) // len(costs) if costs else 0


def _moved_rules(plan: Plan) -> Iterator[MovedRule]:
    at = 0
    for number, line in enumerate(plan.source.splitlines(keepends=True), 1):
        text = line.decode()
        # A line may be cut, so that it is the word's place that counts.
        places = [at + len(text[: word.start()].encode()) for word in RULE_WORD.finditer(text)]
        owners = [owner.tag for owner in map(plan.owner, places) if owner is not None]
        yield from (MovedRule(line=number, text=text.strip(), tag=tag) for tag in dict.fromkeys(owners))
        at += len(line)
