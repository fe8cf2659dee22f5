"""The context manager: keeps a long conversation within a token threshold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import anyio
from anyio import to_thread

from iris_kv.context.complaints import Complaints
from iris_kv.context.compression import (
    Compression,
    CompressionReport,
    Part,
    Phase,
    mergers_of,
    parts_of,
    total_tokens,
    wanted_summary,
    with_mergers,
    with_summaries,
)
from iris_kv.context.messages import Message, check_messages, text_of
from iris_kv.context.shelf import SCOPE, Shelf, Wanted
from iris_kv.context.summaries import Summaries, Summarizer, Summary
from iris_kv.errors import InvalidArgumentError
from iris_kv.model import Limits
from iris_kv.settings import Settings
from iris_kv.store.base import Store
from iris_kv.tokens import TokenCounter

_AT_ONCE: Final = 5


class ContextManager:
    """Summarises the old messages of conversations, and keeps the summaries in the scope `task`.

    A summary belongs to one version of one message, and survives a restart. Without a store, or with
    one that fails or hangs, the answers are the same, and are made anew each time. One manager
    serves any number of conversations at once, within one event loop.
    """

    def __init__(
        self,
        store: Store | None = None,
        *,
        summarizer: Summarizer,
        token_threshold: int = 100_000,
        keep_recent: int = 10,
        limits: Limits | None = None,
        counter: TokenCounter | None = None,
        store_timeout_s: float = 2.0,
        summarizer_timeout_s: float = 120.0,
    ) -> None:
        """Prepare; nothing is read or called. The store and the summarizer stay the caller's to close.

        Args:
            store: Where summaries are kept, such as `await workspace.store()`; None keeps none.
            summarizer: An async function from a text to its summary.
            token_threshold: `compress` leaves a conversation with at most so many tokens alone.
            keep_recent: How many messages at the end stay whole.
            limits: The quota and TTL of the scope `task`; None takes the defaults.
            counter: What counts tokens; None: the tokenizer where it is installed.
            store_timeout_s: How long an operation of the store may take before the answer goes on without it.
            summarizer_timeout_s: How long one summary may take, retries included.

        Raises:
            InvalidArgumentError: A number is negative.
        """
        for name, number in (("token_threshold", token_threshold), ("keep_recent", keep_recent)):
            if number < 0:
                raise InvalidArgumentError(f"{name} is {number}", "it is 0 or more", f"give another {name}")
        self._store = store
        self._token_threshold = token_threshold
        self._keep_recent = keep_recent
        self._limits = Settings().limits(SCOPE) if limits is None else limits
        self._counter = TokenCounter() if counter is None else counter
        self._store_timeout_s = store_timeout_s
        self._complaints = Complaints()
        self._summaries = Summaries(summarizer, summarizer_timeout_s, self._complaints)

    async def summarize_message(self, message: Message, *, message_id: str | None = None) -> str:
        """Return the summary of a message: the stored one of this very version, else a new one, which is stored.

        Args:
            message: A message of nothing but text, of any role.
            message_id: The id that its summary is kept under, as `summary_{message_id}`; None: the
                message's own `id`, else one made of its digest.

        Raises:
            InvalidArgumentError: There is more in the message than text, or nothing.
            IrisError: The summarizer failed; its own error is the cause. Failures are not kept.
        """
        check_messages([message])
        text = text_of(message)
        if text is None:
            raise InvalidArgumentError(
                "the message is empty, or holds a call of a tool, a result, an image or the like",
                "only a message of nothing but text can be summarised",
                "leave it whole, as compress does",
            )
        wanted = wanted_summary(message, text, message_id)
        return (await self._summaries.get(wanted, self._shelf())).text_or_raise()

    async def compress(self, messages: Sequence[Message]) -> Compression:
        """Return a conversation with summaries in the place of old messages, if it is over the threshold.

        System messages, the most recent ones, and every message with a call of a tool, its result or
        anything else but text stay as they are, as do those whose summary fails or is not shorter.
        Only if that is not enough are neighbouring summaries merged. The messages given are not
        changed.

        Raises:
            InvalidArgumentError: One of the messages is no mapping.
        """
        check_messages(messages)
        parts = await to_thread.run_sync(parts_of, messages, self._keep_recent, self._counter)
        run = _Run(self._summaries, self._shelf(), self._counter, parts)
        if run.tokens > self._token_threshold:
            await run.summarize()
        if run.tokens > self._token_threshold:
            await run.merge()
        return run.compression(total_tokens(parts), self._token_threshold)

    def _shelf(self) -> Shelf:
        return Shelf(self._store, self._limits, self._store_timeout_s, self._complaints)


class _Run:
    """One compression under way."""

    def __init__(self, summaries: Summaries, shelf: Shelf, counter: TokenCounter, parts: list[Part]) -> None:
        self._summaries = summaries
        self._shelf = shelf
        self._counter = counter
        self._parts = parts
        self._phases: list[Phase] = []
        self._answers: dict[Wanted, Summary] = {}

    @property
    def tokens(self) -> int:
        """Return the tokens of the conversation as it stands."""
        return total_tokens(self._parts)

    async def summarize(self) -> None:
        """Put summaries in the place of old messages."""
        texts = await self._texts(part.wanted for part in self._parts if part.wanted is not None)
        parts = await to_thread.run_sync(with_summaries, self._parts, texts, self._counter)
        replaced = sum(old is not new for old, new in zip(self._parts, parts, strict=True))
        self._phases.append(
            Phase(name="summarize", messages=replaced, tokens_before=self.tokens, tokens_after=total_tokens(parts))
        )
        self._parts = parts

    async def merge(self) -> None:
        """Put merged summaries in the place of neighbouring ones."""
        mergers = await to_thread.run_sync(mergers_of, self._parts)
        texts = await self._texts(merger.wanted for merger in mergers)
        parts = await to_thread.run_sync(with_mergers, self._parts, mergers, texts, self._counter)
        merged = {id(part) for part in self._parts} - {id(part) for part in parts}
        self._phases.append(
            Phase(name="merge", messages=len(merged), tokens_before=self.tokens, tokens_after=total_tokens(parts))
        )
        self._parts = parts

    async def _texts(self, wanted: Iterable[Wanted]) -> Mapping[Wanted, str]:
        """Return the summaries that could be had, a few at a time; each is asked for once."""
        queue = iter(dict.fromkeys(wanted))

        async def work() -> None:
            for one in queue:
                self._answers[one] = await self._summaries.get(one, self._shelf)

        async with anyio.create_task_group() as tasks:
            for _ in range(_AT_ONCE):
                tasks.start_soon(work)
        return {one: answer.text for one, answer in self._answers.items() if answer.text is not None}

    def compression(self, tokens_before: int, token_threshold: int) -> Compression:
        """Return the conversation and the report."""
        answers = self._answers.values()
        hits = sum(answer.is_hit for answer in answers)
        report = CompressionReport(
            token_threshold=token_threshold,
            tokens_before=tokens_before,
            tokens_after=self.tokens,
            phases=tuple(self._phases),
            hits=hits,
            misses=len(answers) - hits,
            failures=sum(answer.text is None for answer in answers),
            store_failures=self._shelf.failures,
        )
        return Compression(tuple(part.message for part in self._parts), report)
