"""Resources, prompts and completions over MCP."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from mcp.shared.exceptions import MCPError
from mcp.types import (
    INVALID_PARAMS,
    BlobResourceContents,
    PromptReference,
    ResourceTemplateReference,
    TextResourceContents,
)

from iris_kv import ContextManager
from iris_kv.instructions import InstructionLibrary, InstructionSource
from iris_kv.model import digest_of, short_digest
from iris_kv.policy import Principal
from iris_kv.settings import shipped

if TYPE_CHECKING:
    from tests.conftest import Clock
    from tests.surfaces.conftest import Era, Open, Session

USER = Principal(author="user", face="cli")
SHIPPED = InstructionLibrary([InstructionSource(folder=shipped("instructions"), origin="shipped", label="shipped")])
FIXED = [
    *(f"iris-kv://instructions/{tag}" for tag in SHIPPED.tags),
    *("iris-kv://prompt/compact", "iris-kv://prompt/full", "iris-kv://stats"),
]


async def listed(session: Session) -> list[list[str]]:
    """Return the URIs of each page of resources/list."""
    pages: list[list[str]] = []
    cursor: str | None = None
    while cursor is not None or not pages:
        page = await session.client.list_resources(cursor=cursor)
        pages.append([each.uri for each in page.resources])
        cursor = page.next_cursor
    return pages


async def walked(session: Session, uri: str) -> bytes:
    """Return a resource's bytes, read slice by slice as each answer says how it goes on."""
    data = b""
    while True:
        contents = await session.contents(uri)
        first = contents[0]
        data += base64.b64decode(first.blob) if isinstance(first, BlobResourceContents) else first.text.encode()
        if len(contents) == 1:
            return data
        assert contents[1].uri in contents[1].text
        uri = contents[1].uri


async def test_pages_walk_every_entry_once_in_key_order(era: Era, open_server: Open) -> None:
    keys = sorted(f"{n:03}/é" for n in range(250))
    async with open_server(era) as session:
        await session.call("put_project_summary", summary="facts")
        await session.call("cache_put", scope="task", key="t", value="not listed")
        for key in keys:
            await session.workspace.put(USER, "artifacts", key, b"x")
        pages = await listed(session)

    assert [len(page) for page in pages] == [100, 100, len(FIXED) + 251 - 200]
    assert [uri for page in pages for uri in page] == [
        *FIXED,
        "iris-kv://cache/project/summary",
        *(f"iris-kv://cache/artifacts/{quote(key, safe='')}" for key in keys),
    ]


async def test_pages_walk_a_long_library_and_then_the_entries(open_server: Open, workspace: Path) -> None:
    folder = workspace / ".iris/instructions"
    folder.mkdir(parents=True)
    for n in range(200):
        (folder / f"i{n:03}.md").write_text(f"---\nname: i{n:03}\ndescription: Does {n}.\n---\nDo it.\n")
    async with open_server() as session:
        await session.call("put_artifact", key="k", value="v")
        pages = await listed(session)

    assert [len(page) for page in pages] == [100, 100, 8]
    assert [uri for page in pages for uri in page] == [
        *(f"iris-kv://instructions/i{n:03}" for n in range(200)),
        *FIXED,
        "iris-kv://cache/artifacts/k",
    ]


def encoded(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    "cursor",
    [
        *("", "x", "é", "e30", "====", encoded([1]), encoded([3, None]), encoded([-1, None]), encoded([0, None])),
        *(encoded([0, "x"]), encoded([0, "9" * 5_000]), encoded([1, 5]), encoded([1, "\ud800"]), encoded({"a": 1})),
        base64.urlsafe_b64encode(b"[" * 100_000).decode(),
    ],
    ids=lambda cursor: cursor[:12],
)
async def test_a_cursor_of_nobody_s_is_refused(era: Era, open_server: Open, cursor: str) -> None:
    async with open_server(era) as session:
        with pytest.raises(MCPError, match="invalid_argument: ") as raised:
            await session.client.list_resources(cursor=cursor)

    assert raised.value.error.code == INVALID_PARAMS


