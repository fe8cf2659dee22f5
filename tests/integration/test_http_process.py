"""`iris-kv serve --http` as a process: how it starts, what it refuses to start as, how it ends, and what survives."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import anyio
import httpx2
import pytest
from mcp import Client
from mcp.types import TextContent
from tests.surfaces.http_process import COMMAND, PATIENCE_S, HttpProcess, started

ROUNDS = 20
POSTS = 50
MODERN = "2026-07-28"


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    folder = str(tmp_path_factory.mktemp("home"))
    return {"HOME": folder, "XDG_CONFIG_HOME": f"{folder}/config", "XDG_STATE_HOME": f"{folder}/state"}


def refused(*arguments: str, env: Mapping[str, str]) -> tuple[int, str]:
    found = subprocess.run(
        [COMMAND, "serve", *arguments],
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**os.environ, **env},
        timeout=PATIENCE_S,
    )
    return found.returncode, found.stderr


# How it starts


@pytest.mark.parametrize("era", ["legacy", "auto"])
async def test_a_client_of_either_era_lists_reads_and_calls(era: Any, tmp_path: Path, home: Mapping[str, str]) -> None:
    with started("--http", "127.0.0.1:0", "--workspace", str(tmp_path), env=home) as server:
        async with Client(f"{server.url}/mcp", mode=era) as client:
            names = [tool.name for tool in (await client.list_tools()).tools]
            stored = await client.call_tool("cache_put", {"scope": "task", "key": "k", "value": "v"})
            read = await client.read_resource("iris-kv://cache/task/k")
        code = server.end()

    assert "get_instruction" in names
    assert not stored.is_error
    assert getattr(read.contents[0], "text", None) == "v"
    assert code == 0
    assert not [line for line in server.lines if "level=ERROR" in line or "Traceback" in line]


async def test_it_listens_on_ipv6_and_logs_json(tmp_path: Path, home: Mapping[str, str]) -> None:
    arguments = ("--http", "[::1]:0", "--workspace", str(tmp_path), "--log-format", "json")
    with started(*arguments, env=home) as server:
        async with httpx2.AsyncClient() as client:
            found = await client.get(f"{server.url}/none", headers={"x-request-id": "mine"})
        code = server.end()

    assert server.url.startswith("http://[::1]:")
    assert (found.status_code, code) == (404, 0)
    logged = [json.loads(line) for line in server.lines]
    assert [line["status"] for line in logged if line.get("request_id") == "mine"] == [404]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:]{8}\.\d{3}Z", line["time"]) for line in logged)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--sandboxes", "."], "--sandboxes was given without --http"),
        (["--http", "--sandboxes", ".", "--workspace", "."], "--sandboxes and --workspace were given"),
        (["--http", "--sandboxes", "/nonexistent"], "is not a folder"),
        (["--http", "--workspace", "/nonexistent"], "is not a folder"),
        (["--http", "nonsense", "--workspace", "."], "is no address"),
        (["--http", "127.0.0.1:99999", "--workspace", "."], "is no address"),
        (["--http", "::1:8765", "--workspace", "."], "is no address"),
        (["--http", "203.0.113.9:0", "--workspace", "."], "cannot be listened on"),
    ],
)
def test_what_cannot_or_must_not_be_served_says_why(
    arguments: list[str], told: str, tmp_path: Path, home: Mapping[str, str]
) -> None:
    code, text = refused(*[str(tmp_path) if each == "." else each for each in arguments], env=home)

    assert code in (2, 6)
    assert told in text
    assert "Traceback" not in text


@pytest.mark.parametrize("arguments", [("--http", "0.0.0.0:0", "--workspace"), ("--http", ":0", "--sandboxes")])
async def test_whoever_can_reach_it_needs_a_token_which_can_be_made_later(
    arguments: tuple[str, ...], tmp_path: Path, home: Mapping[str, str]
) -> None:
    with started(*arguments, str(tmp_path), env=home) as server:
        url = f"{server.url}/api/sandboxes".replace("0.0.0.0", "127.0.0.1")
        async with httpx2.AsyncClient() as client:
            without = await client.get(url)
            made = subprocess.run(
                [COMMAND, "token", "new", "--name", "backend", "--scopes", "kv:read", "--sandboxes", "*"],
                check=True, capture_output=True, text=True, env={**os.environ, **home},
            )  # fmt: skip
            token = next(word for word in made.stdout.split() if word.startswith("ikv_"))
            found = await client.get(url, headers={"authorization": f"Bearer {token}"})
        server.end()

    assert (without.status_code, found.status_code) == (401, 200)
    assert any("level=WARNING" in line and "`iris-kv token new`" in line for line in server.lines)


def test_a_missing_extra_is_named(tmp_path: Path, home: Mapping[str, str]) -> None:
    hiding = "import sys; from importlib import util; from iris_kv import app, cli\n"
    hiding += "found = util.find_spec; app.find_spec = lambda name: None if name == 'uvicorn' else found(name)\n"
    hiding += f"sys.argv = ['iris-kv', 'serve', '--http', '--workspace', {str(tmp_path)!r}]; cli.main()"

    ended = subprocess.run(
        [sys.executable, "-c", hiding],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, **home},
        timeout=PATIENCE_S,
    )

    assert ended.returncode == 8
    assert "uv tool install '.[tokens,http]'" in ended.stderr


def test_stdio_does_not_wait_for_what_http_needs(home: Mapping[str, str]) -> None:
    listing = "import sys, iris_kv.app; print(sorted({'fastapi', 'h11', 'prometheus_client'} & set(sys.modules)))"

    shown = subprocess.run(
        [sys.executable, "-c", listing], check=True, capture_output=True, text=True, env={**os.environ, **home}
    )

    assert shown.stdout.strip() == "[]"


# How it ends


async def test_what_is_being_sent_is_finished_and_the_next_signal_ends_at_once(
    tmp_path: Path, home: Mapping[str, str]
) -> None:
    body = json.dumps(call("kept", "v" * 100_000)).encode()
    with started("--http", "127.0.0.1:0", "--workspace", str(tmp_path), env=home) as server:
        async with anyio.create_task_group() as tasks:
            half, go_on = anyio.Event(), anyio.Event()
            answers: list[int] = []

            async def parts() -> Any:
                yield body[:50_000]
                half.set()
                await go_on.wait()
                yield body[50_000:]

            async def post() -> None:
                async with httpx2.AsyncClient(timeout=60) as client:
                    await client.get(f"{server.url}/healthz")
                    answers.append(
                        (await client.post(f"{server.url}/mcp", content=parts(), headers=HEADERS)).status_code
                    )

            tasks.start_soon(post)
            await half.wait()
            server.process.send_signal(signal.SIGTERM)
            await anyio.to_thread.run_sync(wait_for_line, server, "shutting down")
            go_on.set()
        code = await anyio.to_thread.run_sync(server.process.wait, PATIENCE_S)

    assert (answers, code) == ([200], 0)


def wait_for_line(server: HttpProcess, text: str) -> None:
    while not any(text in line for line in server.lines):
        assert server.process.poll() is None


def test_a_second_signal_ends_at_once(tmp_path: Path, home: Mapping[str, str]) -> None:
    with started("--http", "127.0.0.1:0", "--workspace", str(tmp_path), env=home) as server:
        address = httpx2.URL(server.url)
        # A request whose body does not come keeps the server from ending for ten seconds.
        with socket.create_connection((address.host, cast("int", address.port))) as stuck:
            stuck.sendall(b"POST /mcp HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 100\r\n\r\n{")
            while "iris_kv_open_requests 2.0" not in httpx2.get(f"{server.url}/metrics").text:
                pass
            server.process.send_signal(signal.SIGTERM)
            wait_for_line(server, "shutting down")
            code = server.end(signal.SIGTERM)

    assert code == 128 + signal.SIGTERM


# What survives

HEADERS = {
    "content-type": "application/json",
    "accept": "application/json, text/event-stream",
    "mcp-protocol-version": MODERN,
    "mcp-method": "tools/call",
    "mcp-name": "cache_put",
}


PLAIN = {"content-type": "text/plain"}


def call(key: str, value: str) -> dict[str, Any]:
    arguments = {"scope": "task", "key": key, "value": value}
    meta = {
        "io.modelcontextprotocol/protocolVersion": MODERN,
        "io.modelcontextprotocol/clientCapabilities": {},
        "io.modelcontextprotocol/clientInfo": {"name": "raw", "version": "1"},
    }
    params = {"name": "cache_put", "arguments": arguments, "_meta": meta}
    return {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}


async def put_over_mcp(client: httpx2.AsyncClient, key: str, value: str) -> bool:
    """Put a value; tell whether it was acknowledged."""
    answer = await client.post("/mcp", json=call(key, value), headers=HEADERS)
    return answer.status_code == 200 and f'stored \\"{key}\\"' in answer.text


async def put_over_rest(client: httpx2.AsyncClient, key: str, value: str) -> bool:
    """Put a value as a raw body; tell whether it was acknowledged."""
    address = {"scope": "task", "key": key}
    answer = await client.post("/api/sandboxes/default/kv-cache/value", params=address, content=value, headers=PLAIN)
    return answer.status_code == 201


@pytest.mark.parametrize("put", [put_over_mcp, put_over_rest])
async def test_what_was_acknowledged_survives_kill_9_in_the_middle_of_fifty_posts(
    put: Any, tmp_path: Path, home: Mapping[str, str]
) -> None:
    acknowledged: dict[str, str] = {}
    env = {**home, "IRIS_KV_HTTP__REQUESTS_PER_SECOND": "unlimited"}
    for n in range(ROUNDS):
        with started("--http", "127.0.0.1:0", "--workspace", str(tmp_path), env=env) as server:
            killed = anyio.Event()

            async def post(
                key: str,
                client: httpx2.AsyncClient,
                after: int,
                server: HttpProcess = server,
                killed: anyio.Event = killed,
            ) -> None:
                try:
                    if await put(client, key, f"value of {key}"):
                        acknowledged[key] = f"value of {key}"
                except httpx2.HTTPError:
                    return
                if len(acknowledged) >= after and not killed.is_set():
                    killed.set()
                    server.process.kill()

            async with httpx2.AsyncClient(base_url=server.url, timeout=60) as client:
                # Each round kills later: behind the first to nearly the last acknowledgement.
                after = len(acknowledged) + 1 + n * (POSTS - 5) // ROUNDS
                async with anyio.create_task_group() as tasks:
                    for each in range(POSTS):
                        tasks.start_soon(post, f"{n}-{each}", client, after)
            assert killed.is_set()

    with started("--http", "127.0.0.1:0", "--workspace", str(tmp_path), env=env) as server:
        async with Client(f"{server.url}/mcp", mode="auto") as client:
            for key, value in acknowledged.items():
                found = await client.call_tool("cache_get", {"scope": "task", "key": key})
                (content,) = found.content
                assert isinstance(content, TextContent)
                assert value in content.text
    assert len(acknowledged) >= ROUNDS
