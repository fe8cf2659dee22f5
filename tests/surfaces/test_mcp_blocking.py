"""Nothing that a client asks for blocks the event loop, with a store in use and with one that cannot be."""

from __future__ import annotations

import importlib
import time
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest
from blockbuster import BlockBuster, BlockingError, blockbuster_ctx
from mcp.shared.exceptions import MCPError
from mcp.types import PromptReference

from iris_kv.background import Background
from iris_kv.settings import Settings

if TYPE_CHECKING:
    from tests.surfaces.conftest import Era, Open, Session, Start

pytestmark = pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning")


@pytest.fixture
def no_blocking() -> Generator[BlockBuster]:
    # The client loads it at its first structured answer.
    importlib.import_module("jsonschema")
    with blockbuster_ctx() as buster:
        yield buster


async def ask_everything(session: Session) -> None:
    for tool, arguments in (
        ("get_instruction", {"tag": "research"}),
        ("get_instruction", {"tag": "none"}),
        ("get_instruction", {"tag": "research", "section": "question"}),
        ("list_instructions", {"query": "slides"}),
        ("put_artifact", {"key": "k", "value": "v" * 100_000}),
        ("put_artifact", {"key": "json", "value": "[1]"}),
        ("put_artifact", {"key": "file", "from_path": "file.json"}),
        ("put_artifact", {"key": "file", "from_path": "file.bin"}),
        ("get_artifact", {}),
        ("get_artifact", {"key": "k"}),
        ("get_artifact", {"key": "none"}),
        ("put_project_summary", {"summary": "s"}),
        ("get_project_summary", {}),
        ("cache_list", {"scope": "artifacts"}),
        ("cache_get", {"scope": "artifacts", "key": "file"}),
        ("cache_put", {"scope": "task", "key": "k", "value": "v"}),
        ("cache_delete", {"scope": "task", "key": "k"}),
        ("cache_stats", {}),
        ("cache_prune", {}),
        ("cache_history", {"scope": "artifacts", "key": "file"}),
        ("cache_history", {"scope": "task"}),
        ("cache_restore", {"scope": "task", "key": "k"}),
        ("cache_clear", {"scope": "task", "confirm": True}),
        ("cache_seed", {"force": True}),
    ):
        answer = await session.client.call_tool(tool, arguments)
        assert "not foreseen" not in answer.content[0].text, tool
    for uri in ("instructions/research", "prompt/full", "stats", "cache/artifacts/k", "cache/artifacts/file"):
        try:
            await session.contents(f"iris-kv://{uri}")
        except MCPError as error:
            assert "not foreseen" not in error.error.message
    await session.client.list_tools()
    await session.client.list_resources()
    await session.client.list_resource_templates()
    await session.client.get_prompt("system", {"variant": "full"})
    await session.client.get_prompt("resume")
    for name, context in (("section", {"tag": "research"}), ("tag", {})):
        await session.client.complete(PromptReference(name="system"), {"name": name, "value": ""}, context)


def lay_out(workspace: Path) -> None:
    (workspace / "file.json").write_text("[1]")
    (workspace / "file.bin").write_bytes(b"\0" * 3_000_000)
    (workspace / ".iris/instructions").mkdir(parents=True)
    (workspace / ".iris/instructions/a.md").write_text("---\nname: a\ndescription: Does a.\n---\nDo it.\n")


async def test_the_guard_sees_a_call_that_blocks(no_blocking: BlockBuster) -> None:
    with pytest.raises(BlockingError):
        time.sleep(0.001)


async def test_no_call_blocks_with_a_store(
    era: Era, open_server: Open, workspace: Path, clock, no_blocking: BlockBuster
) -> None:
    no_blocking.deactivate()
    lay_out(workspace)
    async with open_server(era, settings=Settings(durability="full"), clock=clock) as session:
        no_blocking.activate()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(Background(session.workspace).run)
            if era == "legacy":
                await session.client.session.subscribe_resource("iris-kv://stats")
            await ask_everything(session)
            clock.move(2_000)
            await ask_everything(session)
            tasks.cancel_scope.cancel()
        no_blocking.deactivate()


async def test_no_call_blocks_without_a_store(
    era: Era, start: Start, workspace: Path, no_blocking: BlockBuster
) -> None:
    no_blocking.deactivate()
    lay_out(workspace)
    (workspace / ".iris/kv-cache").write_text("not a folder")
    async with start(era, workspace) as session:
        no_blocking.activate()
        await ask_everything(session)
        no_blocking.deactivate()


async def test_a_megabyte_of_markdown_does_not_hold_up_other_calls(open_server: Open, workspace: Path) -> None:
    folder = workspace / ".iris/instructions"
    folder.mkdir(parents=True)
    body = "".join(f"## Part {n}\n\n[a](b) *c* `d` e{n}\n\n" for n in range(25_000))
    (folder / "long.md").write_text(f"---\nname: long\ndescription: Long.\n---\n{body}")
    done = anyio.Event()
    async with open_server() as session:
        await session.call("cache_list", scope="task")

        async def load() -> None:
            await session.call("get_instruction", tag="long", section="part-24999")
            done.set()

        answered_meanwhile = 0
        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(load)
                while not done.is_set():
                    await session.call("cache_list", scope="task")
                    answered_meanwhile += 1

    assert answered_meanwhile > 2