@pytest.mark.parametrize("listing", ["list_tools", "list_prompts", "list_resource_templates"])
async def test_a_list_of_one_page_refuses_every_cursor(era: Era, open_server: Open, listing: str) -> None:
    async with open_server(era) as session:
        with pytest.raises(MCPError, match="this list has one page") as raised:
            await getattr(session.client, listing)(cursor="x")

    assert raised.value.error.code == INVALID_PARAMS


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("iris-kv://nothing", "not_found: no resource 'iris-kv://nothing'; resources are iris-kv://instructions/{tag}"),
        ("http://localhost/", "not_found: no resource"),
        ("file:///etc/passwd", "not_found: no resource"),
        ("iris-kv://cache/task", "not_found: no resource"),
        ("iris-kv://cache/task/none", "not_found: no entry 'none' in task"),
        ("iris-kv://cache/task/", "invalid_argument: the key is empty"),
        ("iris-kv://cache/all/k", "invalid_argument: unknown scope 'all'"),
        ("iris-kv://cache/task/%ff", "invalid_argument: '%ff' is not percent-encoded UTF-8"),
        ("iris-kv://cache/task/%00", "has a control character"),
        ("iris-kv://cache/task/k?size=1", "invalid_argument: unknown parameter 'size' of cache; known are offset"),
        ("iris-kv://cache/task/k?offset=-1", "invalid_argument: offset is '-1'"),
        ("iris-kv://cache/task/k?offset=9", "invalid_argument: offset 9 is outside the value of 1 bytes"),
        ("iris-kv://cache/task/k?max_tokens=0", "invalid_argument: max_tokens is 0"),
        ("iris-kv://instructions/none", "not_found: no instruction 'none'; there are: "),
        ("iris-kv://instructions/research?section=none", "not_found: research has no section 'none'"),
        ("iris-kv://prompt/none", "invalid_argument: unknown prompt variant 'none'"),
        ("iris-kv://" + "x" * 100_000, "not_found: no resource"),
    ],
    ids=lambda text: text[:40],
)
async def test_a_resource_that_is_not_there_is_the_client_s_error(
    era: Era, open_server: Open, uri: str, words: str
) -> None:
    async with open_server(era) as session:
        await session.call("cache_put", scope="task", key="k", value="v")
        with pytest.raises(MCPError) as raised:
            await session.contents(uri)

    assert words in raised.value.error.message
    assert raised.value.error.code == INVALID_PARAMS
    assert len(raised.value.error.message) < 8_000


async def test_instructions_and_prompts_are_read_as_they_are(era: Era, open_server: Open) -> None:
    research = SHIPPED.get("research")
    section = research.sections[3]
    async with open_server(era) as session:
        body = await session.contents("iris-kv://instructions/research")
        part = await session.resource(f"iris-kv://instructions/research?section={section.slug}")
        compact = await session.resource("iris-kv://prompt/compact")
        prompt = (await session.client.get_prompt("system", {"variant": "compact"})).messages[0].content.text
        full = await walked(session, "iris-kv://prompt/full")
        stats = json.loads(await session.resource("iris-kv://stats"))

    size = len(research.body)
    assert [content.model_dump(by_alias=True, exclude_none=True) for content in body] == [
        {
            "uri": "iris-kv://instructions/research",
            "mimeType": "text/markdown",
            "text": research.body.decode(),
            "_meta": {"iris-kv/digest": short_digest(research.digest), "iris-kv/bytes": f"0-{size}/{size}"},
        }
    ]
    assert part == research.body[section.start : section.end].decode()
    assert compact == prompt
    assert all(each.body.strip() in full for each in SHIPPED.instructions)
    assert stats["instructions"] == 4


