"""Keeps a long conversation within a token threshold, over a restart, with summaries that are made once.

    python examples/summaries.py [WORKSPACE]

The summarizer is a stand-in that needs no network, so that every run does the same; a real program puts
`OpenAISummarizer(model="...")` in its place, from the extra `llm`, and keeps the rest.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import anyio

from iris_kv import Compression, ContextManager, TokenCounter, open_workspace

THRESHOLD = 3_000


class FirstSentence:
    """A summarizer: any async function from a text to a shorter one."""

    def __init__(self) -> None:
        """Count the calls, to show that stored summaries need none."""
        self.calls = 0

    async def __call__(self, text: str) -> str:
        """Return the first sentence."""
        self.calls += 1
        return text.partition(". ")[0] + "."


def conversation() -> list[dict[str, object]]:
    """Return forty messages as OpenAI's API takes them, with a call of a tool and its result in the middle."""
    messages: list[dict[str, object]] = [{"role": "system", "content": "You plan a move to heat pumps."}]
    for number in range(40):
        role = ("user", "assistant")[number % 2]
        text = f"Point {number} is settled. " + "Some reasons follow that nobody will ask for again. " * 12
        messages.append({"role": role, "content": text, "id": f"m{number}"})
    call = {"id": "c1", "type": "function", "function": {"name": "prices", "arguments": '{"kw": 9}'}}
    messages[21:21] = [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": '{"eur": 14200}'},
    ]
    return messages


async def session(workspace: Path, messages: list[dict[str, object]]) -> Compression:
    """Compress a conversation with the summaries that the workspace keeps, and say what it took."""
    summarizer = FirstSentence()
    async with open_workspace(workspace) as opened:
        context = ContextManager(
            await opened.store(),
            summarizer=summarizer,
            token_threshold=THRESHOLD,
            counter=TokenCounter(exact=False),  # the same in every environment; leave it out for exact counts
        )
        compression = await context.compress(messages)
    report = compression.report
    print(f"{summarizer.calls} calls, {report.hits} summaries from the store, threshold met: {report.threshold_met}")
    return compression


async def main(workspace: Path) -> None:
    """Compress in two sessions, with one message edited in between."""
    messages = conversation()
    first = await session(workspace, messages)
    kept = sum(any(new is old for new in first.messages) for old in messages)
    print(f"{len(messages)} messages: {kept} kept whole, {len(messages) - kept} summarised")
    print(f"fewer tokens: {first.report.tokens_after < first.report.tokens_before / 2}")
    print(str(first.messages[1]["content"]).splitlines()[-1])
    print("-- the program ends, and a new one starts --")
    second = await session(workspace, messages)
    print(f"the same messages: {second.messages == first.messages}")
    messages[1] = {**messages[1], "content": f"Edited: {messages[1]['content']}"}
    await session(workspace, messages)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        anyio.run(main, Path(sys.argv[1]).absolute())
    else:
        with tempfile.TemporaryDirectory() as folder:
            anyio.run(main, Path(folder))
