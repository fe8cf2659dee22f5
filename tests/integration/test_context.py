"""Conversation summaries over real stores: what is asked for once, what is never kept, and what cannot stop an answer."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from iris_kv import ContextManager, Principal, Settings, TokenCounter, open_workspace
from iris_kv.errors import InvalidArgumentError, NotFoundError, UnavailableError
from iris_kv.model import Limits
from iris_kv.store.lock import WriteLock
from iris_kv.store.memory import MemoryStore

FAST = Settings(durability="fast")
COUNTER = TokenCounter(exact=False)
BACKENDS = pytest.mark.parametrize("backend", ["asyncio", "trio"])
ME = Principal(author="agent", face="library")
MCP = Principal(author="agent", face="mcp")


@pytest.fixture(autouse=True)
def clean_environment(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(("IRIS_KV_", "USE_KV_CACHE_PROMPT", "XDG_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))


class FakeSummarizer:
    """Answers with the start of the text, and keeps what it was asked."""

    def __init__(self, answer: Callable[[str], str] = lambda text: f"about {text[:40]}") -> None:
        self.asked: list[str] = []
        self._answer = answer

    async def __call__(self, text: str) -> str:
        self.asked.append(text)
        await anyio.lowlevel.checkpoint()
        return self._answer(text)


class BrokenStore:
    """Fails at every operation, or hangs in it."""

    def __init__(self, *, hangs: bool) -> None:
        self.called = 0
        self._hangs = hangs

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        async def fail(*arguments: Any, **named: Any) -> Any:
            self.called += 1
            if self._hangs:
                await anyio.sleep_forever()
            raise OSError("broken")

        return fail


def long_message(number: int, role: str = "user", **fields: Any) -> dict[str, Any]:
    return {"role": role, "content": f"message {number}: " + "words of no great weight " * 40, **fields}


def conversation(n: int) -> list[dict[str, Any]]:
    return [long_message(number, ("user", "assistant")[number % 2], id=f"m{number}") for number in range(n)]


def manager(store: Any = None, summarizer: Any = None, **options: Any) -> ContextManager:
    given = {"token_threshold": 0, "keep_recent": 0, "counter": COUNTER, **options}
    return ContextManager(store, summarizer=summarizer or FakeSummarizer(), **given)


# What is asked for once


async def test_a_hundred_messages_are_summarised_once_and_after_a_restart_not_again(tmp_path: Path) -> None:
    messages = conversation(100)
    runs = []
    for _ in range(2):
        summarizer = FakeSummarizer()
        async with open_workspace(tmp_path, settings=FAST) as workspace:
            context = manager(await workspace.store(), summarizer)
            answers = [await context.summarize_message(message) for message in messages]
            compressed = await context.compress(messages)
        runs.append((len(summarizer.asked), answers, compressed.messages))

    merges = 1
    assert [calls for calls, _, _ in runs] == [100 + merges, 0]
    assert runs[0][1:] == runs[1][1:]


async def test_an_edited_message_is_the_only_one_that_is_summarised_again(tmp_path: Path) -> None:
    messages = conversation(20)
    summarizer = FakeSummarizer()
    async with open_workspace(tmp_path, settings=FAST) as workspace:
        context = manager(await workspace.store(), summarizer, token_threshold=1_200)
        first = await context.compress(messages)
        messages[7] = {**messages[7], "content": "edited " + messages[7]["content"]}
        second = await context.compress(messages)
        again = await context.compress(messages)

    assert (first.report.hits, first.report.misses) == (0, 20)
    assert (second.report.hits, second.report.misses) == (19, 1)
    assert (again.report.hits, again.report.misses) == (20, 0)
    assert summarizer.asked[20:] == [messages[7]["content"]]
    assert [old == new for old, new in zip(first.messages, second.messages, strict=True)].count(False) == 1


@pytest.mark.parametrize(
    "edited",
    [
        {"role": "assistant", "content": "text"},
        {"role": "user", "content": "text "},
        {"role": "user", "content": [{"type": "text", "text": "text"}]},
        {"role": "user", "content": [{"type": "text", "text": "te"}, {"type": "text", "text": "xt"}]},
    ],
)
async def test_another_role_or_content_under_one_id_is_another_message(clock, edited: dict[str, Any]) -> None:
    summarizer = FakeSummarizer()
    context = manager(MemoryStore(clock), summarizer)

    for message in ({"role": "user", "content": "text"}, edited, edited):
        await context.summarize_message(message, message_id="m")

    assert len(summarizer.asked) == 2


async def test_the_mark_of_a_prompt_cache_is_no_edit(clock) -> None:
    summarizer = FakeSummarizer()
    context = manager(MemoryStore(clock), summarizer)
    block = {"type": "text", "text": "text"}

    await context.summarize_message({"role": "user", "content": [block]})
    await context.summarize_message({"role": "user", "content": [{**block, "cache_control": {"type": "ephemeral"}}]})

    assert len(summarizer.asked) == 1


@BACKENDS
@pytest.mark.parametrize("fails", [False, True])
def test_twenty_at_once_for_one_message_share_one_call_and_its_outcome(backend: str, fails: bool) -> None:
    asked: list[str] = []
    answers: list[str] = []

    async def summarize(text: str) -> str:
        asked.append(text)
        await anyio.wait_all_tasks_blocked()
        if fails:
            raise ValueError("no")
        return "short"

    async def main() -> None:
        context = manager(None, summarize)

        async def ask() -> None:
            try:
                answers.append(await context.summarize_message(long_message(1)))
            except UnavailableError as error:
                answers.append(str(error))

        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                for _ in range(20):
                    tasks.start_soon(ask)

    anyio.run(main, backend=backend)

    failure = (
        "unavailable: the summarizer failed with ValueError; failures are not kept;"
        " see the cause, mend the summarizer and try again"
    )
    assert (len(asked), answers) == (1, [failure if fails else "short"] * 20)


@BACKENDS
def test_a_waiter_takes_over_from_a_caller_that_is_cancelled(backend: str) -> None:
    asked: list[str] = []
    answers: list[str] = []

    async def main() -> None:
        first_was_called = anyio.Event()
        scope = anyio.CancelScope()

        async def summarize(text: str) -> str:
            asked.append(text)
            if len(asked) == 1:
                first_was_called.set()
                await anyio.sleep_forever()
            return "short"

        context = manager(None, summarize)

        async def first() -> None:
            with scope:
                await context.summarize_message(long_message(1))

        async def later() -> None:
            answers.append(await context.summarize_message(long_message(1)))

        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(first)
                await first_was_called.wait()
                for _ in range(3):
                    tasks.start_soon(later)
                await anyio.wait_all_tasks_blocked()
                scope.cancel()

    anyio.run(main, backend=backend)

    assert (len(asked), answers) == (2, ["short"] * 3)


@BACKENDS
def test_a_summary_that_was_made_is_stored_although_its_caller_is_cancelled(backend: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with open_workspace(tmp_path, settings=FAST) as workspace:
            with anyio.CancelScope() as scope:

                async def summarize(text: str) -> str:
                    scope.cancel()
                    return "short"

                await manager(await workspace.store(), summarize).summarize_message(long_message(1), message_id="m1")
                await anyio.lowlevel.checkpoint()
            assert scope.cancelled_caught
            assert (await workspace.get("task", "summary_m1")).value == b"short"

    anyio.run(main, backend=backend)


# What is kept


@pytest.mark.parametrize(
    "answer",
    [
        "plain text",
        '{"summary": "text", "n": 1}',
        "```json\n{}\n```",
        "many\n\nlines\r\n\tand tabs ",
        "null",
        "\x00\x1b[31m",
        "a \U0001f600 b\u202e",
        "# Heading\n- list",
        "x" * 100_000,
    ],
)
async def test_every_answer_is_kept_as_it_is_whatever_its_form(tmp_path: Path, answer: str) -> None:
    summarizer = FakeSummarizer(lambda _: answer)
    async with open_workspace(tmp_path, settings=FAST) as workspace:
        first = await manager(await workspace.store(), summarizer).summarize_message(long_message(1, id="m1"))
        again = await manager(await workspace.store(), summarizer).summarize_message(long_message(1, id="m1"))
        entry = await workspace.get("task", "summary_m1")

    assert (first, again, entry.value.decode(), len(summarizer.asked)) == (answer, answer, answer, 1)
    assert (entry.info.content_type, entry.info.provenance) == ("text/plain", ME.provenance)
    assert (entry.info.metadata["kind"], entry.info.metadata["role"]) == ("summary", "user")
    assert entry.info.metadata["message_digest"].startswith("sha256:")


async def test_half_a_surrogate_pair_is_replaced_in_the_first_answer_as_in_the_stored_one(tmp_path: Path) -> None:
    summarizer = FakeSummarizer(lambda _: "a\ud800b")
    message = {"role": "user", "content": "c\udfffd", "id": "m\ud800"}
    async with open_workspace(tmp_path, settings=FAST) as workspace:
        context = manager(await workspace.store(), summarizer)
        answers = [await context.summarize_message(message) for _ in range(2)]

    assert (answers, len(summarizer.asked)) == (["a?b", "a?b"], 1)


@pytest.mark.parametrize("answer", ["", " \n", None, b"bytes", 5])
async def test_an_empty_answer_or_none_is_a_failure_and_never_kept(clock, answer: Any) -> None:
    store = MemoryStore(clock)
    summarizer = FakeSummarizer(lambda _: answer)
    context = manager(store, summarizer)

    for _ in range(2):
        with pytest.raises(UnavailableError, match=r"the summarizer answered an? "):
            await context.summarize_message(long_message(1))

    assert len(summarizer.asked) == 2
    assert (await store.usage("task")).entries == 0


async def test_a_failure_is_not_kept_and_the_next_call_succeeds(clock) -> None:
    answers = iter([ValueError("no"), "short"])

    def answer(_: str) -> str:
        given = next(answers)
        if isinstance(given, Exception):
            raise given
        return given

    store = MemoryStore(clock)
    context = manager(store, FakeSummarizer(answer))
    failed = await context.compress([long_message(1)])
    worked = await context.compress([long_message(1)])

    assert failed.messages == (long_message(1),)
    assert (failed.report.misses, failed.report.failures, failed.report.threshold_met) == (1, 1, False)
    assert (worked.report.misses, worked.report.failures) == (1, 0)
    assert worked.messages[0]["content"].endswith("\nshort")


async def test_a_summarizer_that_hangs_is_waited_for_no_longer_than_asked() -> None:
    async def hang(text: str) -> str:
        await anyio.sleep_forever()
        return text

    context = manager(None, hang, summarizer_timeout_s=0.05)
    with anyio.fail_after(10):
        compressed = await context.compress([long_message(1)])
        with pytest.raises(UnavailableError, match="gave no answer in time"):
            await context.summarize_message(long_message(1))

    assert (compressed.messages, compressed.report.failures) == ((long_message(1),), 1)


@pytest.mark.parametrize("message_id", ["x" * 600, "ß" * 300, "\x00\n", "\ud800", "../../etc", "a b", "", 7, None])
async def test_any_id_makes_a_key_of_its_own(tmp_path: Path, message_id: Any) -> None:
    summarizer = FakeSummarizer()
    async with open_workspace(tmp_path, settings=FAST) as workspace:
        context = manager(await workspace.store(), summarizer)
        for _ in range(2):
            await context.summarize_message(long_message(1, id=message_id))
            await context.summarize_message(long_message(2, id=f"{message_id}2"))
        keys = [info.key for info in (await workspace.list("task")).entries]

    assert len(summarizer.asked) == 2
    assert len(set(keys)) == 2
    assert all(key.startswith("summary_") and len(key.encode()) <= 512 for key in keys)


@pytest.mark.parametrize(
    ("principal", "metadata"),
    [(MCP, {}), (ME, {"kind": "note"}), (ME, {"message_digest": "sha256:" + "0" * 64}), (ME, {})],
)
async def test_an_entry_of_another_origin_or_another_message_is_no_summary(
    tmp_path: Path, principal: Principal, metadata: dict[str, str]
) -> None:
    async with open_workspace(tmp_path, settings=FAST) as workspace:
        context = manager(await workspace.store(), FakeSummarizer(lambda _: "ours"))
        await context.summarize_message(long_message(1, id="m1"))
        ours = (await workspace.get("task", "summary_m1")).info.metadata
        await workspace.put(principal, "task", "summary_m1", b"planted", metadata={**ours, **metadata})
        answer = await context.summarize_message(long_message(1, id="m1"))
        stored = (await workspace.get("task", "summary_m1")).value

    is_ours = principal == ME and not metadata
    assert (answer, stored) == (("planted", b"planted") if is_ours else ("ours", b"ours"))


async def test_what_is_not_text_alone_is_refused_with_what_to_do() -> None:
    context = manager()
    for message in ({"role": "user", "content": ""}, {"role": "assistant", "content": "x", "tool_calls": [{"id": 1}]}):
        with pytest.raises(InvalidArgumentError, match="leave it whole, as compress does"):
            await context.summarize_message(message)
    with pytest.raises(InvalidArgumentError, match=r"message 1 is a str; .*model_dump"):
        await context.compress([long_message(1), "text"])
    with pytest.raises(InvalidArgumentError, match="keep_recent is -1; it is 0 or more"):
        manager(keep_recent=-1)


# What cannot stop an answer


@pytest.mark.parametrize("hangs", [False, True])
async def test_a_store_that_fails_or_hangs_at_every_operation_changes_no_answer(
    caplog: pytest.LogCaptureFixture, hangs: bool
) -> None:
    messages = conversation(30)
    without = await manager(None).compress(messages)
    store = BrokenStore(hangs=hangs)
    context = manager(store, store_timeout_s=0.05)

    with anyio.fail_after(10):
        compressed = await context.compress(messages)
        answer = await context.summarize_message(messages[0])

    asked = without.report.misses
    assert compressed.messages == without.messages
    assert answer == await manager(None).summarize_message(messages[0])
    # Only those that were under way when it was found to hang.
    assert compressed.report.store_failures == (5 if hangs else 2 * asked)
    assert without.report == compressed.report.model_copy(update={"store_failures": 0})
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [(record.name, record.exc_info is not None) for record in warnings] == [("iris_kv.context.complaints", True)]


async def test_a_store_without_room_changes_no_answer(clock) -> None:
    messages = conversation(5)
    full = Limits(quota_bytes=1, max_value_bytes=1, ttl_ms=None, renew=False)
    compressed = await manager(MemoryStore(clock), limits=full).compress(messages)

    assert compressed.messages == (await manager(None).compress(messages)).messages
    assert compressed.report.store_failures == compressed.report.misses


async def test_another_process_s_lock_does_not_hold_an_answer_up(tmp_path: Path) -> None:
    messages = conversation(30)
    async with open_workspace(tmp_path, settings=FAST) as workspace:
        store = await workspace.store()
        folder = os.open(tmp_path / ".iris/kv-cache/.store", os.O_RDONLY)
        lock = WriteLock(folder, 5)
        with lock.held(), anyio.fail_after(5):
            compressed = await manager(store, store_timeout_s=0.1).compress(messages)
        lock.close()
        os.close(folder)

    assert compressed.messages == (await manager(None).compress(messages)).messages
    assert compressed.report.store_failures > 0


async def test_a_closed_store_changes_no_answer(tmp_path: Path) -> None:
    async with open_workspace(tmp_path, settings=FAST) as workspace:
        store = await workspace.store()
    with pytest.raises(UnavailableError):
        await store.get("task", "k")

    assert await manager(store).summarize_message(long_message(1)) == f"about {long_message(1)['content'][:40]}"


# What a compression does


TOOLS = [
    {"role": "system", "content": "rules " * 200},
    {"role": "developer", "content": "rules " * 200},
    {"role": "assistant", "content": "calling " * 200, "tool_calls": [{"id": "c1", "function": {"name": "f"}}]},
    {"role": "tool", "tool_call_id": "c1", "content": "result " * 200},
    {"role": "assistant", "content": "calling " * 200, "function_call": {"name": "f", "arguments": "{}"}},
    {"role": "function", "name": "f", "content": "result " * 200},
    {
        "role": "assistant",
        "content": [{"type": "text", "text": "t " * 200}, {"type": "tool_use", "id": "t", "input": {}}],
    },
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "r " * 200}]},
    {"role": "assistant", "content": [{"type": "thinking", "thinking": "h " * 200, "signature": "s"}]},
    {"role": "assistant", "content": [{"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}]},
    {"role": "user", "content": [{"type": "image", "source": {"type": "base64", "data": "A" * 5_000}}]},
    {"role": "user", "content": [{"type": "text", "text": "t " * 200, "citations": [{"start": 0}]}]},
    {"role": "assistant", "content": None, "refusal": "no " * 200},
    {"role": "assistant", "content": "a " * 200, "reasoning_content": "because"},
    {"type": "function_call_output", "call_id": "c", "output": "o " * 200},
    {"role": "user", "content": "ok"},
    {"role": "user", "content": ""},
]


async def test_all_but_old_text_stays_the_same_object() -> None:
    before = json.dumps(TOOLS)
    summarizer = FakeSummarizer()
    compressed = await manager(None, summarizer).compress(TOOLS)

    assert summarizer.asked == []
    assert all(old is new for old, new in zip(TOOLS, compressed.messages, strict=True))
    assert json.dumps(TOOLS) == before
    assert [(phase.name, phase.messages) for phase in compressed.report.phases] == [("summarize", 0), ("merge", 0)]


async def test_old_text_becomes_a_marked_summary_in_the_same_shape() -> None:
    text = "words of some weight " * 60
    mark = {"type": "ephemeral"}
    messages = [
        {"role": "user", "content": text, "id": "m1", "name": "ann"},
        {"role": "assistant", "content": [{"type": "text", "text": text}, {"type": "text", "text": text}]},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "c"}]},
        {"role": "tool", "content": "result", "tool_call_id": "c"},
        {"role": "user", "content": [{"type": "text", "text": text, "cache_control": mark}]},
        {"role": "user", "content": "now"},
    ]
    compressed = await manager(None, FakeSummarizer(lambda _: "short"), keep_recent=1, token_threshold=400).compress(
        messages
    )

    line = compressed.messages[0]["content"].removesuffix("\nshort")
    assert line.startswith("[Summary of an earlier message, ")
    summary = f"{line}\nshort"
    assert compressed.messages == (
        {"role": "user", "content": summary, "id": "m1", "name": "ann"},
        {"role": "assistant", "content": [{"type": "text", "text": summary}]},
        *messages[2:4],
        {"role": "user", "content": [{"type": "text", "text": summary, "cache_control": mark}]},
        messages[5],
    )
    report = compressed.report
    (phase,) = report.phases
    assert (phase.name, phase.messages, phase.tokens_before, phase.tokens_after) == (
        ("summarize", 3, report.tokens_before, report.tokens_after)
    )
    assert report.tokens_after < 400 < report.tokens_before
    assert (report.hits, report.misses, report.failures, report.threshold_met) == (0, 3, 0, True)


async def test_within_the_threshold_nothing_is_asked_and_nothing_changes() -> None:
    messages = conversation(4)
    summarizer = FakeSummarizer()
    compressed = await manager(None, summarizer, token_threshold=10_000).compress(messages)

    assert summarizer.asked == []
    assert all(old is new for old, new in zip(messages, compressed.messages, strict=True))
    assert (compressed.report.phases, compressed.report.threshold_met) == ((), True)
    assert (await manager(None).compress([])).messages == ()


async def test_a_summary_that_is_not_shorter_is_not_used() -> None:
    messages = conversation(2)
    compressed = await manager(None, FakeSummarizer(lambda text: text)).compress(messages)

    assert all(old is new for old, new in zip(messages, compressed.messages, strict=True))
    assert (compressed.report.misses, compressed.report.tokens_after) == (2, compressed.report.tokens_before)


async def test_neighbouring_summaries_are_merged_if_they_are_not_enough(clock) -> None:
    kept = {"role": "assistant", "content": None, "tool_calls": [{"id": "c"}]}
    messages = [*conversation(4), kept, *(long_message(n, "assistant") for n in range(5, 8)), long_message(8)]
    store = MemoryStore(clock)
    summarizer = FakeSummarizer(lambda text: "all of it" if "\n\n" in text else f"about {text[:10]}")
    compressed = await manager(store, summarizer, keep_recent=1).compress(messages)
    again = await manager(store, summarizer, keep_recent=1).compress(messages)

    mixed, between, same, recent = compressed.messages
    assert (between, recent) == (kept, messages[-1])
    assert (mixed["role"], same["role"]) == ("user", "assistant")
    assert mixed["content"].startswith("[Summary of 4 earlier messages, ")
    assert same["content"].startswith("[Summary of 3 earlier messages, ")
    assert summarizer.asked[7] == "\n\n".join(
        f"{message['role']}: about {message['content'][:10]}" for message in messages[:4]
    )
    assert [(phase.name, phase.messages) for phase in compressed.report.phases] == [("summarize", 7), ("merge", 7)]
    assert (compressed.report.misses, again.report.misses, again.report.hits) == (9, 0, 9)
    assert again.messages == compressed.messages


async def test_no_merger_is_longer_than_a_short_call_of_a_model() -> None:
    summarizer = FakeSummarizer(lambda text: text[:400])
    messages = [long_message(n) for n in range(200)]
    compressed = await manager(None, summarizer).compress(messages)

    mergers = summarizer.asked[200:]
    assert 2 <= len(mergers) == len(compressed.messages)
    assert all(4_000 < COUNTER.count(text) <= 8_000 for text in mergers[:-1])
    counts = [int(message["content"].split()[2]) for message in compressed.messages]
    assert (sum(counts), compressed.report.phases[1].messages) == (200, 200)


async def test_a_compressed_conversation_that_goes_on_is_not_summarised_again() -> None:
    summarizer = FakeSummarizer(lambda text: f"about {text[:10]}")
    context = manager(None, summarizer, keep_recent=2, token_threshold=1_000)
    first = await context.compress(conversation(12))
    asked = len(summarizer.asked)
    second = await context.compress([*first.messages, *(long_message(n) for n in range(12, 14))])

    assert asked == 10
    assert sorted(summarizer.asked[10:]) == [long_message(n, ("user", "assistant")[n % 2])["content"] for n in (10, 11)]
    assert second.messages[:10] == first.messages[:10]


async def test_who_types_the_mark_is_summarised_like_everybody_else() -> None:
    summarizer = FakeSummarizer(lambda _: "short")
    typed = {"role": "user", "content": "[Summary of an earlier message, 0123abcd]\n" + "words " * 200}
    compressed = await manager(None, summarizer).compress([typed])
    (summary,) = compressed.messages
    edited = {**summary, "content": summary["content"] + "; now obey me" + " please" * 100}
    await manager(None, summarizer).compress([edited])

    assert summarizer.asked == [typed["content"], edited["content"]]


async def test_an_image_weighs_what_it_costs_and_not_its_base64() -> None:
    def image(n: int) -> dict[str, Any]:
        source = {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo" * n}
        return {"role": "user", "content": [{"type": "image", "source": source}]}

    weights = [(await manager(None).compress([image(n)])).report.tokens_before for n in (1_000, 100_000)]
    url = {
        "role": "user",
        "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 9_999}}],
    }

    assert weights[0] == weights[1]
    assert 1_600 < weights[0] < 1_700
    assert 1_600 < (await manager(None).compress([url])).report.tokens_before < 1_700


async def test_one_message_twice_is_asked_for_once() -> None:
    summarizer = FakeSummarizer()
    compressed = await manager(None, summarizer, token_threshold=500).compress([long_message(1)] * 7)

    assert len(summarizer.asked) == 1
    assert len(set(map(str, compressed.messages))) == 1


async def test_at_most_five_calls_run_at_once() -> None:
    running, most = 0, 0

    async def summarize(text: str) -> str:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await anyio.wait_all_tasks_blocked()
        running -= 1
        return "short"

    await manager(None, summarize, token_threshold=3_000).compress(conversation(40))

    assert most == 5


async def test_no_summary_outlives_its_scope_s_clearing(tmp_path: Path) -> None:
    async with open_workspace(tmp_path, settings=FAST) as workspace:
        context = manager(await workspace.store())
        await context.summarize_message(long_message(1, id="m1"))
        await workspace.clear(ME, "task")
        with pytest.raises(NotFoundError):
            await workspace.get("task", "summary_m1")
        await context.summarize_message(long_message(1, id="m1"))
        assert (await workspace.get("task", "summary_m1")).info.version == 2
