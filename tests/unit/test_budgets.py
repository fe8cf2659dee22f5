"""What a connected server costs in tokens of o200k_base, counted with the real tokenizer."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from mcp.types import CallToolResult, TextContent

from iris_kv.location import Location
from iris_kv.policy import Principal
from iris_kv.settings import Profile, Settings
from iris_kv.surfaces.mcp_server import IrisServer
from iris_kv.surfaces.visits import OneWorkspace
from iris_kv.tokens import TokenCounter
from iris_kv.workspace import Workspace

REAL = TokenCounter()
ESTIMATE = TokenCounter(exact=False)
USER = Principal(author="user", face="cli")
DICE = random.Random(20_260_101)
Connect = Callable[..., AbstractAsyncContextManager[tuple[Client, Workspace]]]


def drawn(first: int, last: int, n: int) -> str:
    return "".join(chr(DICE.randint(first, last)) for _ in range(n))


DENSE = {
    "prose": "The quick brown fox jumps over the lazy dog, twice.\n" * 1_300,
    "emoji": drawn(0x1F300, 0x1F5FF, 16_000),
    "ideographs": drawn(0x4E00, 0x9FFF, 21_000),
    "base64": base64.b64encode(DICE.randbytes(48_000)).decode(),
    "hexadecimal": DICE.randbytes(32_000).hex(),
    "one line of 1 MB": "abc " * 262_144,
    "digits": "".join(DICE.choices("0123456789", k=64_000)),
}
DENSER = {
    "single digits": "1 " * 32_000,
    "rare ideographs": drawn(0x20000, 0x2A6DF, 16_000),
    "private use": drawn(0xE000, 0xF8FF, 21_000),
    "signs": "".join(DICE.choices([chr(n) for n in range(33, 127)], k=64_000)),
}
"""Texts with less than 1.4 bytes a token, down to one."""
BLOBS = {
    "drawn": DICE.randbytes(200_000),
    "zeros": bytes(200_000),
    "one token a letter": base64.b64decode("qXqX" * 50_000),
}
"""Binary values whose base64 has few, many and the most tokens."""


@pytest.fixture
def connect(tmp_path: Path) -> Connect:
    @asynccontextmanager
    async def connected(
        *, profile: Profile = "full", counter: TokenCounter = REAL, folder: Path | None = None
    ) -> AsyncGenerator[tuple[Client, Workspace]]:
        folders = {"folders": () if folder is None else (folder,)}
        settings = Settings(durability="fast", instructions=folders)
        workspace = Workspace(Location(root=tmp_path, reason="test"), settings, face="mcp", counter=counter)
        try:
            async with Client(IrisServer(OneWorkspace(workspace), profile), cache=None) as client:
                yield client, workspace
        finally:
            await workspace.aclose()

    return connected


def shown(answer: CallToolResult) -> str:
    """Return all of an answer that a model may see."""
    (content,) = answer.content
    assert isinstance(content, TextContent)
    structured = answer.structured_content
    return content.text + ("" if structured is None else json.dumps(structured, ensure_ascii=False, indent=1))


async def standing_cost(client: Client) -> dict[str, int]:
    """Return the tokens of the compact prompt, of what a client shows of the tools, and of the server instructions."""
    prompt = (await client.get_prompt("system", {"variant": "compact"})).messages[0].content.text
    tools = [
        {"name": tool.name, "description": tool.description, "input_schema": tool.input_schema}
        for tool in (await client.list_tools()).tools
    ]
    return {
        "prompt": REAL.count(prompt),
        "tools": sum(REAL.count(json.dumps(tool)) for tool in tools),
        "instructions": REAL.count(client.instructions or ""),
    }


def write_many(folder: Path, n: int, description: str = "Does the task number {}. Use when it is wanted.") -> None:
    folder.mkdir()
    for number in range(n):
        text = f"---\nname: task-{number:04}\ndescription: {description.format(number)}\n---\nDo it.\n"
        (folder / f"task-{number:04}.md").write_text(text)


def test_counts_here_are_those_of_the_real_tokenizer() -> None:
    assert REAL.exact
    assert not ESTIMATE.exact


@pytest.mark.parametrize(("profile", "most"), [("standard", 1_200), ("full", 1_700)])
async def test_what_always_stands_in_the_context_is_within_its_budget(
    connect: Connect, profile: Profile, most: int
) -> None:
    async with connect(profile=profile) as (client, _):
        cost = await standing_cost(client)
        instructions = client.instructions or ""

    assert cost["prompt"] <= 1_300
    assert cost["tools"] <= most
    assert cost["instructions"] <= 250
    assert len(instructions) <= 2_048


@pytest.mark.parametrize("counter", [REAL, ESTIMATE], ids=["exact", "estimated"])
async def test_a_thousand_instructions_cost_at_most_200_tokens_more_than_four(
    connect: Connect, tmp_path: Path, counter: TokenCounter
) -> None:
    write_many(tmp_path / "many", 1_000)
    async with connect(profile="standard", counter=counter) as (client, _):
        four = await standing_cost(client)
    async with connect(profile="standard", counter=counter, folder=tmp_path / "many") as (client, workspace):
        many = await standing_cost(client)
        instructions = client.instructions or ""
        assert len(workspace.library.instructions) == 1_004

    assert sum(many.values()) <= sum(four.values()) + 200
    assert many["instructions"] <= 250
    assert len(instructions) <= 2_048
    assert "call `list_instructions`" in instructions


@pytest.mark.parametrize("description", ["{0} " + "很长的描述" * 100, "{0}" + "x" * 1_000, "{0} \U0001f600" * 100])
async def test_long_descriptions_leave_the_server_instructions_within_their_budget(
    connect: Connect, tmp_path: Path, description: str
) -> None:
    write_many(tmp_path / "many", 30, description)
    async with connect(profile="standard", folder=tmp_path / "many") as (client, _):
        cost = await standing_cost(client)
        instructions = client.instructions or ""

    assert cost["prompt"] <= 1_300 + 200
    assert cost["instructions"] <= 250
    assert len(instructions) <= 2_048


COUNTED = [
    *(pytest.param(REAL, text, id=f"exact {name}") for name, text in (DENSE | DENSER).items()),
    *(pytest.param(ESTIMATE, text, id=f"estimated {name}") for name, text in (DENSE | DENSER).items()),
]


@pytest.mark.parametrize(("counter", "text"), COUNTED)
async def test_an_answer_with_a_long_value_stays_within_its_budget(
    connect: Connect, counter: TokenCounter, text: str
) -> None:
    calls: dict[str, dict[str, Any]] = {
        "get_artifact": {"key": "k"},
        "cache_get": {"scope": "artifacts", "key": "k"},
    }
    # What stands around a value has some 130 tokens, which count as 350 without the tokenizer.
    few_tokens = 300 if counter.exact else 500
    async with connect(counter=counter) as (client, workspace):
        await workspace.put(USER, "artifacts", "k", text.encode())
        await workspace.put(USER, "project", "summary", text.encode())
        default = [await client.call_tool(tool, arguments) for tool, arguments in calls.items()]
        default.append(await client.call_tool("get_project_summary", {}))
        most = [
            await client.call_tool(tool, {**arguments, "max_tokens": tokens})
            for tool, arguments in calls.items()
            for tokens in (20_000, 10**9)
        ]
        few = await client.call_tool("get_artifact", {"key": "k", "max_tokens": few_tokens})
        resource = "".join(each.text for each in (await client.read_resource("iris-kv://cache/artifacts/k")).contents)
        resumed = (await client.get_prompt("resume")).messages[0].content.text

    assert all(1_000 < REAL.count(shown(answer)) <= 8_000 for answer in default)
    assert all(1_000 < REAL.count(shown(answer)) <= 20_000 for answer in most)
    assert 100 < REAL.count(shown(few)) <= few_tokens
    assert 1_000 < REAL.count(resource) <= 8_000
    assert REAL.count(resumed) <= 8_000


@pytest.mark.parametrize("counter", [REAL, ESTIMATE], ids=["exact", "estimated"])
@pytest.mark.parametrize("name", BLOBS)
async def test_a_binary_slice_stays_within_its_budget_in_base64(
    connect: Connect, counter: TokenCounter, name: str
) -> None:
    async with connect(counter=counter) as (client, workspace):
        await workspace.put(USER, "artifacts", "k", b"\xff" + BLOBS[name])
        default = (await client.read_resource("iris-kv://cache/artifacts/k")).contents
        most = (await client.read_resource("iris-kv://cache/artifacts/k?max_tokens=90000")).contents

    assert 900 < REAL.count(default[0].blob + default[1].text) <= 8_000
    assert 2_500 < REAL.count(most[0].blob + most[1].text) <= 20_000


@pytest.mark.parametrize("counter", [REAL, ESTIMATE], ids=["exact", "estimated"])
@pytest.mark.parametrize("char", ["k", "\U0001f600", "\u200b", "字"])
async def test_answers_with_keys_of_512_bytes_stay_within_their_budget(
    connect: Connect, counter: TokenCounter, char: str
) -> None:
    stem = char * ((512 - 4) // len(char.encode()))
    label = {"kind": char * (4_000 // len(char.encode()))}
    async with connect(counter=counter) as (client, workspace):
        await workspace.put(USER, "project", "summary", b"fact " * 20_000)
        for n in range(60):
            await workspace.put(USER, "artifacts", f"{stem}{n:04}", b"value", metadata=label)
            await workspace.put(USER, "task", f"{stem}{n:04}", b"state " * 2_000, metadata=label)
            await workspace.put(USER, "task", f"summary_{stem[8:]}{n:04}", b"state " * 2_000, metadata=label)
        calls: dict[str, dict[str, Any]] = {
            "newest": {"name": "get_artifact", "arguments": {}},
            "value": {"name": "get_artifact", "arguments": {"key": f"{stem}0000"}},
            "nearest": {"name": "get_artifact", "arguments": {"key": f"{stem}x"}},
            "list": {"name": "cache_list", "arguments": {"scope": "artifacts"}},
            "put": {"name": "put_artifact", "arguments": {"key": f"{stem}9999", "value": "v", "kind": label["kind"]}},
            "delete": {"name": "cache_delete", "arguments": {"scope": "artifacts", "key": f"{stem}0000"}},
            "unknown": {"name": "cache_put", "arguments": {stem * 200: 1}},
            "path": {"name": "put_artifact", "arguments": {"key": "k", "from_path": f"{stem}/" * 200}},
            "type": {
                "name": "cache_put",
                "arguments": {"scope": "task", "key": "k", "value": "v", "content_type": stem * 200},
            },
            "query": {"name": "list_instructions", "arguments": {"query": stem * 200}},
        }
        answers = {name: shown(await client.call_tool(**call)) for name, call in calls.items()}
        resumed = (await client.get_prompt("resume")).messages[0].content.text

    assert {name: REAL.count(text) for name, text in answers.items() if REAL.count(text) > 8_000} == {}
    assert REAL.count(resumed) <= 8_000


async def test_the_pages_of_a_thousand_entries_stay_within_their_budget(connect: Connect) -> None:
    keys = [f"{n:04} {drawn(0x4E00, 0x9FFF, 100)}" for n in range(1_000)]
    async with connect() as (_, workspace):
        for key in keys:
            await workspace.put(USER, "task", key, b"x")
    for counter in (REAL, ESTIMATE):
        async with connect(counter=counter) as (client, _):
            pages = [await client.call_tool("cache_list", {"scope": "task"})]
            while (cursor := (pages[-1].structured_content or {})["next_cursor"]) is not None:
                pages.append(await client.call_tool("cache_list", {"scope": "task", "cursor": cursor}))

        assert max(REAL.count(shown(page)) for page in pages) <= 8_000
        assert [entry["key"] for page in pages for entry in (page.structured_content or {})["entries"]] == keys


@pytest.mark.parametrize("counter", [REAL, ESTIMATE], ids=["exact", "estimated"])
async def test_a_library_of_a_thousand_with_many_errors_stays_within_the_budget_and_says_what_is_left(
    connect: Connect, tmp_path: Path, counter: TokenCounter
) -> None:
    write_many(tmp_path / "many", 1_000)
    for n in range(200):
        (tmp_path / f"many/broken-{n:03}.md").write_text("# No front matter\n")
    async with connect(counter=counter, folder=tmp_path / "many") as (client, _):
        everything = shown(await client.call_tool("list_instructions", {}))
        some = shown(await client.call_tool("list_instructions", {"query": "task"}))
        stats = await client.call_tool("cache_stats", {})
        unknown = shown(await client.call_tool("get_instruction", {"tag": "task"}))
        read = shown(await client.call_tool("get_instruction", {"tag": "task_0999"}))

    for text in (everything, some, shown(stats), unknown, read):
        assert REAL.count(text) <= 8_000
    assert " more lines do not fit; search them with a query]\nerror in " in everything
    assert everything.endswith(" more lines do not fit; mend these first]")
    assert " more errors in instruction files; mend these first]" in shown(stats)
    assert stats.structured_content is not None
    assert len(stats.structured_content["instruction_errors"]) > 5
    assert "1,004" in unknown or " more; call get_instruction" in unknown


@pytest.mark.parametrize("counter", [REAL, ESTIMATE], ids=["exact", "estimated"])
async def test_an_instruction_of_a_megabyte_of_headings_stays_within_the_budget(
    connect: Connect, tmp_path: Path, counter: TokenCounter
) -> None:
    (tmp_path / "many").mkdir()
    body = "".join(f"## {drawn(0x4E00, 0x9FFF, 8)}\n\ntext\n" for _ in range(2_000))
    (tmp_path / "many/a.md").write_text(f"---\nname: a\ndescription: Long.\n---\n{body}")
    async with connect(counter=counter, folder=tmp_path / "many") as (client, _):
        whole = shown(await client.call_tool("get_instruction", {"tag": "a"}))
        wrong = shown(await client.call_tool("get_instruction", {"tag": "a", "section": "none"}))

    assert REAL.count(whole) <= 8_000
    assert REAL.count(wrong) <= 8_000
