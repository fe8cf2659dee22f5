"""REST on scopes and sandboxes, its problems, and that it shares what it stores with MCP."""

from __future__ import annotations

import base64
import json
import logging
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from tests.conftest import Clock
from tests.surfaces.conftest import Session
from tests.surfaces.http.conftest import BASE, CACHE, Http, OpenHttp

HOUR_MS = 3_600_000


async def keys(http: Http, **query: Any) -> list[str]:
    """Return the keys of all pages."""
    found: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = await http.keys(**query, **cursor)
        found += [each["key"] for each in page["entries"]]
        if page["next_cursor"] is None:
            return found
        cursor = {"cursor": page["next_cursor"]}


# Keys


@pytest.mark.parametrize("limit", [1, 2, 100])
async def test_keys_come_in_pages_and_by_prefix_and_glob(open_http: OpenHttp, limit: int) -> None:
    async with open_http() as http:
        for key in ("a/1.md", "a/2.txt", "b.md", "ä %&=+.md"):
            await http.put(key)

        assert await keys(http, limit=limit) == ["a/1.md", "a/2.txt", "b.md", "ä %&=+.md"]
        assert await keys(http, limit=limit, prefix="a/") == ["a/1.md", "a/2.txt"]
        assert await keys(http, limit=limit, pattern="*.md") == ["a/1.md", "b.md", "ä %&=+.md"]
        assert await keys(http, limit=limit, prefix="a", pattern="*.md") == ["a/1.md"]
        assert await keys(http, limit=limit, pattern="?.[mt]*") == ["b.md"]


async def test_a_glob_that_would_backtrack_is_answered(open_http: OpenHttp) -> None:
    async with open_http() as http:
        await http.put("a" * 500)

        assert await keys(http, pattern="*a" * 255 + "b") == []


async def test_expired_keys_are_listed_where_that_is_asked_for(open_http: OpenHttp, clock: Clock) -> None:
    async with open_http(clock=clock) as http:
        await http.put("gone", scope="project", ttl_hours=1)
        clock.move(HOUR_MS)

        assert await keys(http, scope="project") == []
        assert await keys(http, scope="project", include_expired="true") == ["gone"]


@pytest.mark.parametrize(
    "query",
    [
        {"limit": 0},
        {"limit": 1_001},
        {"limit": "x"},
        {"pattern": "x" * 513},
        {"pattern": "[a]" * 17},
        {"scope": "other"},
        {"include_expired": "x"},
        {"regex": ".*"},
    ],
    ids=str,
)
async def test_a_malformed_listing_is_refused(open_http: OpenHttp, query: dict[str, str]) -> None:
    async with open_http() as http:
        answer = await http.get(f"{CACHE}/keys", params={"scope": "task", **query})

    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_argument")


# Whole scopes


async def test_stats_tell_what_each_scope_holds(open_http: OpenHttp) -> None:
    async with open_http() as http:
        await http.put("k", b"12345")
        stats = (await http.get(f"{CACHE}/stats")).json()

    artifacts = next(each for each in stats["scopes"] if each["scope"] == "artifacts")
    assert (artifacts["entries"], artifacts["bytes"]) == (1, 5)
    assert stats["instructions"] == 4


async def test_pruning_removes_what_expired(open_http: OpenHttp, clock: Clock) -> None:
    async with open_http(clock=clock) as http:
        await http.put("gone", b"123", scope="project", ttl_hours=1)
        await http.put("stays", scope="project")
        clock.move(HOUR_MS)
        elsewhere = await http.post(f"{CACHE}/prune", params={"scope": "task"})
        pruned = await http.post(f"{CACHE}/prune")

        assert elsewhere.json() == {"entries": 0, "bytes": 0}
        assert pruned.json() == {"entries": 1, "bytes": 3}
        assert await keys(http, scope="project", include_expired="true") == ["stays"]


async def test_seeding_writes_the_instructions_that_are_served(open_http: OpenHttp) -> None:
    async with open_http() as http:
        report = (await http.post(f"{CACHE}/seed-instructions", params={"force_refresh": "true"})).json()
        served = (await http.get(f"{CACHE}/instructions")).json()
        tags = [each["tag"] for each in served["instructions"]]
        read = await http.value(tags[0], scope="instructions")

    assert {f"instructions/{tag}" for tag in tags} <= {*report["written"], *report["unchanged"]}
    assert json.loads(read.headers["iris-kv-entry"])["provenance"]["author"] == "canonical"
    assert f"sha256:{served['instructions'][0]['digest'].removeprefix('sha256:')}" == read.headers["etag"].strip('"')


