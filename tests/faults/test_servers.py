"""Servers that are killed, and whose index is deleted, replaced or of another version, as an MCP client sees it."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, suppress
from pathlib import Path

import anyio
import pytest
from mcp import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.shared.exceptions import MCPError
from mcp.types import CallToolResult, TextContent
from tests.faults.breaking import CACHE, INDEX, Ledger, moments
from tests.faults.conftest import Rounds
from tests.faults.program import RealClock

from iris_kv.model import digest_of
from iris_kv.store.files import FileStore

Connect = Callable[[], AbstractAsyncContextManager[Client]]


@pytest.fixture
def connect(tmp_path: Path, workspace: Path) -> Connect:
    env = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": f"{tmp_path}/config", "XDG_STATE_HOME": f"{tmp_path}/state"}
    # The shell tells its number and becomes the server, as the client does not tell which process it started.
    script = 'echo $$ >> "$1"; shift; exec "$@"'
    command = [str(Path(sys.executable).with_name("iris-kv")), "serve", "--workspace", str(workspace)]

    @asynccontextmanager
    async def connected() -> AsyncGenerator[Client]:
        arguments = ["-c", script, "sh", str(tmp_path / "pids"), *command]
        with (tmp_path / "log").open("a") as log:
            parameters = StdioServerParameters(command="sh", args=arguments, env={**env, "PATH": os.defpath})
            async with Client(stdio_client(parameters, log), mode="legacy", cache=None) as client:
                yield client

    return connected


def text_of(answer: CallToolResult) -> str:
    (content,) = answer.content
    assert isinstance(content, TextContent)
    return content.text


async def put(client: Client, key: str, value: str) -> CallToolResult:
    return await client.call_tool("put_artifact", {"key": key, "value": value})


async def get(client: Client, key: str) -> str:
    return text_of(await client.call_tool("get_artifact", {"key": key}))


async def test_killed_servers_lose_nothing_that_their_clients_were_told_is_stored(
    connect: Connect, tmp_path: Path, workspace: Path, rounds: Rounds
) -> None:
    ledger, chance = Ledger(), random.Random(rounds.seed)

    async def write(name: str, under_way: anyio.Event) -> None:
        with suppress(MCPError, anyio.ClosedResourceError, anyio.BrokenResourceError, ExceptionGroup):
            async with connect() as client:
                while True:
                    key, value = f"{name}{chance.randrange(3)}", f"{chance.random()} " * chance.choice([1, 5_000])
                    ledger.note(["begin", "artifacts", key, digest_of(value.encode())])
                    answer = await put(client, key, value)
                    if not answer.is_error:
                        ledger.note(["ack", "artifacts", key, digest_of(value.encode())])
                        under_way.set()

    for moment in moments(rounds.seed, rounds.kills_of_servers):
        (tmp_path / "pids").unlink(missing_ok=True)
        events = [anyio.Event(), anyio.Event()]
        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                for name, event in zip("ab", events, strict=True):
                    tasks.start_soon(write, name, event)
                for event in events:
                    await event.wait()
                with anyio.move_on_after(moment):
                    await anyio.sleep_forever()
                for server in (tmp_path / "pids").read_text().split():
                    os.kill(int(server), signal.SIGKILL)
        await ledger.check(workspace)
    assert ledger.acknowledged >= 2 * rounds.kills_of_servers


async def test_an_index_deleted_under_a_server_costs_nothing(connect: Connect, workspace: Path) -> None:
    async with connect() as client:
        for number in range(10):
            assert not (await put(client, f"k{number}", f"value {number}")).is_error
        for name in ("index.db", "index.db-wal", "index.db-shm"):
            (workspace / CACHE / ".store" / name).unlink(missing_ok=True)
        for number in range(10):
            assert f"value {number}" in await get(client, f"k{number}")
        assert not (await put(client, "k0", "written behind it")).is_error
        assert "written behind it" in await get(client, "k0")


async def test_another_index_under_a_server_makes_it_serve_nothing_wrong(connect: Connect, workspace: Path) -> None:
    old = workspace / "old"
    async with connect() as client:
        assert not (await put(client, "k", "the first value")).is_error
    shutil.copytree(workspace / CACHE / ".store", old)
    async with connect() as client:
        assert not (await put(client, "k", "the second value")).is_error
        os.replace(old / "index.db", workspace / INDEX)
        answers = [await get(client, "k") for _ in range(3)]
        assert not (await put(client, "k", "the third value")).is_error
        assert "the third value" in await get(client, "k")
    assert not [answer for answer in answers if "the first value" in answer]
    assert all("the second value" in answer or answer.startswith("corrupt:") for answer in answers)


async def test_a_newer_schema_is_left_alone_while_instructions_are_served(connect: Connect, workspace: Path) -> None:
    async with connect() as client:
        assert not (await put(client, "k", "value")).is_error
    set_schema(workspace, 2)
    async with connect() as client:
        refused = await put(client, "k", "overwritten")
        assert refused.is_error
        assert text_of(refused).startswith("unavailable: the index has schema 2, and this iris-kv knows up to 1")
        assert "# " in text_of(await client.call_tool("get_instruction", {"tag": "research"}))
    set_schema(workspace, 1)
    async with connect() as client:
        assert "value" in await get(client, "k")


async def test_a_schema_that_a_newer_version_puts_under_a_running_server_is_not_written_to(
    connect: Connect, workspace: Path
) -> None:
    async with connect() as client:
        assert not (await put(client, "k", "value")).is_error
        set_schema(workspace, 2)
        refused = await put(client, "k", "overwritten")
        assert refused.is_error
        assert text_of(refused).startswith("unavailable: the index has schema 2, and this iris-kv knows up to 1")
    set_schema(workspace, 1)
    async with aclosing(await FileStore.open(workspace, clock=RealClock())) as store:
        assert (await store.get("artifacts", "k")).value == b"value"


def set_schema(workspace: Path, version: int) -> None:
    """Do what a newer version's migration does first."""
    index = sqlite3.connect(workspace / INDEX, timeout=10)
    index.execute(f"PRAGMA user_version={version}")
    index.close()
