"""The HTTP server as its operator sees it: health, metrics, logs, limits, sandboxes that open and close, its end."""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import httpx2
import pytest
from anyio.abc import SocketStream
from tests.conftest import Clock
from tests.surfaces.conftest import Era, Session
from tests.surfaces.http_server import BODY_BYTES, UNBOUNDED, Running, running

from iris_kv.http_settings import HttpSettings
from iris_kv.policy import Principal
from iris_kv.surfaces.http.platform import Limits
from iris_kv.surfaces.http.serving import OPEN_REQUESTS_S

PUT = '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"cache_put","arguments":%s}}'
VALUE = "/api/sandboxes/default/kv-cache/value?scope=task&key=k"
ADMIN = Principal(author="user", face="rest")


async def connected(server: Running) -> SocketStream:
    return await anyio.connect_tcp(server.address.host, server.address.port)


async def answer(stream: SocketStream) -> str:
    """Return what the server sends until it closes the connection."""
    received = b""
    try:
        async for chunk in stream:
            received += chunk
    except anyio.BrokenResourceError:
        pass
    return received.decode()


def head(path: str, *headers: str, method: str = "POST") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "host: 127.0.0.1", "content-type: application/json", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


def is_open(connection: socket.socket) -> bool:
    """Tell whether the server has neither closed nor reset a connection."""
    connection.setblocking(False)
    try:
        return connection.recv(1) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


# Health


async def test_health_and_readiness_are_told_without_a_token(workspace: Path, clock: Clock) -> None:
    async with running(workspace, clock) as server, httpx2.AsyncClient(base_url=server.url) as client:
        alive, ready = await client.get("/healthz"), await client.get("/readyz")

    assert (alive.status_code, alive.json()) == (200, {"status": "ok"})
    assert (ready.status_code, ready.json()) == (200, {"status": "ready"})


async def test_a_workspace_that_cannot_be_written_is_not_ready_and_says_why(workspace: Path, clock: Clock) -> None:
    (workspace / ".iris").mkdir()
    (workspace / ".iris/kv-cache").write_text("a file")
    async with running(workspace, clock) as server, httpx2.AsyncClient(base_url=server.url) as client:
        alive, ready = await client.get("/healthz"), await client.get("/readyz")

    assert (alive.status_code, ready.status_code) in {(200, 503), (200, 403)}
    assert "kv-cache" in ready.json()["detail"]
    assert str(workspace) not in ready.text


async def test_a_root_that_is_gone_is_not_ready(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "root").mkdir()
    async with running(tmp_path / "root", clock, shared=True) as server, httpx2.AsyncClient() as client:
        before = await client.get(f"{server.url}/readyz")
        (tmp_path / "root").rmdir()
        after = await client.get(f"{server.url}/readyz")
        listed = await client.get(f"{server.url}/api/sandboxes", headers=server.bearer("backend"))

    assert (before.status_code, after.status_code, listed.status_code) == (200, 503, 503)
    assert "the folder of the sandboxes cannot be read" in listed.json()["detail"]
    assert str(tmp_path) not in after.text + listed.text


# Ids, logs and metrics


@pytest.mark.parametrize(
    ("given", "kept"), [("abc-1.2_3:4", True), ("a" * 64, True), ("a" * 65, False), ("a b", False), ("é", False)]
)
async def test_a_well_formed_request_id_is_kept_and_another_replaced(
    workspace: Path, clock: Clock, given: str, *, kept: bool
) -> None:
    async with running(workspace, clock) as server, httpx2.AsyncClient() as client:
        found = await client.get(f"{server.url}/none", headers={"x-request-id": given.encode()})

    assert (found.headers["x-request-id"] == given) is kept
    assert re.fullmatch(r"[A-Za-z0-9._:-]{1,64}", found.headers["x-request-id"])