async def test_a_scope_is_cleared_only_where_that_is_confirmed(open_http: OpenHttp) -> None:
    async with open_http() as http:
        await http.put("k", b"123")
        for query in ({}, {"confirm": "false"}):
            refused = await http.delete(f"{CACHE}/clear-scope", params={"scope": "artifacts", **query})
            assert (refused.status_code, refused.json()["todo"]) == (422, "add confirm=true")
        cleared = await http.delete(f"{CACHE}/clear-scope", params={"scope": "artifacts", "confirm": "true"})

        assert cleared.json() == {"entries": 1, "bytes": 3, "undo": "POST restore, for 24 hours"}
        assert await keys(http) == []


async def test_the_rollout_says_who_gets_what(open_http: OpenHttp) -> None:
    async with open_http() as http:
        status = (await http.get(f"{CACHE}/rollout", params={"subject": "ann", "days": 3})).json()

    assert (status["subject"], status["subject_source"], status["days"]) == ("ann", "argument", 3)
    assert status["variant"] in ("compact", "full")


# Sandboxes


async def test_an_administrator_creates_sandboxes_that_share_nothing(open_http: OpenHttp, tmp_path: Path) -> None:
    async with open_http(root=tmp_path) as http:
        for name in ("b", "a", "c"):
            created = await http.post("/api/sandboxes", json={"id": name})
            assert (created.status_code, created.json()) == (201, {"id": name})
            assert (await http.get(created.headers["location"])).status_code == 200
        again = await http.post("/api/sandboxes", json={"id": "a"})
        first = (await http.get("/api/sandboxes", params={"limit": 2})).json()
        rest = (await http.get("/api/sandboxes", params={"limit": 2, "cursor": first["next_cursor"]})).json()
        query = {"scope": "task", "key": "k"}
        url = "/api/sandboxes/{}/kv-cache/value"
        plain = {"Content-Type": "text/plain"}
        await http.post(url.format("a"), params=query, content=b"v", headers=plain)

        assert (await http.get(url.format("a"), params=query)).content == b"v"
        assert (await http.get(url.format("b"), params=query)).status_code == 404

    assert (again.status_code, again.json()["code"]) == (412, "conflict")
    assert first == {"sandboxes": [{"id": "a"}, {"id": "b"}], "next_cursor": "b"}
    assert rest == {"sandboxes": [{"id": "c"}], "next_cursor": None}


async def test_a_sandbox_that_a_token_may_not_touch_does_not_exist(open_http: OpenHttp, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    async with open_http(root=tmp_path, sandboxes=["a"]) as http:
        listed = (await http.get("/api/sandboxes")).json()
        hidden = await http.get("/api/sandboxes/b/kv-cache/stats")
        absent = await http.get("/api/sandboxes/c/kv-cache/stats")
        created = await http.post("/api/sandboxes", json={"id": "b"})

    assert listed["sandboxes"] == [{"id": "a"}]
    assert hidden.status_code == absent.status_code == created.status_code == 404
    assert hidden.json()["detail"].replace("'b'", "'c'") == absent.json()["detail"]


async def test_only_an_administrator_creates_a_sandbox(open_http: OpenHttp, tmp_path: Path) -> None:
    async with open_http(root=tmp_path, rights=["kv:read", "kv:write"]) as http:
        answer = await http.post("/api/sandboxes", json={"id": "a"})

    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "sandbox",
    ["%2e%2e", "..", ".", "..%2f..", "a%2fb", "%00", "a%00", "a%0a", "x" * 65, "%ff", "%c3%a9", "a.b", "%20", "a$"],
)
async def test_an_absurd_sandbox_id_leads_nowhere(open_socket: OpenHttp, tmp_path: Path, sandbox: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    async with open_socket(root=root) as http:
        # As it is: a client's library would take the dots away.
        url = httpx2.URL(f"{http.base_url}").copy_with(raw_path=f"/api/sandboxes/{sandbox}/kv-cache/stats".encode())
        answer = await http.get(url)

    assert answer.status_code in (404, 422)
    assert answer.headers["content-type"] == "application/problem+json"
    assert list(root.iterdir()) == []


@pytest.mark.parametrize("wanted", ["..", "", "a/b", "x" * 65, "a\n"])
async def test_a_sandbox_with_an_absurd_id_is_not_created(open_http: OpenHttp, tmp_path: Path, wanted: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    async with open_http(root=root) as http:
        answer = await http.post("/api/sandboxes", json={"id": wanted})

    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_argument")
    assert [each.name for each in tmp_path.iterdir()] == ["root"]
    assert list(root.iterdir()) == []


async def test_a_server_of_one_workspace_has_no_other(open_http: OpenHttp) -> None:
    async with open_http() as http:
        listed = (await http.get("/api/sandboxes")).json()
        other = await http.get("/api/sandboxes/other/kv-cache/stats")
        created = await http.post("/api/sandboxes", json={"id": "other"})

    assert listed == {"sandboxes": [{"id": "default"}], "next_cursor": None}
    assert other.status_code == 404
    assert (created.status_code, created.json()["code"]) == (403, "forbidden")


# Problems


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/api/nothing", 404, "not_found"),
        ("GET", "/api/sandboxes/", 404, "not_found"),
        ("PUT", f"{CACHE}/value", 405, "method_not_allowed"),
        ("GET", f"{CACHE}/prune", 405, "method_not_allowed"),
        ("GET", f"{CACHE}/value?scope=task&key=k", 404, "not_found"),
        ("GET", f"{CACHE}/value?scope=tusk&key=k", 422, "invalid_argument"),
        ("POST", f"{CACHE}/prune?scoop=task", 422, "invalid_argument"),
    ],
)
async def test_every_error_is_a_problem(open_http: OpenHttp, method: str, path: str, status: int, code: str) -> None:
    async with open_http() as http:
        answer = await http.request(method, path)

    problem = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.status_code == problem["status"] == status
    assert problem["code"] == code
    assert problem["type"] == f"/api/docs#problem-{code}"
    assert problem["detail"] == f"{code}: {problem['wrong']}; {problem['allowed']}; {problem['todo']}"
    assert set(problem) == {"type", "title", "status", "detail", "code", "wrong", "allowed", "todo"}


