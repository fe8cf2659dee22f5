"""Reads over MCP: parts by pointer, versions that do not mix, binary values, and budgets of what is no value."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from mcp.shared.exceptions import MCPError
from mcp.types import INTERNAL_ERROR, BlobResourceContents

from iris_kv.model import digest_of, short_digest
from iris_kv.policy import Principal
from iris_kv.tokens import TokenCounter

if TYPE_CHECKING:
    from tests.surfaces.conftest import Era, Open, Session

USER = Principal(author="user", face="cli")
COUNT = TokenCounter().count
TABLE = {"meta": {"a/b": 1, "é": "ü"}, "rows": [{"id": n, "name": f"row {n}"} for n in range(3_000)]}
RAW = json.dumps(TABLE, indent=1, ensure_ascii=False).encode()


def short(value: bytes) -> str:
    return short_digest(digest_of(value))


def next_call(answer: str) -> tuple[str, dict[str, Any]] | None:
    """Return the call that an answer says gives what follows; None where nothing does."""
    found = re.search(r"\. Next: (\w+)\((.*?)\)(?:\. Or one of its [^\n]*)?\]\Z", answer)
    if found is None:
        return None
    pairs = re.findall(r'(\w+)=("(?:[^"\\]|\\.)*"|\d+)', found[2])
    return found[1], {name: json.loads(value) for name, value in pairs}


def value_of(answer: str) -> bytes:
    found = re.match(r"<(stored-\w+) [^\n]*>\n(.*)\n</\1>", answer, re.DOTALL)
    assert found is not None
    return found[2].encode()


async def walked(session: Session, tool: str, **arguments: Any) -> bytes:
    """Return what a tool gives when each answer is followed as it says."""
    data = b""
    following: tuple[str, dict[str, Any]] | None = (tool, arguments)
    while following is not None:
        answer = await session.call(following[0], **following[1])
        assert COUNT(answer) <= arguments.get("max_tokens", 8_000)
        data += value_of(answer)
        following = next_call(answer)
    return data


# Parts


@pytest.mark.parametrize(
    ("pointer", "part"),
    [
        ("/meta/a~1b", b"1"),
        ("/meta/é", '"ü"'.encode()),
        ("/rows/2999/name", b'"row 2999"'),
        ("/rows/7", b'{\n   "id": 7,\n   "name": "row 7"\n  }'),
    ],
)
async def test_a_pointer_reads_a_part_as_it_is_stored(era: Era, open_server: Open, pointer: str, part: bytes) -> None:
    async with open_server(era) as session:
        await session.workspace.put(USER, "artifacts", "table", RAW)
        artifact = await session.call("get_artifact", key="table", pointer=pointer)
        entry = await session.call("cache_get", scope="artifacts", key="table", pointer=pointer)

    assert value_of(artifact) == value_of(entry) == part
    start, end, size = map(int, re.findall(r" part=(\d+)-(\d+)/(\d+) ", artifact)[0])
    assert RAW[start:end] == part
    assert size == len(RAW)
    assert f' pointer="{pointer}" part=' in artifact
    assert f" bytes=0-{len(part)}/{len(part)}>" in artifact.split("\n")[0]


async def test_a_long_part_is_walked_by_its_own_offsets(era: Era, open_server: Open) -> None:
    async with open_server(era) as session:
        await session.workspace.put(USER, "task", "a {offset} b", RAW)
        first = await session.call("cache_get", scope="task", key="a {offset} b", pointer="/rows", max_tokens=900)
        part = await walked(session, "cache_get", scope="task", key="a {offset} b", pointer="/rows", max_tokens=900)

    assert next_call(first) == (
        "cache_get",
        {
            "scope": "task",
            "key": "a {offset} b",
            "pointer": "/rows",
            "max_tokens": 900,
            "offset": len(value_of(first)),
            "known_digest": short(RAW),
        },
    )
    assert first.endswith('. Or one of its 3000 elements: pointer="/rows/0", "/rows/2999"]')
    assert json.loads(part) == TABLE["rows"]
    assert part in RAW


async def test_a_json_value_that_is_cut_names_its_first_parts_once(open_server: Open) -> None:
    async with open_server() as session:
        await session.workspace.put(USER, "artifacts", "table", RAW)
        first = await session.call("get_artifact", key="table")
        following = next_call(first)
        assert following is not None
        second = await session.call(following[0], **following[1])
        few = await session.call("get_artifact", key="table", max_tokens=250)

    assert first.endswith('. Or one of its 2 members: pointer="/meta", "/rows"]')
    assert "pointer" not in second
    assert few.endswith('")]')


@pytest.mark.parametrize(
    ("key", "pointer", "words"),
    [
        ("table", "/rows/3000", 'not_found: pointer "/rows/3000" leads nowhere; "/rows" is an array of 3000; its'),
        ("table", "/row", 'the nearest are "/rows", "/meta"; take a pointer that is there'),
        ("table", "rows", 'invalid_argument: pointer "rows" is no JSON Pointer'),
        ("text", "/a", 'pointer needs JSON, and this value of type "text/plain" does not parse: Expecting value'),
        ("bytes", "/a", 'pointer needs JSON, and this value of type "application/octet-stream" does not parse'),
    ],
)
async def test_a_pointer_that_cannot_be_followed_says_why(
    era: Era, open_server: Open, key: str, pointer: str, words: str
) -> None:
    async with open_server(era) as session:
        for name, value in (("table", RAW), ("text", b"plain"), ("bytes", b"\xff\0")):
            await session.workspace.put(USER, "artifacts", name, value)
        answer = await session.refusal("get_artifact", key=key, pointer=pointer)

    assert words in answer


# Versions


@pytest.mark.parametrize("tool", ["get_artifact", "cache_get"])
async def test_a_known_value_is_answered_with_unchanged(era: Era, open_server: Open, tool: str) -> None:
    arguments = {"key": "k"} if tool == "get_artifact" else {"scope": "artifacts", "key": "k"}
    async with open_server(era) as session:
        await session.call("put_artifact", key="k", value="value")
        known = await session.call(tool, **arguments, known_digest=digest_of(b"value"))
        other = await session.call(tool, **arguments, known_digest=short(b"other"))
        refusal = await session.refusal(tool, **arguments, known_digest="latest")

    still = f'[artifacts/"k" is still 5 bytes, digest {short(b"value")}, expires '
    assert known.startswith(still)
    assert known.endswith("Z; without known_digest it is read]\n\nunchanged")
    assert value_of(other) == b"value"
    assert refusal.startswith("invalid_argument: known_digest is 'latest'; it is sha256:")


@pytest.mark.parametrize("new", ["new", "other words " * 9_000], ids=["shorter", "as long"])
async def test_going_on_in_a_value_that_changed_says_so(era: Era, open_server: Open, new: str) -> None:
    old = "many words " * 9_000
    async with open_server(era) as session:
        await session.call("put_artifact", key="k", value=old)
        following = next_call(await session.call("get_artifact", key="k"))
        link = (await session.contents("iris-kv://cache/artifacts/k"))[1].uri
        await session.call("put_artifact", key="k", value=new)
        assert following is not None
        by_tool = await session.refusal(following[0], **following[1])
        with pytest.raises(MCPError) as by_resource:
            await session.contents(link)

    assert by_tool == (
        f'conflict: "k" in artifacts has changed since the page before: its digest is {short(new.encode())}, no longer'
        f" {short(old.encode())}; pages of two versions do not belong together;"
        " start again without offset and known_digest"
    )
    assert by_resource.value.error.message == by_tool
    assert by_resource.value.error.code == INTERNAL_ERROR


async def test_a_resource_whose_digest_is_known_is_read_all_the_same(open_server: Open) -> None:
    async with open_server() as session:
        await session.call("put_artifact", key="k", value="value")
        text = await session.resource(f"iris-kv://cache/artifacts/k?known_digest={short(b'value')}")
        with pytest.raises(MCPError, match="known_digest is 'x'; it is sha256:"):
            await session.contents("iris-kv://cache/artifacts/k?offset=1&known_digest=x")

    assert text == "value"


async def test_going_on_in_an_instruction_or_a_prompt_that_changed_says_so(
    era: Era, open_server: Open, workspace: Path, clock: Any
) -> None:
    file = workspace / ".iris/instructions/long.md"
    file.parent.mkdir(parents=True)
    text = "---\nname: long\ndescription: Long.\n---\n## Part\n\n" + "many words and more\n" * 4_000
    file.write_text(text)
    uris = ["iris-kv://instructions/long?section=part", "iris-kv://prompt/full?max_tokens=500"]
    async with open_server(era, clock=clock) as session:
        answer = await session.call("get_instruction", tag="long", section="part", max_tokens=700)
        following = next_call(answer)
        links = [(await session.contents(uri))[1].uri for uri in uris]
        file.write_text(text.replace("## Part", "## Other part"))
        clock.move(2_000)
        assert following is not None
        changed = [await session.refusal(following[0], **following[1])]
        for link in links:
            with pytest.raises(MCPError) as raised:
                await session.contents(link)
            changed.append(raised.value.error.message)
        unchanged = await session.call("get_instruction", tag="long", known_digest=digest_of(file.read_bytes()))

    assert following[1] == {
        "tag": "long",
        "section": "part",
        "max_tokens": 700,
        "known_digest": short(text.encode()),
        "offset": following[1]["offset"],
    }
    assert COUNT(answer) <= 700
    assert "section=part&offset=" in links[0]
    assert "&max_tokens=500&known_digest=sha256%3A" in links[1]
    assert [each.split(" since")[0] for each in changed] == [
        "conflict: the instruction long has changed",
        "conflict: instructions/long has changed",
        "conflict: prompt/full has changed",
    ]
    assert unchanged.endswith("]\n\nunchanged")


# Binary values


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("picture.png", bytes(range(256)) * 400),
        ("latin.txt", "é".encode("latin-1") * 40_000),
        ("far.log", b"plain words\n" * 200_000 + b"\xe9" + b"plain words\n" * 9),
        ("cut.md", "é".encode() * 40_000 + b"\xc3"),
        ("nul.csv", b"a,b\n" * 50_000 + b"\0"),
    ],
)
async def test_what_is_not_text_as_a_whole_is_named_by_tools_and_walked_in_base64(
    era: Era, open_server: Open, workspace: Path, name: str, value: bytes
) -> None:
    (workspace / name).write_bytes(value)
    key = f"a b/é?{name}"
    async with open_server(era) as session:
        await session.call("put_artifact", key=key, from_path=name)
        described = await session.call("get_artifact", key=key)
        (uri,) = re.findall(r" Read the resource (\S+) for its base64", described)
        data = b""
        link = uri
        while link is not None:
            contents = await session.contents(link)
            assert isinstance(contents[0], BlobResourceContents)
            data += base64.b64decode(contents[0].blob)
            link = contents[1].uri if len(contents) > 1 else None

    assert described.startswith(f'[artifacts/"{key}" is binary: {len(value)} bytes of ')
    assert "\ufffd" not in described
    assert data == value


async def test_text_that_is_declared_json_and_is_not_utf_8_is_never_shown_as_text(open_server: Open) -> None:
    async with open_server() as session:
        store = await session.workspace.store()
        limits = session.workspace.settings.limits("task")
        value = b'["' + b"x" * 200_000 + b'\xff"]'
        await store.put("task", "k", value, content_type="application/json", limits=limits, provenance=USER.provenance)
        described = await session.call("cache_get", scope="task", key="k")
        refusal = await session.refusal("cache_get", scope="task", key="k", pointer="/0")
        (first, _) = await session.contents("iris-kv://cache/task/k")

    assert 'is binary: 200005 bytes of "application/json"' in described
    assert "does not parse: 'utf-8' codec can't decode byte 0xff" in refusal
    assert isinstance(first, BlobResourceContents)


# Budgets of what is no value


@pytest.mark.parametrize("max_tokens", [1, 60, 200, 400])
async def test_what_a_tool_says_beside_a_value_stays_within_what_was_asked_for(
    open_server: Open, workspace: Path, max_tokens: int
) -> None:
    keys = [f"{n} " + "\u200b" * 160 for n in range(30)]
    async with open_server() as session:
        for key in keys:
            await session.workspace.put(USER, "artifacts", key, b"\xff\0")
        calls: list[dict[str, Any]] = [
            {},
            {"key": keys[0]},
            {"key": keys[0], "known_digest": short(b"\xff\0")},
            {"key": "x" * 500},
            {"key": keys[0], "offset": 9, "known_digest": short(b"")},
            {"key": keys[0], "pointer": "/" + "x" * 500},
        ]
        answers = [await session.client.call_tool("get_artifact", {**call, "max_tokens": max_tokens}) for call in calls]
        guide = {"tag": "research", "max_tokens": max_tokens}
        answers.append(await session.client.call_tool("get_instruction", guide))
        answers.append(await session.client.call_tool("get_instruction", {**guide, "section": "x" * 9_000}))
        research = session.workspace.library.get("research").digest
        answers.append(await session.client.call_tool("get_instruction", {**guide, "known_digest": research}))

    texts = [answer.content[0].text for answer in answers]
    assert [text for text in texts if COUNT(text) > max(max_tokens, 200)] == []
    assert [
        text for text, answer in zip(texts, answers, strict=True) if not answer.is_error and COUNT(text) > max_tokens
    ] == []
    ends = {text.rsplit("; ", 1)[-1] for text, answer in zip(texts, answers, strict=True) if answer.is_error}
    assert ends <= {
        "give more, or leave it out",
        "leave pointer out",
        "take one of them",
        "take one of them, or list the keys",
        "call get_instruction with one of them, or without a section",
        "start again without offset and known_digest",
    }


async def test_seeding_beside_many_foreign_copies_names_some_and_counts_the_rest(
    open_server: Open, workspace: Path
) -> None:
    folder = workspace / ".iris/instructions"
    folder.mkdir(parents=True)
    for n in range(300):
        (folder / f"i{n:03}.md").write_text(f"---\nname: {'i' * 58}-{n:03}\ndescription: Does {n}.\n---\nDo it.\n")
    async with open_server() as session:
        store = await session.workspace.store()
        for instruction in session.workspace.library.instructions:
            await store.put(
                "instructions",
                instruction.tag,
                b"another's",
                content_type="text/markdown",
                limits=session.workspace.settings.limits("instructions"),
                provenance=USER.provenance,
                metadata={"source": "elsewhere"},
            )
        answer = await session.call("cache_seed")

    assert COUNT(answer) <= 8_000
    assert answer.endswith(" and 264 more")
