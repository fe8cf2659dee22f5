"""What a compression does to a conversation, as pure functions, and the report on it.

A conversation is a list of parts, one for each message. Summaries are put in where they are
shorter; neighbouring summaries are merged. What stays whole is handed on as the same object.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from iris_kv.context.marks import Mark, mark_in
from iris_kv.context.messages import Message, message_digest, message_tokens, role_of, text_of, with_text
from iris_kv.context.shelf import Wanted, summary_key
from iris_kv.model import Frozen
from iris_kv.tokens import TokenCounter

MERGED_TOKENS: Final = 8_000
"""How much is merged into one summary at most, so that it stays one short call of a model."""

_ROLES: Final = ("user", "assistant")
_SHORT: Final = 100
"""Only below this is it worth a look whether any summary could be shorter than the message."""


class Phase(Frozen):
    """What one phase of a compression did."""

    name: Literal["summarize", "merge"]
    messages: int
    """How many messages it replaced."""
    tokens_before: int
    """The tokens of the whole conversation before the phase."""
    tokens_after: int


class CompressionReport(Frozen):
    """What a compression did, and at what cost."""

    token_threshold: int
    tokens_before: int
    tokens_after: int
    phases: tuple[Phase, ...]
    """In the order in which they ran; none where the conversation was within the threshold."""
    hits: int
    """Summaries that were there already."""
    misses: int
    """Summaries that were not: each is a call of the summarizer."""
    failures: int
    """Misses whose call failed; these messages stay whole."""
    store_failures: int
    """Operations of the store that failed or were not over in time; they cost no summary."""

    @property
    def threshold_met(self) -> bool:
        """Whether the conversation is now within the threshold."""
        return self.tokens_after <= self.token_threshold


@dataclass(frozen=True, slots=True)
class Compression:
    """A conversation after its compression."""

    messages: tuple[Message, ...]
    """What was kept is the same object as before."""
    report: CompressionReport


class Part(NamedTuple):
    """A message, what it weighs, and what may become of it; neither: it stays whole."""

    message: Message
    tokens: int
    wanted: Wanted | None = None
    """The summary that could stand in its place."""
    mark: Mark | None = None
    """The summary that it is already."""


class Merger(NamedTuple):
    """Neighbouring summaries, from `start` to before `end`, and the summary that could stand in their place."""

    start: int
    end: int
    message: Message
    """The message whose text the summary becomes."""
    messages: int
    """How many messages it will stand for."""
    wanted: Wanted


def total_tokens(parts: Iterable[Part]) -> int:
    """Return the tokens of a conversation."""
    return sum(part.tokens for part in parts)


def wanted_summary(message: Message, text: str, message_id: str | None = None) -> Wanted:
    """Return what is asked for where a message with this text is to be summarised.

    The key is made of the id given, else of the message's own, else of its digest.
    """
    digest = message_digest(message)
    own = message.get("id")
    named = message_id or (str(own) if isinstance(own, str | int) else "") or digest.removeprefix("sha256:")
    return Wanted(summary_key(named), digest, role_of(message), text)


def parts_of(messages: Sequence[Message], keep_recent: int, counter: TokenCounter) -> list[Part]:
    """Return the parts of a conversation; all but the old messages of nothing but text stay whole."""
    recent = len(messages) - keep_recent
    return [_part(message, counter, is_old=number < recent) for number, message in enumerate(messages)]


def _part(message: Message, counter: TokenCounter, *, is_old: bool) -> Part:
    tokens = message_tokens(message, counter)
    text = text_of(message) if is_old and role_of(message) in _ROLES else None
    if text is None:
        return Part(message, tokens)
    mark = mark_in(text)
    if mark is not None:
        return Part(message, tokens, mark=mark)
    if tokens < _SHORT and tokens <= message_tokens(with_text(message, Mark(1, "-").text), counter):
        return Part(message, tokens)
    return Part(message, tokens, wanted_summary(message, text))


def with_summaries(parts: Sequence[Part], summaries: Mapping[Wanted, str], counter: TokenCounter) -> list[Part]:
    """Put summaries in the place of messages, wherever there is one and it is shorter."""
    return [
        part if part.wanted is None or part.wanted not in summaries else _shorter(part, summaries[part.wanted], counter)
        for part in parts
    ]


def _shorter(part: Part, summary: str, counter: TokenCounter) -> Part:
    new = _marked(part.message, Mark(1, summary.strip()), counter)
    return new if new.tokens < part.tokens else part


def _marked(message: Message, mark: Mark, counter: TokenCounter) -> Part:
    marked = with_text(message, mark.text)
    return Part(marked, message_tokens(marked, counter), mark=mark)


def mergers_of(parts: Sequence[Part]) -> list[Merger]:
    """Return the runs of neighbouring summaries that can be merged, the oldest first."""
    return [_merger(parts, start, end) for start, end in _runs(parts) if end - start > 1]


def _runs(parts: Sequence[Part]) -> Iterator[tuple[int, int]]:
    start, tokens = 0, 0
    for number, part in enumerate(parts):
        if part.mark is None or tokens + part.tokens > MERGED_TOKENS:
            yield start, number
            start, tokens = (number, 0) if part.mark is not None else (number + 1, 0)
        tokens += part.tokens if part.mark is not None else 0
    yield start, len(parts)


def _merger(parts: Sequence[Part], start: int, end: int) -> Merger:
    run = parts[start:end]
    roles = {role_of(part.message) for part in run}
    # What several said is nobody's own word any more: it comes to the model as what a user says,
    # and never as what it said itself.
    role = roles.pop() if len(roles) == 1 else "user"
    first = next(part.message for part in run if role_of(part.message) == role)
    said = "\n\n".join(_said(part) for part in run)
    message = with_text({"role": role, "content": first["content"]}, said)
    return Merger(start, end, message, sum(_count(part) for part in run), wanted_summary(message, said))


def _said(part: Part) -> str:
    if part.mark is None:
        return ""
    return f"{role_of(part.message) if part.mark.messages == 1 else 'earlier'}: {part.mark.summary}"


def _count(part: Part) -> int:
    return 0 if part.mark is None else part.mark.messages


def with_mergers(
    parts: Sequence[Part], mergers: Sequence[Merger], summaries: Mapping[Wanted, str], counter: TokenCounter
) -> list[Part]:
    """Put merged summaries in the place of runs, wherever there is one and it is shorter."""
    result = list(parts)
    for merger in reversed(mergers):
        if merger.wanted in summaries:
            mark = Mark(merger.messages, summaries[merger.wanted].strip())
            new = _marked(merger.message, mark, counter)
            if new.tokens < total_tokens(parts[merger.start : merger.end]):
                result[merger.start : merger.end] = [new]
    return result