async def test_a_request_is_logged_without_its_secrets(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "box").mkdir()
    with caplog.at_level(logging.INFO, "iris_kv.requests"):
        async with running(tmp_path, clock, shared=True) as server:
            headers = server.bearer("backend")
            secret = headers["authorization"].removeprefix("Bearer ")
            async with httpx2.AsyncClient(headers=headers) as http:
                await http.get(f"{server.mcp('box')}?name=s3cret-query")
                await http.get(f"{server.mcp('box')}?token={secret}")
            async with server.client("box", mode="auto") as client:
                await Session(client).call("cache_put", scope="task", key="s3cret-key", value="s3cret-value")
                await Session(client).refusal("cache_get", scope="task", key="s3cret-missing")

    told = [getattr(record, "fields", {}) for record in caplog.records if record.name == "iris_kv.requests"]
    first = told[0]
    assert (first["sandbox"], first["principal"]) == ("box", "backend")
    assert {(line["operation"], line["outcome"]) for line in told} >= {
        ("mcp:cache_put", "ok"),
        ("mcp:cache_get", "not_found"),
    }
    assert all(line["ms"] >= 0 and line["sent"] >= 0 for line in told)
    assert "s3cret" not in str(told) + caplog.text
    assert secret not in str(told) + caplog.text


async def test_metrics_count_tools_of_either_era_and_hold_no_names(era: Era, tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "box-name").mkdir()
    async with running(tmp_path, clock, shared=True) as server:
        async with server.client("box-name", mode=era) as client:
            session = Session(client)
            await session.call("cache_put", scope="task", key="key-name", value="12345")
            await session.call("cache_get", scope="task", key="key-name")
            await session.refusal("cache_get", scope="task", key="other-name")
            await client.get_prompt("system")
        ok = await server.measured('iris_kv_operations_total{operation="mcp:cache_get",outcome="ok"}')
        missed = await server.measured('iris_kv_operations_total{operation="mcp:cache_get",outcome="not_found"}')
        hits = await server.measured('iris_kv_reads_total{result="hit",scope="task"}')
        misses = await server.measured('iris_kv_reads_total{result="miss",scope="task"}')
        used = await server.measured('iris_kv_used_bytes{scope="task"}')
        quota = await server.measured('iris_kv_quota_bytes{scope="task"}')
        prompts = await server.measured('iris_kv_prompts_total{variant="compact"}')
        timed = await server.measured('iris_kv_operation_seconds_count{operation="mcp:cache_put"}')
        opened = await server.measured("iris_kv_open_workspaces")
        async with httpx2.AsyncClient() as http:
            text = (await http.get(f"{server.url}/metrics")).text

    assert (ok, missed, hits, misses) == (1, 1, 1, 1)
    assert (used, quota, prompts, timed, opened) == (5, 100_000_000, 1, 1, 1)
    assert "-name" not in text


async def test_metrics_tell_values_from_what_clients_make_up(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "box").mkdir()
    async with running(tmp_path, clock, shared=True) as server:
        async with httpx2.AsyncClient(headers=server.bearer("backend"), base_url=server.url) as client:
            await client.get("/api/sandboxes/box/kv-cache/value", params={"scope": "task", "key": "none"})
            await client.request("MADE-UP", "/sandboxes/box/mcp")
        read = await server.measured('iris_kv_operations_total{operation="rest:get_value",outcome="not_found"}')
        other = await server.measured('iris_kv_operations_total{operation="mcp:other",outcome="refused"}')
        async with httpx2.AsyncClient() as http:
            text = (await http.get(f"{server.url}/metrics")).text

    assert (read, other) == (1, 1)
    assert "made-up" not in text.lower()


# Limits