@pytest.mark.parametrize("size", [5, 100_000])
async def test_a_binary_value_is_a_blob_and_is_described_by_the_tool(
    era: Era, open_server: Open, workspace: Path, size: int
) -> None:
    data = bytes(n % 251 for n in range(size))
    (workspace / "picture.png").write_bytes(data)
    async with open_server(era) as session:
        await session.call("put_artifact", key="picture", from_path="picture.png")
        described = await session.call("get_artifact", key="picture")
        contents = await session.contents("iris-kv://cache/artifacts/picture")
        whole = await walked(session, "iris-kv://cache/artifacts/picture")

    assert described.startswith(f'[artifacts/"picture" is binary: {size} bytes of "image/png", digest sha256:')
    assert isinstance(contents[0], BlobResourceContents)
    assert contents[0].mime_type == "image/png"
    assert contents[0].meta == {
        "iris-kv/digest": short_digest(digest_of(data)),
        "iris-kv/bytes": f"0-{len(base64.b64decode(contents[0].blob))}/{size}",
    }
    assert whole == data


@pytest.mark.parametrize("query", ["", "?max_tokens=150", "?offset=0&max_tokens=130"])
async def test_a_long_text_is_walked_by_the_links_behind_its_slices(era: Era, open_server: Open, query: str) -> None:
    value = "Zeile 😀 é\r\n" * (100 if query else 20_000)
    async with open_server(era) as session:
        await session.call("put_artifact", key="a?b#c%d e", value=value)
        first = await session.contents(f"iris-kv://cache/artifacts/a%3Fb%23c%25d%20e{query}")
        whole = await walked(session, f"iris-kv://cache/artifacts/a%3Fb%23c%25d%20e{query}")

    assert isinstance(first[1], TextResourceContents)
    assert first[1].text.startswith(f"[bytes 0-{len(first[0].text.encode())} of {len(value.encode())}. Next: read")
    assert whole == value.encode()


# Prompts


async def test_the_system_prompt_says_which_it_is_and_why(era: Era, open_server: Open) -> None:
    async with open_server(era) as session:
        prompts = (await session.client.list_prompts()).prompts
        default = await session.client.get_prompt("system")
        full = await session.client.get_prompt("system", {"variant": "full"})

    assert [(prompt.name, [each.name for each in prompt.arguments or []]) for prompt in prompts] == [
        ("system", ["variant", "subject"]),
        ("resume", []),
    ]
    assert default.description == "compact system prompt (chosen by: phase_on in prompts/rollout.toml)"
    assert full.description == (
        "full system prompt (chosen by: argument); full still works and is deprecated, as compact is rolled out to all;"
        " to go back to full for every fetch, set USE_KV_CACHE_PROMPT=false and restart the server"
    )
    assert [message.role for message in full.messages] == ["user"]
    assert all(each.body.decode().strip() in full.messages[0].content.text for each in SHIPPED.instructions)


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("nothing", {}, "unknown prompt 'nothing'; the prompts are system and resume"),
        ("system", {"variant": "short"}, "invalid_argument: unknown prompt variant 'short'; compact or full"),
        ("system", {"size": "1"}, "unknown arguments ['size'] of system; allowed: variant, subject"),
        ("resume", {"variant": "full"}, "unknown arguments ['variant'] of resume; allowed: none"),
    ],
)
async def test_a_prompt_that_is_not_there_is_the_client_s_error(
    era: Era, open_server: Open, name: str, arguments: dict[str, str], words: str
) -> None:
    async with open_server(era) as session:
        with pytest.raises(MCPError) as raised:
            await session.client.get_prompt(name, arguments)

    assert words in raised.value.error.message
    assert raised.value.error.code == INVALID_PARAMS


async def test_resume_tells_the_summary_the_newest_tasks_and_the_instructions_in_use(
    era: Era, open_server: Open
) -> None:
    async with open_server(era) as session:
        empty = (await session.client.get_prompt("resume")).messages[0].content.text
        await session.call("put_project_summary", summary="Goal: ship it.")
        await session.call("cache_put", scope="task", key="migration", value="step 3 of 5")
        await session.call("get_instruction", tag="research")
        await session.workspace.aclose()
        text = (await session.client.get_prompt("resume")).messages[0].content.text

    assert empty == (
        "## Project summary\n\nNone is stored yet.\n\n## Open tasks\n\nNone is stored."
        "\n\n## Instructions in use\n\nNone was fetched in the last seven days."
    )
    summary, tasks, used = text.split("\n\n## ")
    assert "\nGoal: ship it.\n</stored-" in summary
    assert 'key="migration"' in tasks
    assert "\nstep 3 of 5\n" in tasks
    assert used == "Instructions in use\n\nresearch"


