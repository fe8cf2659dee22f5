"""Several server processes of one workspace: what they see of each other, and whose instructions each serves."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import anyio
import pytest
from mcp import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.types import CallToolResult, TextContent

from iris_kv import open_workspace
from iris_kv.settings import Settings

Connect = Callable[..., AbstractAsyncContextManager[Client]]


@pytest.fixture
def connect(tmp_path: Path) -> Connect:
    folder = tmp_path / "home"
    env = {"HOME": str(folder), "XDG_CONFIG_HOME": f"{folder}/config", "XDG_STATE_HOME": f"{folder}/state"}
    (tmp_path / "work").mkdir()

    @asynccontextmanager
    async def connected(mode: str, *arguments: str) -> AsyncGenerator[Client]:
        command = str(Path(sys.executable).with_name("iris-kv"))
        args = ["serve", "--workspace", str(tmp_path / "work"), *arguments]
        with (tmp_path / "log").open("a") as log:
            parameters = StdioServerParameters(command=command, args=args, env=env)
            async with Client(stdio_client(parameters, log), mode=mode, cache=None) as client:
                yield client

    return connected


def text_of(answer: CallToolResult) -> str:
    (content,) = answer.content
    assert isinstance(content, TextContent)
    assert not answer.is_error, content.text
    return content.text


def write(folder: Path, name: str, version: str, body: str) -> None:
    folder.mkdir(exist_ok=True)
    metadata = f'metadata:\n  version: "{version}"\n'
    (folder / f"{name}.md").write_text(f"---\nname: {name}\ndescription: Does {name}.\n{metadata}---\n{body}\n")


async def test_forty_puts_of_two_processes_at_once_are_all_readable_from_both_and_by_a_third(
    connect: Connect, tmp_path: Path
) -> None:
    async def put(client: Client, key: str) -> None:
        text_of(await client.call_tool("put_artifact", {"key": key, "value": key * 2_000}))

    async def value(client: Client, key: str) -> str:
        return text_of(await client.call_tool("get_artifact", {"key": key})).split("\n")[1]

    keys = [f"{who}{n:02}" for who in "ab" for n in range(20)]
    async with connect("legacy") as one, connect("auto") as other:
        async with anyio.create_task_group() as tasks:
            for key in keys:
                tasks.start_soon(put, one if key[0] == "a" else other, key)
        read = [(key, await value(one, key), await value(other, key)) for key in keys]
    async with open_workspace(tmp_path / "work", settings=Settings(durability="fast")) as library:
        held = {key: (await library.get("artifacts", key)).value.decode() for key in keys}
        found = await library.verify("artifacts")

    assert read == [(key, key * 2_000, key * 2_000) for key in keys]
    assert held == {key: key * 2_000 for key in keys}
    assert (found.entries, found.damaged, found.usage_matches) == (40, (), True)
    assert "locked" not in (tmp_path / "log").read_text()


async def test_processes_with_other_folders_and_versions_each_serve_their_own(connect: Connect, tmp_path: Path) -> None:
    write(tmp_path / "old", "research", "1.0.0", "The old way.")
    write(tmp_path / "old", "only-old", "1.0.0", "Only here.")
    write(tmp_path / "new", "research", "2.0.0", "The new way.")

    async def seen(client: Client) -> tuple[str, str]:
        return (
            text_of(await client.call_tool("get_instruction", {"tag": "research"})),
            (await client.read_resource("iris-kv://instructions/research")).contents[0].text,
        )

    async def held(client: Client) -> set[str]:
        answer = await client.call_tool("cache_list", {"scope": "instructions"})
        return {entry["key"] for entry in (answer.structured_content or {})["entries"]}

    old_folder, new_folder = str(tmp_path / "old"), str(tmp_path / "new")
    async with (
        connect("legacy", "--profile", "full", "--instructions", old_folder) as old,
        connect("auto", "--profile", "full", "--instructions", new_folder) as new,
        connect("auto", "--profile", "full") as shipped,
    ):
        for client in (old, new, shipped, old):
            text_of(await client.call_tool("cache_seed", {}))
        first = [await seen(client) for client in (old, new, shipped)]
        write(tmp_path / "new", "research", "2.1.0", "The newest way.")
        seeded = text_of(await new.call_tool("cache_seed", {}))
        forced = text_of(await shipped.call_tool("cache_seed", {"force": True}))
        second = [await seen(client) for client in (old, new, shipped)]
        tags = await held(shipped)
        missing = await shipped.call_tool("get_instruction", {"tag": "only_old"})

    for answers, new_version, new_body in ((first, "2.0.0", "The new way."), (second, "2.1.0", "The newest way.")):
        (old_answer, old_body), (new_answer, body), (shipped_answer, shipped_body) = answers
        assert old_answer.startswith("[tag=research version=1.0.0 origin=folder ")
        assert old_body == "The old way.\n"
        assert new_answer.startswith(f"[tag=research version={new_version} origin=folder ")
        assert body == f"{new_body}\n"
        assert " origin=shipped " in shipped_answer.splitlines()[0]
        assert shipped_body.startswith("# Research\n")
        assert not [answer for answer, _ in answers if "degraded" in answer.splitlines()[0]]
    assert seeded.startswith("written ")
    assert forced.startswith("written ")
    assert {"only_old", "research", "presentation"} <= tags
    assert missing.is_error
