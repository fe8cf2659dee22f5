"""Whatever the conversation: what is kept is the same and in order, nothing grows, and timing changes nothing."""

from __future__ import annotations

import copy
import hashlib
from typing import Any

import anyio
from hypothesis import given, settings
from hypothesis import strategies as st

from iris_kv import Compression, ContextManager, TokenCounter

COUNTER = TokenCounter(exact=False)
MARK = "[Summary of "

TEXTS = st.one_of(
    st.text(max_size=30),
    st.builds(lambda word, n: f"{word} " * n, st.text("abé字\n\ud800", min_size=1, max_size=8), st.integers(0, 120)),
    st.just("[Summary of an earlier message, 01234567]\n" + "typed " * 50),
)
PLAIN = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["user", "assistant"]),
        "content": st.one_of(
            TEXTS, st.lists(st.builds(lambda text: {"type": "text", "text": text}, TEXTS), max_size=3)
        ),
    },
    optional={"id": st.sampled_from(["m1", "m2", ""]), "name": st.just("ann")},
)
WHOLE = st.one_of(
    st.builds(lambda role, text: {"role": role, "content": text}, st.sampled_from(["system", "developer"]), TEXTS),
    st.builds(lambda text: {"role": "assistant", "content": text, "tool_calls": [{"id": "c"}]}, TEXTS),
    st.builds(lambda text: {"role": "tool", "tool_call_id": "c", "content": text}, TEXTS),
    st.builds(
        lambda text: {"role": "user", "content": [{"type": "text", "text": text}, {"type": "image", "source": {}}]},
        TEXTS,
    ),
    st.builds(
        lambda text: {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": text}]}, TEXTS
    ),
    st.just({"role": "assistant", "content": None}),
    st.just({"type": "reasoning", "summary": []}),
)
CONVERSATIONS = st.lists(st.one_of(PLAIN, WHOLE), max_size=14)
TIMINGS = st.lists(st.integers(0, 4), min_size=1, max_size=9)


class Summarizer:
    """Makes the same of the same text, fails for some, and takes as long as it is told."""

    def __init__(self, timing: list[int]) -> None:
        self._timing = timing
        self._calls = 0

    async def __call__(self, text: str) -> str:
        self._calls += 1
        for _ in range(self._timing[self._calls % len(self._timing)]):
            await anyio.lowlevel.checkpoint()
        seed = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        if seed[0] < 40:
            raise ValueError("this one fails")
        return text if seed[0] < 70 else f"summary {seed.hex()[: seed[1] % 40]} " * (seed[2] % 4)


def compressed(messages: list[dict[str, Any]], threshold: int, keep_recent: int, timing: list[int]) -> Compression:
    context = ContextManager(
        summarizer=Summarizer(timing), token_threshold=threshold, keep_recent=keep_recent, counter=COUNTER
    )
    return anyio.run(context.compress, messages)


def is_kept(message: dict[str, Any]) -> bool:
    """Tell, by other words than the code under test, whether a message must stay whatever its age."""
    content = message.get("content")
    blocks = content if isinstance(content, list) else []
    return (
        message.get("role") not in ("user", "assistant")
        or "tool_calls" in message
        or content is None
        or any(block["type"] != "text" for block in blocks)
    )


@settings(deadline=None, max_examples=150)
@given(CONVERSATIONS, st.sampled_from([0, 0, 200, 600]), st.integers(0, 4), TIMINGS, TIMINGS)
def test_what_must_stay_stays_in_order_nothing_grows_and_timing_changes_nothing(
    messages: list[dict[str, Any]], threshold: int, keep_recent: int, timing: list[int], other_timing: list[int]
) -> None:
    before = copy.deepcopy(messages)
    first = compressed(messages, threshold, keep_recent, timing)
    second = compressed(messages, threshold, keep_recent, other_timing)

    assert messages == before
    assert (first.messages, first.report) == (second.messages, second.report)
    report = first.report
    assert report.tokens_after <= report.tokens_before
    assert report.threshold_met == (report.tokens_after <= threshold)
    recent = len(messages) - keep_recent
    must = [message for number, message in enumerate(messages) if number >= recent or is_kept(message)]
    left = iter(first.messages)
    assert all(any(each is message for each in left) for message in must)
    originals = {id(message) for message in messages}
    assert all(id(each) in originals or MARK in str(each["content"]) for each in first.messages)
    assert len(first.messages) <= len(messages)
    if report.tokens_before <= threshold:
        assert list(map(id, first.messages)) == list(map(id, messages))


@settings(deadline=None, max_examples=60)
@given(CONVERSATIONS, CONVERSATIONS, st.integers(0, 3), TIMINGS)
def test_a_compressed_conversation_can_go_on_and_be_compressed_again(
    messages: list[dict[str, Any]], more: list[dict[str, Any]], keep_recent: int, timing: list[int]
) -> None:
    first = compressed(messages, 0, keep_recent, timing)
    second = compressed([*first.messages, *more], 0, keep_recent, timing)

    assert second.report.tokens_after <= second.report.tokens_before
    assert (
        second.report.tokens_before
        <= first.report.tokens_after + compressed(more, 10**9, 0, timing).report.tokens_after
    )