async def test_resume_lists_the_newest_summaries_of_a_conversation_behind_the_open_tasks(
    era: Era, open_server: Open, clock: Clock
) -> None:
    async with open_server(era, clock=clock) as session:
        await session.call("cache_put", scope="task", key="migration", value="step 3 of 5")
        context = ContextManager(await session.workspace.store(), summarizer=first_words)
        for n in range(60):
            clock.move(1)
            await context.summarize_message({"role": "user", "content": f"The words of message {n}.", "id": f"m{n}"})
        await session.workspace.aclose()
        text = (await session.client.get_prompt("resume")).messages[0].content.text

    _, tasks, summaries, _ = text.split("\n\n## ")
    assert tasks.startswith("Open tasks\n\n")
    assert "\nstep 3 of 5\n" in tasks
    assert "summary_" not in tasks
    assert re.findall(r'key="(.+?)"', summaries) == [f"summary_m{n}" for n in (59, 58, 57, 56, 55)]
    assert summaries.startswith(
        'Conversation summaries\n\nThe newest; cache_list(scope="task", prefix="summary_") lists all.\n\n'
    )
    assert "\nAbout: The words of message 59.\n" in summaries
    assert 'written_by="agent via library"' in summaries


async def first_words(text: str) -> str:
    return f"About: {text[:40]}"


# Completions


@pytest.mark.parametrize(
    ("name", "prefix", "context", "values"),
    [
        ("tag", "", {}, list(SHIPPED.tags)),
        ("tag", "re", {}, ["research"]),
        ("section", "s", {"tag": "research"}, ["search-strategy", "source-quality"]),
        ("section", "s", {}, []),
        ("scope", "", {}, ["system", "instructions", "project", "task", "artifacts"]),
        ("scope", "t", {}, ["task"]),
        ("key", "a", {"scope": "task"}, ["a b", "a/é"]),
        ("key", "a", {}, []),
        ("variant", "", {}, ["compact", "full"]),
        ("variant", "f", {}, ["full"]),
        ("offset", "", {}, []),
    ],
    ids=str,
)
async def test_arguments_are_completed(
    era: Era, open_server: Open, name: str, prefix: str, context: dict[str, str], values: list[str]
) -> None:
    reference: Any = PromptReference(name="system")
    if name != "variant":
        reference = ResourceTemplateReference(uri="iris-kv://cache/{scope}/{key}{?offset,max_tokens,known_digest}")
    async with open_server(era) as session:
        for key in ("a/é", "a b", "b"):
            await session.call("cache_put", scope="task", key=key, value="v")
        found = await session.client.complete(reference, {"name": name, "value": prefix}, context)

    assert found.completion.values == values
    assert (found.completion.total, found.completion.has_more) == (len(values), False)


async def test_a_completion_of_many_keys_says_that_there_are_more(era: Era, open_server: Open) -> None:
    reference = ResourceTemplateReference(uri="iris-kv://cache/{scope}/{key}{?offset,max_tokens,known_digest}")
    async with open_server(era) as session:
        for n in range(101):
            await session.workspace.put(USER, "task", f"{n:03}", b"x")
        found = await session.client.complete(reference, {"name": "key", "value": ""}, {"scope": "task"})

    assert found.completion.values == [f"{n:03}" for n in range(100)]
    assert (found.completion.total, found.completion.has_more) == (None, True)


@pytest.mark.parametrize(("name", "context"), [("section", {"tag": "none"}), ("key", {"scope": "none"})])
async def test_a_completion_in_an_unknown_context_is_the_client_s_error(
    era: Era, open_server: Open, name: str, context: dict[str, str]
) -> None:
    async with open_server(era) as session:
        with pytest.raises(MCPError) as raised:
            await session.client.complete(PromptReference(name="system"), {"name": name, "value": ""}, context)

    assert raised.value.error.code == INVALID_PARAMS
