"""MCP over HTTP with tokens: the same rights as everywhere, sessions of one credential, streams that end."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Literal

import anyio
import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.server.auth.middleware.bearer_auth import BearerAuthBackend
from mcp.shared.exceptions import MCPError
from mcp.types import ResourceTemplateReference, TextContent
from starlette.requests import HTTPConnection

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from tests.access.conftest import Open, Server

pytestmark = pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning")

JSON = {"accept": "application/json, text/event-stream", "content-type": "application/json"}
INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}},
}
INITIALIZED = {"jsonrpc": "2.0", "method": "notifications/initialized"}
TOOLS = {"jsonrpc": "2.0", "id": 2, "method": "tools/list", "params": {}}


@pytest.fixture(params=["legacy", "auto"])
def era(request: pytest.FixtureRequest) -> Literal["legacy", "auto"]:
    return request.param


@asynccontextmanager
async def connected(server: Server, era: Any, token: str) -> AsyncGenerator[Client]:
    async with (
        server.listening() as url,
        httpx2.AsyncClient(headers={"authorization": f"Bearer {token}"}, timeout=20) as http,
        Client(streamable_http_client(f"{url}/sandboxes/a/mcp", http_client=http), mode=era, cache=None) as client,
    ):
        yield client


def text_of(answer: Any) -> str:
    (content,) = answer.content
    assert isinstance(content, TextContent)
    return content.text


async def test_a_token_that_may_read_and_write_does_both(open_server: Open, era: Any) -> None:
    async with open_server() as server, connected(server, era, server.token()) as client:
        await client.call_tool("cache_put", {"scope": "task", "key": "k", "value": "stored"})

        assert "stored" in text_of(await client.call_tool("cache_get", {"scope": "task", "key": "k"}))


WRITES = {
    "put_artifact": {"key": "k", "value": "v"},
    "put_project_summary": {"summary": "s"},
    "cache_put": {"scope": "task", "key": "k", "value": "v"},
    "cache_delete": {"scope": "task", "key": "k"},
    "cache_prune": {},
    "cache_clear": {"scope": "task", "confirm": True},
    "cache_seed": {},
    "cache_restore": {"scope": "task", "key": "k"},
}
READS = {
    "get_instruction": {"tag": "research"},
    "list_instructions": {},
    "get_artifact": {},
    "get_project_summary": {},
    "cache_list": {"scope": "task"},
    "cache_get": {"scope": "task", "key": "k"},
    "cache_stats": {},
    "cache_history": {"scope": "task", "key": "k"},
}


async def test_every_tool_needs_its_right(open_server: Open, era: Any) -> None:
    async with open_server() as server, connected(server, era, server.token(scopes="kv:read")) as client:
        assert {tool.name for tool in (await client.list_tools()).tools} == set(WRITES) | set(READS)
        for tool, arguments in WRITES.items():
            answer = await client.call_tool(tool, arguments)
            assert answer.is_error
            assert text_of(answer).startswith(f"forbidden: {tool} needs the scope kv:write; this token has kv:read; ")
        listed = await client.call_tool("cache_list", {"scope": "task"})
        assert listed.structured_content["entries"] == []


async def test_what_reads_needs_the_right_to_read(open_server: Open, era: Any) -> None:
    async with open_server() as server, connected(server, era, server.token(scopes="kv:write")) as client:
        for tool, arguments in READS.items():
            answer = await client.call_tool(tool, arguments)
            assert text_of(answer).startswith(f"forbidden: {tool} needs the scope kv:read; ")
        for work in (
            client.list_resources,
            lambda: client.read_resource("iris-kv://stats"),
            lambda: client.read_resource("iris-kv://instructions/research"),
            lambda: client.get_prompt("system"),
            lambda: client.get_prompt("resume"),
        ):
            with pytest.raises(MCPError, match=r"forbidden: \S+ needs the scope kv:read"):
                await work()


async def test_completing_and_subscribing_need_the_right_to_read(open_server: Open, era: Any) -> None:
    of = ResourceTemplateReference(type="ref/resource", uri="iris-kv://instructions/{tag}")

    async def listen(client: Client) -> None:
        async with client.listen(resources_list_changed=True):
            pass

    works = [
        lambda client: client.complete(of, {"name": "tag", "value": "r"}),
        listen if era == "auto" else lambda client: client.subscribe_resource("iris-kv://stats"),
    ]
    async with open_server() as server:
        async with connected(server, era, server.token(scopes="kv:write")) as client:
            for work in works:
                with pytest.raises(MCPError, match=r"forbidden: \S+ needs the scope kv:read"):
                    await work(client)
        async with connected(server, era, server.token("reader", scopes="kv:read")) as client:
            for work in works:
                await work(client)


async def test_a_sandbox_of_others_is_not_found_over_mcp(open_server: Open) -> None:
    async with open_server() as server, server.client(server.token(sandboxes="b")) as client:
        answer = await client.post("/sandboxes/a/mcp", json=INITIALIZE, headers=JSON)

    assert answer.status_code == 404
    assert answer.json()["code"] == "not_found"


# Sessions


@asynccontextmanager
async def session(url: str, token: str, place: str = "a") -> AsyncGenerator[tuple[httpx2.AsyncClient, dict[str, str]]]:
    async with httpx2.AsyncClient(base_url=url, headers={**JSON, "authorization": f"Bearer {token}"}) as client:
        answer = await client.post(f"/sandboxes/{place}/mcp", json=INITIALIZE)
        assert answer.status_code == 200, answer.text
        own = {"mcp-session-id": answer.headers["mcp-session-id"], "mcp-protocol-version": "2025-11-25"}
        await client.post(f"/sandboxes/{place}/mcp", json=INITIALIZED, headers=own)
        yield client, own


async def test_a_session_belongs_to_the_credential_that_opened_it(open_server: Open) -> None:
    async with open_server() as server, server.listening() as url:
        mine, other = server.token(sandboxes="a,b"), server.token("other", sandboxes="a,b")
        async with session(url, mine) as (client, own):
            as_other = await client.post(
                "/sandboxes/a/mcp", json=TOOLS, headers={**own, "authorization": f"Bearer {other}"}
            )
            ended = await client.delete("/sandboxes/a/mcp", headers={**own, "authorization": f"Bearer {other}"})
            elsewhere = await client.post("/sandboxes/b/mcp", json=TOOLS, headers=own)
            as_owner = await client.post("/sandboxes/a/mcp", json=TOOLS, headers=own)

    assert [each.status_code for each in (as_other, ended, elsewhere, as_owner)] == [404, 404, 404, 200]


async def test_a_new_token_under_an_old_name_has_none_of_its_sessions(open_server: Open) -> None:
    async with open_server() as server, server.listening() as url, session(url, server.token()) as (client, own):
        server.tokens.revoke("agent")
        revoked = await client.post("/sandboxes/a/mcp", json=TOOLS, headers=own)
        renewed = {**own, "authorization": f"Bearer {server.token()}"}

        answer = await client.post("/sandboxes/a/mcp", json=TOOLS, headers=renewed)

    assert (revoked.status_code, answer.status_code) == (401, 404)


async def test_a_stream_ends_when_its_token_is_revoked(open_server: Open) -> None:
    async with (
        open_server(recheck_s=0.01) as server,
        server.listening() as url,
        session(url, server.token()) as (client, own),
        client.stream("GET", "/sandboxes/a/mcp", headers=own) as stream,
    ):
        assert stream.status_code == 200
        server.tokens.revoke("agent")
        with anyio.fail_after(10):
            async for _ in stream.aiter_bytes():
                pass


async def test_a_stream_outlives_a_token_file_that_cannot_be_read(open_server: Open) -> None:
    async with (
        open_server(recheck_s=0.01) as server,
        server.listening() as url,
        session(url, server.token()) as (client, own),
    ):
        path = server.tokens._path
        kept = path.read_bytes()
        async with client.stream("GET", "/sandboxes/a/mcp", headers=own) as stream:
            path.write_bytes(b"{")
            assert (await client.post("/sandboxes/a/mcp", json=TOOLS, headers=own)).status_code == 503
            path.write_bytes(kept)
            assert (await client.post("/sandboxes/a/mcp", json=TOOLS, headers=own)).status_code == 200
            server.tokens.revoke("agent")
            with anyio.fail_after(10):
                assert [chunk async for chunk in stream.aiter_bytes() if not chunk.startswith(b": ")] == []


# The SDK's own middleware


async def test_the_verifier_serves_the_middleware_of_the_sdk(open_server: Open) -> None:
    def asked(token: str) -> HTTPConnection:
        return HTTPConnection({"type": "http", "headers": [(b"authorization", f"Bearer {token}".encode())]})

    async with open_server() as server:
        token = server.token("ci", scopes="kv:read")
        backend = BearerAuthBackend(server.access.verifier)
        found = await backend.authenticate(asked(token))
        assert found is not None
        credentials, user = found
        assert (credentials.scopes, user.username) == (["kv:read"], "ci")
        assert token not in repr(user.access_token)

        assert await backend.authenticate(asked("ikv_" + "A" * 43)) is None
        server.tokens._path.write_bytes(b"{")
        assert await backend.authenticate(asked(token)) is None
