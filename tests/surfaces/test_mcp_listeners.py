"""Who listens to a workspace's changes is bounded, and forgotten when it leaves."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
from mcp.shared.exceptions import MCPError
from tests.conftest import Clock
from tests.surfaces.conftest import LocalSession, Open
from tests.surfaces.http_server import running

from iris_kv.surfaces import notify

pytestmark = pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning")


def heard(session: LocalSession) -> int:
    return session.server._visits.opening().notifier.n_heard  # pyright: ignore[reportOptionalMemberAccess]


async def test_subscriptions_are_bounded_and_given_back(open_server: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "MAX_HEARD", 3)
    uris = [f"iris-kv://cache/task/{n}" for n in range(5)]
    async with open_server("legacy") as session:
        for uri in [*uris[:3], uris[0]]:
            await session.client.subscribe_resource(uri)
        with pytest.raises(MCPError, match="busy: 3 resources are subscribed to"):
            await session.client.subscribe_resource(uris[3])
        await session.client.unsubscribe_resource(uris[0])
        await session.client.unsubscribe_resource(uris[0])
        await session.client.subscribe_resource(uris[3])
        with pytest.raises(MCPError, match="busy"):
            await session.client.subscribe_resource(uris[4])


async def test_a_stream_that_asks_for_too_much_is_refused_and_one_that_ended_is_forgotten(
    open_server: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "MAX_HEARD", 3)
    uris = [f"iris-kv://cache/task/{n}" for n in range(4)]
    async with open_server() as session:
        with pytest.raises(MCPError, match="busy: 0 resources are subscribed to, and 4 more are asked for"):
            async with session.client.listen(resource_subscriptions=uris):
                pass
        for _ in range(3):
            async with session.client.listen(resource_subscriptions=uris[:3]):
                assert heard(session) == 3
            with anyio.fail_after(5):
                while heard(session):
                    await anyio.lowlevel.checkpoint()


async def test_more_clients_than_are_told_of_changes_still_work(
    open_server: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "MAX_LISTENERS", 0)
    async with open_server("legacy") as session:
        stored = await session.call("cache_put", scope="task", key="k", value="v")
        with pytest.raises(MCPError, match="busy: 0 clients are told of changes"):
            await session.client.subscribe_resource("iris-kv://cache/task/k")

    assert stored.startswith('stored "k"')


async def test_what_a_session_over_http_subscribed_to_is_given_back_at_its_end(workspace: Path, clock: Clock) -> None:
    async with running(workspace, clock) as server:
        for _ in range(3):
            async with server.client(mode="legacy") as client:
                await client.subscribe_resource("iris-kv://cache/task/k")
                (served,) = server.platform._open.residents
                assert served.notifier.n_heard == 1
            with anyio.fail_after(5):
                while served.notifier.n_heard or served.notifier._connections:
                    served.notifier._forget_closed()
                    await anyio.lowlevel.checkpoint()
