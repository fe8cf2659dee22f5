"""Who listens to a workspace's changes is bounded, and forgotten when it leaves."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from mcp.shared.exceptions import MCPError
from tests.conftest import Clock
from tests.surfaces.conftest import LocalSession, Open
from tests.surfaces.http_server import running

from iris_kv.surfaces import notify

pytestmark = pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning")


def heard(session: LocalSession) -> int:
    return session.server._visits.opening().notifier.n_heard  # pyright: ignore[reportOptionalMemberAccess]


def opening(name: str) -> dict[str, Any]:
    client = {"name": name, "version": "1"}
    params = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": client}
    return {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}


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


async def test_a_uri_that_is_too_long_to_keep_is_refused(open_server: Open) -> None:
    async with open_server("legacy") as session:
        await session.client.subscribe_resource(f"iris-kv://cache/task/{'%F0%9F%98%80' * 128}")
        with pytest.raises(MCPError, match="invalid_argument: a URI has over 4096 characters"):
            await session.client.subscribe_resource(f"iris-kv://cache/task/{'x' * 5_000}")


async def test_what_a_session_says_of_itself_is_kept_once_and_bounded(workspace: Path, clock: Clock) -> None:
    headers = {"accept": "application/json, text/event-stream"}
    async with running(workspace, clock) as server, httpx2.AsyncClient(headers=headers) as client:
        refused = await client.post(server.mcp(), json=opening("x" * 70_000))
        opened = await client.post(server.mcp(), json=opening("x" * 60_000))
        own = {"mcp-session-id": opened.headers["mcp-session-id"], "mcp-protocol-version": "2025-11-25"}
        for _ in range(20):
            initialized = {"jsonrpc": "2.0", "method": "notifications/initialized"}
            await client.post(server.mcp(), json=initialized, headers=own)
        (served,) = server.platform._open.residents
        attended = len(served.notifier._connections)

    assert (refused.status_code, opened.status_code, attended) == (413, 200, 1)


async def test_a_client_that_reads_nothing_does_not_keep_others_from_hearing(
    workspace: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "TELL_S", 0.1)
    value = "/api/sandboxes/default/kv-cache/value?scope=task&key=k"
    headers = {"accept": "application/json, text/event-stream"}
    async with running(workspace, clock) as server, httpx2.AsyncClient(headers=headers) as http:
        opened = await http.post(server.mcp(), json=opening("deaf"))
        own = {**headers, "mcp-session-id": opened.headers["mcp-session-id"], "mcp-protocol-version": "2025-11-25"}
        await http.post(server.mcp(), json={"jsonrpc": "2.0", "method": "notifications/initialized"}, headers=own)
        for n in range(300):
            params = {"uri": f"iris-kv://cache/task/k?offset={n}&known_digest={'x' * 4_000}"}
            asked = {"jsonrpc": "2.0", "id": n, "method": "resources/subscribe", "params": params}
            assert "result" in (await http.post(server.mcp(), json=asked, headers=own)).text
        deaf = socket.socket()
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        deaf.connect(server.address)
        with deaf:
            lines = [f"{name}: {text}\r\n" for name, text in {"host": str(server.address), **own}.items()]
            deaf.sendall(f"GET /mcp HTTP/1.1\r\n{''.join(lines)}\r\n".encode())
            async with (
                server.client(mode="auto") as client,
                client.listen(resource_subscriptions=["iris-kv://cache/task/k"]) as heard,
            ):
                for n in range(8):
                    await http.post(server.url + value, content=str(n), headers={"content-type": "text/plain"})
                    with anyio.fail_after(20):
                        assert await anext(aiter(heard)) is not None


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
