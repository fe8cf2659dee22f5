"""What the MCP tools take as a key and what they refuse: clearly, and without losing anything."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from iris_kv.settings import ScopeSettings, ScopesSettings, Settings

if TYPE_CHECKING:
    from tests.surfaces.conftest import Era, Open

NFC, NFD = unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é")
KEYS = [
    *("../../etc/passwd", "/abs", "..", ".", "/", "//", "C:\\x", "_index.json", ".index.json", "a/b", "a_b", "a%2Fb"),
    *("a//b", "CON", "con", "\U0001f600\U0001f389", NFC, NFD, "a?b#c%d&e f=g+h", "%", "%zz", "?offset=1", " ", "a "),
    *("{key}", "\u200b", "\u2028", '"', "'", "</stored>", "k" * 512, "ß" * 256, "\U0001f600" * 128),
]
SMALL = Settings(
    durability="fast",
    max_value_mb=0.0001,
    scopes=ScopesSettings(task=ScopeSettings(quota_mb=0.00025, ttl_hours=1)),
)


async def test_every_key_is_kept_apart_and_read_back_by_tool_and_resource(era: Era, open_server: Open) -> None:
    async with open_server(era) as session:
        for number, key in enumerate(KEYS):
            await session.call("put_artifact", key=key, value=f"value {number}")
        by_tool = [await session.call("get_artifact", key=key) for key in KEYS]
        listed = (await session.client.list_resources()).resources
        uris = {each.name: each.uri for each in listed if each.uri.startswith("iris-kv://cache/")}
        by_resource = {key: await session.resource(uris[key]) for key in KEYS}

    assert [answer.split("\n")[1] for answer in by_tool] == [f"value {number}" for number in range(len(KEYS))]
    assert set(uris) == set(KEYS)
    assert by_resource == {key: f"value {number}" for number, key in enumerate(KEYS)}


async def test_keys_write_no_file_outside_the_cache(open_server: Open, workspace: Path) -> None:
    async with open_server() as session:
        for key in KEYS:
            await session.call("put_artifact", key=key, value="x")

    assert [path.name for path in workspace.iterdir()] == [".iris"]
    assert sorted(path.name for path in (workspace / ".iris").iterdir()) == ["kv-cache"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"key": ""}, "the key is empty; a key is 1 to 512 bytes of UTF-8 without control characters"),
        ({"key": "k" * 513}, "the key has 513 bytes"),
        ({"key": "ß" * 257}, "the key has 514 bytes"),
        ({"key": "a\nb"}, "the key 'a\\nb' has a control character"),
        ({"key": "a\0b"}, "has a control character"),
        ({"key": "\x7f"}, "has a control character"),
        ({"key": "\x9b2J"}, "has a control character"),
        ({"key": "\ud800"}, "the key has a lone surrogate, which is not text"),
        ({"value": "a\udfffb"}, "the value has a lone surrogate, which is not text"),
        ({"metadata": {"a": "\ud800"}}, "has a lone surrogate, which is not text"),
        ({"scope": "nope"}, "'scope' is 'nope': Input should be 'project', 'task', 'artifacts'"),
        ({"ttl_hours": 0}, "ttl_hours is 0; it is above 0"),
        ({"ttl_hours": -1}, "ttl_hours is -1; it is above 0"),
        ({"ttl_hours": "NaN"}, "ttl_hours is nan; it is above 0"),
        ({"ttl_hours": 1e300}, "ttl_hours is 1e+300; it is above 0 and at most 876000"),
        ({"ttl_hours": "soon"}, "'ttl_hours' is 'soon': Input should be a valid number"),
        ({"content_type": "application/json"}, "is declared application/json and does not parse"),
        ({"content_type": "application/json", "value": '{"a": NaN}'}, "does not parse: NaN is no JSON"),
        ({"content_type": "application/ld+json", "value": "[" * 100_000}, "does not parse: maximum recursion"),
        ({"content_type": "text"}, "content_type is 'text'; it is a media type such as text/markdown"),
        ({"content_type": "text/plain\r\nX: y"}, "it is a media type"),
        ({"if_digest": "latest"}, "if_digest is 'latest'; it is sha256: and 16 to 64 hex digits, or empty for"),
        ({"metadata": {"a": "b" * 5_000}}, "the metadata has 5001 bytes; at most 4096"),
        ({"metadata": {"a": 1}}, "'metadata.a' is '1': Input should be a valid string"),
        ({"value": 5}, "'value' is '5': Input should be a valid string"),
        ({"value": None}, "'value' is"),
        ({"x" * 999: "k"}, f"'{'x' * 80}' is unknown; its arguments are scope"),
        ({"keys": "k"}, "'keys' is unknown (did you mean 'key'?); its arguments are scope, key, value, content_type?"),
    ],
    ids=str,
)
async def test_a_put_that_cannot_be_right_names_what_is_wrong_and_loses_nothing(
    open_server: Open, arguments: dict[str, Any], words: str
) -> None:
    async with open_server() as session:
        await session.call("cache_put", scope="task", key="k", value="kept")
        # The client writes None in place of what JSON has no word for, so the server's own face is called.
        answer = await session.refusal("cache_put", **{"scope": "task", "key": "k", "value": "new", **arguments})
        held = await session.data("cache_list", scope="task")
        value = await session.call("cache_get", scope="task", key="k")

    assert answer.startswith("invalid_argument: ")
    assert words in answer
    assert [entry["key"] for entry in held["entries"]] == ["k"]
    assert value.split("\n")[1] == "kept"


@pytest.mark.parametrize(
    ("tool", "arguments", "words"),
    [
        ("cache_put", {}, "cache_put: 'scope' is missing, 'key' is missing, 'value' is missing; its arguments are"),
        ("get_instruction", {"name": "research"}, "'tag' is missing, 'name' is unknown"),
        ("get_project_summary", {"a": 1}, "'a' is unknown; its arguments are none"),
        ("cache_get", {"scope": "task", "key": "k", "offset": "x"}, "'offset' is 'x': Input should be a valid integer"),
        ("get_artifact", {"key": "k", "offset": 1.5}, "'offset' is '1.5': Input should be a valid integer"),
        ("get_artifact", {"key": "k", "offset": -1}, "offset -1 is outside the value of 5 bytes; 0 to 5"),
        ("get_artifact", {"key": "k", "offset": 10**30}, "is outside the value of 5 bytes"),
        ("get_artifact", {"key": "k", "max_tokens": 0}, "max_tokens is 0; 1 to 20000; the default is 8000"),
        ("get_artifact", {"key": "k", "max_tokens": 1}, "max_tokens leaves no room for the value beside its header"),
        ("get_instruction", {"tag": "research", "offset": 10**9}, "offset 1000000000 is outside the value"),
        ("put_artifact", {"key": "k"}, "put_artifact takes either value or from_path"),
        ("put_artifact", {"key": "k", "value": "v", "from_path": "p"}, "give exactly one of them"),
        ("cache_clear", {"scope": "task", "confirm": "yes"}, "'confirm' is 'yes': Input should be a valid boolean"),
        ("cache_list", {"scope": "all"}, "'scope' is 'all': Input should be 'system', 'instructions', 'project'"),
        ("cache_list", {"scope": "task", "cursor": "\ud800"}, "lone surrogate"),
        ("cache_list", {"scope": "task", "prefix": "\ud800"}, "lone surrogate"),
    ],
    ids=str,
)
async def test_wrong_arguments_are_named_in_the_answer(
    open_server: Open, tool: str, arguments: dict[str, Any], words: str
) -> None:
    async with open_server() as session:
        await session.call("put_artifact", key="k", value="value")
        answer = await session.refusal(tool, **arguments)

    assert answer.startswith("invalid_argument: ")
    assert words in answer


@pytest.mark.parametrize("scope", ["system", "instructions"])
async def test_canonical_scopes_have_no_write_tool(era: Era, open_server: Open, scope: str) -> None:
    async with open_server(era) as session:
        await session.call("cache_seed")
        before = await session.data("cache_list", scope=scope)
        key = before["entries"][0]["key"]
        answers = [
            await session.refusal("cache_put", scope=scope, key="research", value="obey"),
            await session.refusal("cache_delete", scope=scope, key=key),
            await session.refusal("cache_clear", scope=scope, confirm=True),
        ]
        after = await session.data("cache_list", scope=scope)

    assert [answer.split(" (")[0] for answer in answers] == [f"read_only: the scope '{scope}' cannot be changed"] * 3
    assert after == before


async def test_a_value_over_the_limit_leaves_the_old_one(era: Era, open_server: Open) -> None:
    async with open_server(era, settings=SMALL) as session:
        await session.call("cache_put", scope="task", key="k", value="old")
        answer = await session.refusal("cache_put", scope="task", key="k", value="x" * 101)
        value = await session.call("cache_get", scope="task", key="k")

    assert answer.startswith(
        "too_large: the value has 101 bytes or more; one value of this scope has at most 100 bytes"
    )
    assert value.split("\n")[1] == "old"


async def test_a_scope_without_room_names_its_largest_and_oldest_keys(era: Era, open_server: Open, clock) -> None:
    async with open_server(era, settings=SMALL, clock=clock) as session:
        for key, size in (("oldest", 20), ("largest", 100), ("newest", 90)):
            await session.call("cache_put", scope="task", key=key, value="x" * size)
            clock.move(1_000)
        answer = await session.refusal("cache_put", scope="task", key="k", value="x" * 60)
        listed = await session.data("cache_list", scope="task")

    assert answer == (
        "quota_exceeded: 'k' has 60 bytes, and task holds 210 of 250;"
        " largest: 'largest' (100 bytes), 'newest' (90 bytes), 'oldest' (20 bytes);"
        " oldest: 'oldest' (20 bytes), 'largest' (100 bytes), 'newest' (90 bytes);"
        " delete what is not needed any more, or raise the quota of the scope in the settings"
    )
    assert [entry["key"] for entry in listed["entries"]] == ["largest", "newest", "oldest"]


# Files of the workspace


def link_to_a_file(workspace: Path) -> str:
    (workspace / "inside.txt").write_text("inside")
    (workspace / "link.txt").symlink_to(workspace / "inside.txt")
    return "link.txt"


def link_to_a_folder(workspace: Path) -> str:
    (workspace / "folder").symlink_to("/etc")
    return "folder/passwd"


def fifo(workspace: Path) -> str:
    os.mkfifo(workspace / "fifo")
    return "fifo"


def own_file(workspace: Path) -> str:
    (workspace / ".iris").mkdir(exist_ok=True)
    (workspace / ".iris/config.toml").write_text("")
    return ".iris/config.toml"


@pytest.mark.parametrize(
    "prepare",
    [
        link_to_a_file,
        link_to_a_folder,
        fifo,
        own_file,
        lambda workspace: "/etc/passwd",
        lambda workspace: "../outside.txt",
        lambda workspace: f"{workspace}/../outside.txt",
        lambda workspace: f"{workspace}/.iris/kv-cache/README.txt",
        lambda workspace: "./.iris/kv-cache/README.txt",
        lambda workspace: ".",
        lambda workspace: "",
        lambda workspace: "a\0b",
        lambda workspace: "\ud800",
        lambda workspace: "x" * 300,
    ],
)
async def test_a_file_that_is_not_plainly_in_the_workspace_is_refused(
    era: Era, open_server: Open, workspace: Path, prepare: Callable[[Path], str]
) -> None:
    (workspace.parent / "outside.txt").write_text("outside")
    path = prepare(workspace)
    async with open_server(era) as session:
        await session.call("put_artifact", key="k", value="kept")
        answer = await session.refusal("put_artifact", key="k", from_path=path)
        value = await session.call("get_artifact", key="k")

    assert answer.startswith(f"forbidden: from_path {path!r} ")
    assert value.split("\n")[1] == "kept"


@pytest.mark.parametrize(
    ("name", "content", "answer"),
    [
        ("bad.json", b"{", "invalid_argument: the value is declared application/json and does not parse: Expecting"),
        (
            "bad.json",
            "{}".encode("utf-16"),
            "invalid_argument: the value is declared application/json and does not parse",
        ),
        ("big.txt", b"x" * 101, "too_large: the value has 101 bytes or more"),
        ("big.json", b"[" + b" " * 100 + b"]", "too_large: the value has "),
    ],
)
async def test_a_file_whose_content_cannot_be_taken_is_refused(
    open_server: Open, workspace: Path, name: str, content: bytes, answer: str
) -> None:
    (workspace / name).write_bytes(content)
    async with open_server(settings=SMALL) as session:
        refusal = await session.refusal("put_artifact", key="k", from_path=name)
        listed = await session.data("cache_list", scope="artifacts")

    assert refusal.startswith(answer)
    assert listed["entries"] == []


async def test_a_missing_file_is_not_found(open_server: Open) -> None:
    async with open_server() as session:
        answer = await session.refusal("put_artifact", key="k", from_path="out/none.txt")

    assert (
        answer
        == "not_found: no file 'out/none.txt' in the workspace; from_path starts at the workspace; check the path"
    )


# Damage


async def test_a_value_changed_by_hand_is_never_served_until_it_is_written_again(
    era: Era, open_server: Open, workspace: Path
) -> None:
    async with open_server(era) as session:
        await session.call("put_artifact", key="k", value="real")
        (file,) = (workspace / ".iris/kv-cache/artifacts").glob("k__*.txt")
        file.write_text("fake")
        by_tool = await session.refusal("get_artifact", key="k")
        with pytest.raises(Exception, match="corrupt: the stored bytes of 'k' in artifacts") as by_resource:
            await session.resource("iris-kv://cache/artifacts/k")
        await session.call("put_artifact", key="k", value="again")
        value = await session.call("get_artifact", key="k")

    assert by_tool.startswith("corrupt: the stored bytes of 'k' in artifacts do not match their digest; ")
    assert by_resource.value.error.code == -32603
    assert value.split("\n")[1] == "again"


class BreakingClock:
    """A clock that can be broken, as a stand-in for whatever nobody thought of."""

    is_broken = False

    def now_ms(self) -> int:
        if self.is_broken:
            raise RuntimeError("/secret/path")
        return 1_767_225_600_000


async def test_what_nobody_foresaw_is_answered_without_its_details(era: Era, open_server: Open) -> None:
    clock = BreakingClock()
    async with open_server(era, clock=clock) as session:
        clock.is_broken = True
        by_tool = await session.refusal("cache_put", scope="task", key="k", value="v")
        with pytest.raises(Exception, match="unavailable: the request failed in a way that was not") as by_resource:
            await session.resource("iris-kv://stats")
        with pytest.raises(Exception, match="unavailable: the request failed in a way that was not") as by_prompt:
            await session.client.get_prompt("system")
        clock.is_broken = False

    assert by_tool.startswith("unavailable: cache_put failed in a way that was not foreseen; nothing acknowledged")
    assert {by_resource.value.error.code, by_prompt.value.error.code} == {-32603}
    assert "secret" not in f"{by_tool}{by_resource.value}{by_prompt.value}"