async def test_a_body_that_is_announced_or_found_to_be_too_large_is_refused(workspace: Path, clock: Clock) -> None:
    async def chunks() -> object:
        for _ in range(BODY_BYTES // 500_000 + 1):
            yield b"x" * 500_000

    async with running(workspace, clock) as server, httpx2.AsyncClient() as client:
        url, headers = server.url + VALUE, {"content-type": "text/plain"}
        announced = await client.post(url, content=b"x" * (BODY_BYTES + 1), headers=headers)
        streamed = await client.post(url, content=chunks(), headers=headers)  # pyright: ignore[reportArgumentType]
        counted = await server.measured('iris_kv_refused_requests_total{reason="too_large"}')

    for found in (announced, streamed):
        assert (found.status_code, found.json()["code"]) == (413, "too_large")
    assert counted == 2


async def test_a_truncated_or_slow_body_writes_nothing(workspace: Path, clock: Clock) -> None:
    limits = UNBOUNDED._replace(requests=UNBOUNDED.requests._replace(pause_s=0.1))
    body = (PUT % '{"scope":"task","key":"k","value":"v"}').encode()
    accepted = "accept: application/json, text/event-stream"
    async with running(workspace, clock, limits=limits) as server:
        async with await connected(server) as truncated:
            await truncated.send(head("/mcp", accepted, f"content-length: {len(body)}") + body[:-5])
        async with await connected(server) as slow:
            await slow.send(head("/mcp", accepted, f"content-length: {len(body)}") + body[:-5])
            told = await answer(slow)
        async with server.client(mode="auto") as client:
            missing = await Session(client).refusal("cache_get", scope="task", key="k")
        counted = await server.measured('iris_kv_refused_requests_total{reason="too_slow"}')

    assert told.startswith("HTTP/1.1 408 ")
    assert "came too slowly" in told
    assert missing.startswith("not_found")
    assert counted == 1


async def test_a_body_that_drips_is_refused_by_its_rate(workspace: Path, clock: Clock) -> None:
    async with running(workspace, clock) as server, await connected(server) as dripping:
        await dripping.send(head(f"{VALUE}&raw=true", "content-length: 1000000") + b"x")
        # The request is being read once another's metrics show it.
        while await server.measured("iris_kv_open_requests") < 2:
            pass
        clock.move(60_000)
        await dripping.send(b"x")
        told = await answer(dripping)

    assert told.startswith("HTTP/1.1 408 ")


@pytest.mark.parametrize(
    ("lines", "status"),
    [(["x-a: 1"] * 70, 431), ([f"x-a: {'a' * 40_000}"], 431), (["content-length: " + "9" * 20], 413)],
)
async def test_too_many_or_too_large_headers_are_refused(
    workspace: Path, clock: Clock, lines: Sequence[str], status: int
) -> None:
    async with running(workspace, clock) as server, await connected(server) as stream:
        await stream.send(head("/healthz", *lines))
        told = await answer(stream)

    assert told.startswith(f"HTTP/1.1 {status} ")


async def test_a_long_path_counts_as_a_long_header(workspace: Path, clock: Clock) -> None:
    async with running(workspace, clock) as server, httpx2.AsyncClient() as client:
        found = await client.get(f"{server.url}/{'x' * 40_000}")

    assert found.status_code == 431


async def test_a_body_with_two_lengths_is_refused_and_what_follows_is_not_read(workspace: Path, clock: Clock) -> None:
    smuggled = head("/healthz", method="GET")
    async with running(workspace, clock) as server, await connected(server) as stream:
        sent = head(VALUE, f"content-length: {len(smuggled) + 5}", "transfer-encoding: chunked")
        await stream.send(sent + b"0\r\n\r\n" + smuggled)
        told = await answer(stream)

    assert told.startswith("HTTP/1.1 400 ")
    assert told.count("HTTP/1.1 ") == 1
    assert "both Content-Length and Transfer-Encoding" in told


async def test_each_token_has_its_own_rate(workspace: Path, clock: Clock) -> None:
    limits = UNBOUNDED._replace(per_s=2.0)
    async with running(workspace, clock, limits=limits) as server, httpx2.AsyncClient(base_url=server.url) as client:
        a, b = server.bearer("a"), server.bearer("b")
        first = [(await client.get("/none", headers=a)).status_code for _ in range(5)]
        refused = await client.get("/none", headers=a)
        other = await client.get("/none", headers=b)
        clock.move(1000 * int(refused.headers["retry-after"]))
        later = await client.get("/none", headers=a)

    assert first == [404, 404, 404, 404, 429]
    assert (refused.status_code, refused.json()["code"]) == (429, "busy")
    assert (other.status_code, later.status_code) == (404, 404)


async def test_who_guesses_tokens_is_slowed_down_and_who_has_one_is_not(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock, shared=True) as server, httpx2.AsyncClient(base_url=server.url) as client:
        wrong = {"authorization": "Bearer ikv_" + "A" * 43}
        guesses = [(await client.get("/api/sandboxes", headers=wrong)).status_code for _ in range(21)]
        refused = await client.get("/api/sandboxes")
        known = await client.get("/api/sandboxes", headers=server.bearer("known"))
        clock.move(1000 * int(refused.headers["retry-after"]))
        later = await client.get("/api/sandboxes", headers=wrong)

    assert guesses == [401] * 20 + [429]
    assert (refused.status_code, known.status_code, later.status_code) == (429, 200, 401)


@pytest.mark.parametrize(("trusted", "statuses"), [(("127.0.0.1",), [401, 401]), ((), [401, 429])])
async def test_clients_behind_a_trusted_proxy_have_a_rate_each(
    tmp_path: Path, clock: Clock, trusted: tuple[str, ...], statuses: list[int]
) -> None:
    settings = HttpSettings(trusted_proxies=trusted)
    async with (
        running(tmp_path, clock, shared=True, http=settings) as server,
        httpx2.AsyncClient(base_url=server.url) as client,
    ):
        for _ in range(19):
            await client.get("/api/sandboxes", headers={"x-forwarded-for": "198.51.100.1"})
        found = [
            (await client.get("/api/sandboxes", headers={"x-forwarded-for": address})).status_code
            for address in ("198.51.100.1", "198.51.100.2")
        ]

    assert found == statuses


async def test_five_hundred_idle_connections_hinder_nobody(workspace: Path, clock: Clock) -> None:
    async with running(workspace, clock) as server:
        idle = [await connected(server) for _ in range(500)]
        try:
            for stream in idle[::2]:
                await stream.send(b"GET /healthz HTTP/1.1\r\nho")
            async with server.client(mode="auto") as client:
                tools = await client.list_tools()
                stored = await Session(client).call("cache_put", scope="task", key="k", value="v")
        finally:
            for stream in idle:
                await stream.aclose()

    assert tools.tools
    assert stored.startswith('stored "k"')


async def test_a_connection_that_asks_nothing_is_closed(workspace: Path, clock: Clock) -> None:
    limits = UNBOUNDED._replace(connections=UNBOUNDED.connections._replace(head_s=0.1))
    async with (
        running(workspace, clock, limits=limits) as server,
        await connected(server) as silent,
        await connected(server) as halting,
    ):
        await halting.send(b"GET /healthz HTTP/1.1\r\n")
        assert await answer(silent) == ""
        assert await answer(halting) == ""


async def test_one_connection_too_many_costs_the_one_idle_for_longest(workspace: Path, clock: Clock) -> None:
    limits = UNBOUNDED._replace(connections=UNBOUNDED.connections._replace(most=5))
    async with running(workspace, clock, limits=limits) as server:
        oldest = await connected(server)
        others = [await connected(server) for _ in range(5)]
        async with httpx2.AsyncClient() as client:
            found = await client.get(f"{server.url}/healthz")
        closed = await answer(oldest)
        for stream in [oldest, *others]:
            await stream.aclose()

    assert (found.status_code, closed) == (200, "")


async def test_connections_that_come_at_once_are_bounded_as_well(workspace: Path, clock: Clock) -> None:
    limits = UNBOUNDED._replace(connections=UNBOUNDED.connections._replace(most=5))
    async with running(workspace, clock, limits=limits) as server, AsyncExitStack() as stack:
        # Without the loop in between, which then takes all of them in one turn.
        burst = [stack.enter_context(socket.create_connection(server.address)) for _ in range(40)]
        async with httpx2.AsyncClient() as client:
            found = await client.get(f"{server.url}/healthz")
        alive = [each for each in burst if is_open(each)]

    assert (found.status_code, len(alive)) == (200, 4)


async def test_a_client_that_takes_no_answers_is_left(workspace: Path, clock: Clock) -> None:
    limits = UNBOUNDED._replace(connections=UNBOUNDED.connections._replace(stalled_s=0.1))
    async with running(workspace, clock, limits=limits) as server, await connected(server) as stream:
        await stream.send(head("/api/openapi.json", method="GET") * 500)
        while not await server.measured('iris_kv_refused_requests_total{reason="too_slow"}'):
            pass
        while await server.measured("iris_kv_open_requests") > 1:
            pass


# Sandboxes


async def test_sandboxes_used_in_turn_are_closed_when_idle_or_too_many(tmp_path: Path, clock: Clock) -> None:
    names = [f"box-{n}" for n in range(12)]
    limits = Limits(max_open=4, idle_s=60)
    async with running(tmp_path, clock, shared=True, open_limits=limits) as server:
        for name in names:
            await server.platform.create(ADMIN, name)
        for turn in range(2):
            for name in names:
                clock.move(1)
                async with server.client(name, mode="auto") as client:
                    session = Session(client)
                    if turn == 0:
                        await session.call("cache_put", scope="task", key="k", value=name)
                    else:
                        assert name in await session.call("cache_get", scope="task", key="k")
                assert len(server.platform.open_ids) <= 4
        open_at_the_end = set(server.platform.open_ids)
        clock.move(60_000)
        await server.platform.close_idle()
        open_when_idle = server.platform.open_ids

    assert open_at_the_end == set(names[-4:])
    assert open_when_idle == ()


async def test_a_sandbox_that_is_not_there_closes_none_and_waits_for_none(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "box").mkdir()
    async with (
        running(tmp_path, clock, shared=True, open_limits=Limits(max_open=1)) as server,
        httpx2.AsyncClient(headers=server.bearer("backend"), base_url=server.url) as client,
    ):
        there = await client.get("/api/sandboxes/box/kv-cache/stats")
        absent = await client.get("/api/sandboxes/none/kv-cache/stats")
        still_open = server.platform.open_ids
        async with server.platform.visit(ADMIN, "box"):
            absent_while_in_use = await client.get("/api/sandboxes/none/kv-cache/stats")

    assert [each.status_code for each in (there, absent, absent_while_in_use)] == [200, 404, 404]
    assert still_open == ("box",)


async def test_a_listener_keeps_its_sandbox_open_only_while_it_listens(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "box").mkdir()
    async with running(tmp_path, clock, shared=True, open_limits=Limits(idle_s=60)) as server:
        async with server.client("box", mode="auto") as client, client.listen(resources_list_changed=True):
            clock.move(600_000)
            await server.platform.close_idle()
            during = server.platform.open_ids
        with anyio.fail_after(10):
            while server.platform.open_ids:
                await anyio.lowlevel.checkpoint()
                clock.move(600_000)
                await server.platform.close_idle()

    assert during == ("box",)


async def test_a_broken_configuration_of_a_sandbox_serves_instructions_and_answers_why(
    era: Era, tmp_path: Path, clock: Clock
) -> None:
    (tmp_path / "box/.iris").mkdir(parents=True)
    (tmp_path / "box/.iris/config.toml").write_text("nonsense")
    (tmp_path / "good").mkdir()
    async with running(tmp_path, clock, shared=True) as server:
        async with server.client("box", mode=era) as client:
            instruction = await Session(client).call("get_instruction", tag="research")
            refused = await Session(client).refusal("cache_list", scope="task")
        async with server.client("good", mode=era) as client:
            stored = await Session(client).call("cache_put", scope="task", key="k", value="v")

    assert "# Research" in instruction
    assert ".iris/config.toml is not TOML" in refused
    assert stored.startswith('stored "k"')


# The end


async def test_a_stream_that_stands_is_ended_at_once_and_whole(workspace: Path, clock: Clock) -> None:
    ended, listening = anyio.Event(), anyio.Event()
    client_info = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "raw", "version": "1"}}
    initialize = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": client_info}

    async def listen(server: Running) -> None:
        async with httpx2.AsyncClient(timeout=60, headers={"accept": "application/json, text/event-stream"}) as client:
            shaken = await client.post(server.mcp(), json=initialize)
            session = {"mcp-session-id": shaken.headers["mcp-session-id"]}
            async with client.stream("GET", server.mcp(), headers=session) as stream:
                listening.set()
                # A stream that was cut raises here.
                async for _ in stream.aiter_bytes():
                    pass
        ended.set()

    async with anyio.create_task_group() as tasks:
        async with running(workspace, clock) as server:
            tasks.start_soon(listen, server)
            await listening.wait()
            at = anyio.current_time()
        assert anyio.current_time() - at < OPEN_REQUESTS_S
        with anyio.fail_after(5):
            await ended.wait()


async def test_a_listener_of_the_present_era_is_told_that_its_stream_ends(workspace: Path, clock: Clock) -> None:
    heard, told = anyio.Event(), anyio.Event()

    async def listen(server: Running) -> None:
        async with server.client(mode="auto") as client, client.listen(resources_list_changed=True) as changes:
            heard.set()
            async for _ in changes:
                pass
            told.set()

    async with anyio.create_task_group() as tasks:
        async with running(workspace, clock) as server:
            tasks.start_soon(listen, server)
            await heard.wait()
        with anyio.fail_after(10):
            await told.wait()