async def test_a_problem_says_what_to_do(open_http: OpenHttp) -> None:
    async with open_http() as http:
        typo = (await http.get(f"{CACHE}/value", params={"scope": "task", "kee": "k"})).json()
        extra = (await http.post(f"{CACHE}/prune", params={"scoop": "task"})).json()
        method = await http.request("PUT", f"{CACHE}/value")

    assert typo["wrong"].startswith("the argument 'key' is missing")
    assert "scope, key" in typo["allowed"]
    assert extra["todo"] == "did you mean 'scope'?"
    assert set(method.headers["allow"].split(", ")) == {"DELETE", "GET", "HEAD", "POST"}


async def test_a_fault_of_the_server_is_a_problem_without_its_cause(open_http: OpenHttp) -> None:
    async with open_http() as http:

        async def broken() -> None:
            raise ValueError("a secret")

        http.app.add_api_route("/api/broken", broken)
        logging.disable(logging.CRITICAL)
        try:
            answer = await http.get("/api/broken")
        finally:
            logging.disable(logging.NOTSET)

    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert "secret" not in answer.text


async def test_a_folder_that_cannot_be_opened_is_told(open_http: OpenHttp, workspace: Path) -> None:
    (workspace / ".iris").write_text("no folder")
    async with open_http() as http:
        answer = await http.get(f"{CACHE}/stats")

    assert answer.status_code in (403, 503)
    assert str(workspace) not in answer.text


# With MCP


async def test_what_rest_writes_mcp_reads_and_the_other_way_round(open_http: OpenHttp) -> None:
    async with open_http() as http:
        transport = httpx2.ASGITransport(http.app)
        async with (
            httpx2.AsyncClient(transport=transport, base_url=BASE, headers=http.headers) as inner,
            Client(streamable_http_client(f"{BASE}/mcp", http_client=inner), cache=None) as client,
        ):
            mcp = Session(client)
            await http.put("from-rest", b"caf\xc3\xa9", headers={"Content-Type": "text/markdown"})
            binary = await http.put("binary", bytes(range(256)), headers={"Content-Type": "image/png"})
            await mcp.call("put_artifact", key="from/mcp", value="Grüße\n")

            assert "café" in await mcp.call("get_artifact", key="from-rest")
            (blob,) = await mcp.contents("iris-kv://cache/artifacts/binary")
            assert base64.b64decode(blob.blob) == bytes(range(256))  # type: ignore[union-attr]
            read = await http.value("from/mcp")
            assert read.content == "Grüße\n".encode()
            assert json.loads(read.headers["iris-kv-entry"])["provenance"] == {"author": "agent", "face": "mcp"}
            digest = binary.json()["digest"]
            await mcp.call("cache_delete", scope="artifacts", key="binary", if_digest=digest)
            assert (await http.value("binary")).status_code == 404
