"""Clients hear of changes by others, in both eras, without a restart."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from mcp.client.subscriptions import ResourcesListChanged, ResourceUpdated, Subscription, ToolsListChanged
from mcp.shared.exceptions import MCPError
from mcp.types import (
    INVALID_PARAMS,
    ResourceListChangedNotification,
    ResourceUpdatedNotification,
    ToolListChangedNotification,
)

from iris_kv.background import open_workspace
from iris_kv.policy import Principal
from iris_kv.settings import Settings

if TYPE_CHECKING:
    from tests.surfaces.conftest import Era, Open, Serve, Session

pytestmark = pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning")

USER = Principal(author="user", face="library")
FAST = Settings(durability="fast")
RESOURCES, TOOLS = "the list of resources", "the list of tools"
ARTIFACT = "iris-kv://cache/artifacts/a%2Fb"
RESEARCH = "iris-kv://instructions/research"


class Ear:
    """What a client heard, as the words above and URIs, in order."""

    def __init__(self) -> None:
        self._heard: list[str] = []
        self.is_streaming = False
        self._more = anyio.Event()

    async def on_message(self, message: Any) -> None:
        """Hear a notification of the older eras; a client passes on here what comes over a stream too."""
        if self.is_streaming:
            return
        if isinstance(message, ResourceListChangedNotification):
            self._hear(RESOURCES)
        elif isinstance(message, ToolListChangedNotification):
            self._hear(TOOLS)
        elif isinstance(message, ResourceUpdatedNotification):
            self._hear(str(message.params.uri))

    async def follow(self, subscription: Subscription) -> None:
        """Hear what comes over a stream of 2026-07-28."""
        async for event in subscription:
            if isinstance(event, ResourceUpdated):
                self._hear(event.uri)
            else:
                self._hear({ResourcesListChanged: RESOURCES, ToolsListChanged: TOOLS}[type(event)])

    def _hear(self, what: str) -> None:
        self._heard.append(what)
        self._more.set()
        self._more = anyio.Event()

    async def until(self, last: str) -> set[str]:
        """Return all that was heard up to `last`, and forget it."""
        with anyio.fail_after(20):
            while last not in self._heard:
                await self._more.wait()
        end = self._heard.index(last) + 1
        heard, self._heard = self._heard[:end], self._heard[end:]
        return set(heard)


@asynccontextmanager
async def listening(ear: Ear, session: Session, era: Era, *uris: str) -> AsyncGenerator[None]:
    """Subscribe as the era does it."""
    if era == "legacy":
        for uri in uris:
            await session.client.session.subscribe_resource(uri)
        yield
        return
    listen = session.client.listen(tools_list_changed=True, resources_list_changed=True, resource_subscriptions=uris)
    async with listen as subscription, anyio.create_task_group() as tasks:
        ear.is_streaming = True
        tasks.start_soon(ear.follow, subscription)
        yield
        tasks.cancel_scope.cancel()


async def in_both_eras(folder: Path, scenario: Callable[[Era, Path], Awaitable[None]]) -> None:
    """Play a scenario in each era, at the same time, as it is all waiting."""
    async with anyio.create_task_group() as tasks:
        for era in ("legacy", "auto"):
            (folder / era).mkdir()
            tasks.start_soon(scenario, era, folder / era)


def write_instruction(workspace: Path, name: str, text: str) -> None:
    folder = workspace / ".iris/instructions"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text(text)


def instruction(name: str, body: str = "Do it.", description: str = "Does it.") -> str:
    return f"---\nname: {name}\ndescription: {description}\n---\n{body}\n"


async def instructions_of(session: Session) -> str:
    return (await session.client.session.send_discover("2026-07-28"))["instructions"]


async def test_capabilities_promise_what_is_sent(era: Era, open_server: Open) -> None:
    async with open_server(era) as session:
        found = session.client.server_capabilities

    assert found.model_dump(exclude_none=True) == {
        "completions": {},
        "prompts": {"list_changed": False},
        "resources": {"subscribe": True, "list_changed": True},
        "tools": {"list_changed": True},
    }


async def test_a_new_an_overwritten_and_a_deleted_entry_are_told(open_server: Open, workspace: Path) -> None:
    async def scenario(era: Era, root: Path) -> None:
        ear = Ear()
        last = "iris-kv://cache/task/last"
        async with (
            open_server(era, root=root, message_handler=ear.on_message) as session,
            open_workspace(root, settings=FAST) as other,
            listening(ear, session, era, ARTIFACT, last),
        ):
            await other.put(USER, "artifacts", "a/b", b"new")
            new = await ear.until(ARTIFACT)
            await other.put(USER, "artifacts", "a/b", b"overwritten")
            await other.put(USER, "task", "last", b"not listed")
            overwritten = await ear.until(last)
            await other.delete(USER, "artifacts", "a/b")
            deleted = await ear.until(ARTIFACT)
            await other.put(USER, "artifacts", "a/b", b"again")
            again = await ear.until(ARTIFACT)
            await other.clear(USER, "artifacts")
            cleared = await ear.until(ARTIFACT)

        assert new == {RESOURCES, ARTIFACT}
        assert overwritten == {ARTIFACT, last}
        assert deleted == {RESOURCES, ARTIFACT}
        assert again == {RESOURCES, ARTIFACT}
        assert cleared == {RESOURCES, ARTIFACT}

    await in_both_eras(workspace, scenario)


async def test_a_put_by_the_same_process_is_told(era: Era, open_server: Open) -> None:
    ear = Ear()
    async with (
        open_server(era, message_handler=ear.on_message) as session,
        listening(ear, session, era, ARTIFACT, "iris-kv://stats"),
    ):
        await session.workspace.put(USER, "artifacts", "a/b", b"by the library")
        by_library = await ear.until("iris-kv://stats")
        await session.call("cache_put", scope="task", key="k", value="by a tool")
        by_tool = await ear.until("iris-kv://stats")

    assert by_library == {RESOURCES, ARTIFACT, "iris-kv://stats"}
    assert by_tool == {"iris-kv://stats"}


async def test_a_put_by_another_server_process_is_told(era: Era, serve: Serve, open_server: Open) -> None:
    ear = Ear()
    async with (
        serve(era, message_handler=ear.on_message) as here,
        open_server(era) as there,
        listening(ear, here, era, ARTIFACT),
    ):
        await there.call("put_artifact", key="a/b", value="from there")
        heard = await ear.until(ARTIFACT)
        value = await here.resource(ARTIFACT)

    assert heard == {RESOURCES, ARTIFACT}
    assert value == "from there"


async def test_instruction_files_added_edited_broken_and_deleted_are_told_and_served(
    open_server: Open, workspace: Path
) -> None:
    async def scenario(era: Era, root: Path) -> None:
        ear = Ear()
        async with (
            open_server(era, root=root, message_handler=ear.on_message) as session,
            listening(ear, session, era, RESEARCH, "iris-kv://prompt/compact", "iris-kv://instructions/extra"),
        ):
            write_instruction(root, "research", instruction("research", "Mine."))
            overridden = await ear.until("iris-kv://prompt/compact")
            text = await session.resource(RESEARCH)
            answer = await session.call("get_instruction", tag="research")

            write_instruction(root, "extra", instruction("extra", description="Does more."))
            added = await ear.until("iris-kv://instructions/extra")
            described = (await session.client.list_tools()).tools[0].description
            discovered = await instructions_of(session) if era == "auto" else "- extra: Does more."

            write_instruction(root, "extra", instruction("extra", "Edited.", description="Does more."))
            edited = await ear.until("iris-kv://instructions/extra")
            edited_text = await session.resource("iris-kv://instructions/extra")

            write_instruction(root, "extra", "# Without front matter\n")
            write_instruction(root, "research", instruction("research", "Mine again."))
            await ear.until("iris-kv://prompt/compact")
            kept = await session.call("get_instruction", tag="extra")
            listed = await session.call("list_instructions")
            stats = await session.data("cache_stats")

            (root / ".iris/instructions/extra.md").unlink()
            deleted = await ear.until("iris-kv://instructions/extra")
            gone = await session.refusal("get_instruction", tag="extra")

        every_list = {TOOLS, RESOURCES}
        assert overridden == {*every_list, RESEARCH, "iris-kv://prompt/compact"}
        assert text == "Mine.\n"
        assert " origin=workspace " in answer.splitlines()[0]
        assert every_list < added
        assert "extra" in described
        assert "- extra: Does more." in discovered
        assert not edited & every_list
        assert edited_text == "Edited.\n"
        assert kept.endswith("\n\nEdited.\n")
        (problem,) = stats["instruction_errors"]
        assert problem["file"] == ".iris/instructions/extra.md"
        assert f"error in .iris/instructions/extra.md: {problem['problem']}" in listed.splitlines()
        assert every_list < deleted
        assert gone.startswith("not_found: no instruction 'extra'")

    await in_both_eras(workspace, scenario)


async def test_server_instructions_follow_the_tags_for_clients_that_do_not_listen(
    open_server: Open, workspace: Path, clock
) -> None:
    async with open_server("auto", clock=clock) as session:
        before = await instructions_of(session)
        write_instruction(workspace, "extra", instruction("extra", description="Does more."))
        clock.move(1_000)
        after = await instructions_of(session)

    assert "- extra: Does more." not in before
    assert "- extra: Does more." in after


async def test_a_resource_that_is_none_cannot_be_listened_to(era: Era, open_server: Open) -> None:
    async with open_server(era) as session:
        with pytest.raises(MCPError, match="not_found: no resource 'http://a/'") as raised:
            async with listening(Ear(), session, era, "http://a/"):
                pass

    assert raised.value.error.code == INVALID_PARAMS


async def test_a_client_that_unsubscribed_hears_of_lists_only(open_server: Open, workspace: Path) -> None:
    ear = Ear()
    async with (
        open_server("legacy", message_handler=ear.on_message) as session,
        open_workspace(workspace, settings=FAST) as other,
        listening(ear, session, "legacy", ARTIFACT, "iris-kv://cache/task/last"),
    ):
        await session.client.session.unsubscribe_resource(ARTIFACT)
        await other.put(USER, "artifacts", "a/b", b"new")
        await other.put(USER, "task", "last", b"new")
        heard = await ear.until("iris-kv://cache/task/last")

    assert heard == {RESOURCES, "iris-kv://cache/task/last"}
