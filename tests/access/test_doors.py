"""From where requests are let in: forged hosts and origins, proxies, CORS, and tokens in the URL."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import httpx2
import pytest
from tests.access.conftest import INITIALIZE, JSON

if TYPE_CHECKING:
    from tests.access.conftest import Open

APP = "https://app.example.com"
EVIL = "https://evil.example"


async def test_one_workspace_on_loopback_needs_no_token(open_server: Open) -> None:
    async with open_server(shared=False) as server:
        answer = await server.get("/api/who")

    assert answer.status_code == 200
    assert answer.json()["name"] == ""


@pytest.mark.parametrize(
    "settings",
    [
        {"shared": True},
        {"host": "0.0.0.0"},
        {"host": "192.0.2.1"},
        {"require_token": True},
        {"jwt_secret": "s" * 32},
        {"jwks_url": "https://issuer.example/jwks"},
        {"public_url": "https://kv.example.com"},
        {"allowed_hosts": ("kv.example.com",)},
    ],
)
async def test_whatever_looks_like_more_than_this_machine_needs_a_token(open_server: Open, settings) -> None:
    async with open_server(**{"shared": False, **settings}) as server:
        assert (await server.get("/api/sandboxes")).status_code == 401
        assert (await server.get("/mcp")).status_code == 401


async def test_where_there_are_tokens_one_is_needed_even_after_the_last_was_revoked(
    open_server: Open, token_file
) -> None:
    token_file.create("first", ("kv:read",), None)
    async with open_server(shared=False) as server:
        server.tokens.revoke("first")

        assert (await server.get("/api/sandboxes")).status_code == 401


@pytest.mark.parametrize(
    "header", ["forwarded", "x_forwarded_for", "x_forwarded_host", "x_forwarded_proto", "x_real_ip", "via"]
)
async def test_what_came_through_a_proxy_needs_a_token(open_server: Open, header: str) -> None:
    async with open_server(shared=False) as server:
        assert (await server.get("/api/sandboxes", **{header: "127.0.0.1"})).status_code == 401


async def test_a_peer_that_is_not_this_machine_needs_a_token(open_server: Open) -> None:
    async with open_server(shared=False) as server, server.client(peer="192.0.2.7") as client:
        assert (await client.get("/api/sandboxes")).status_code == 401


async def test_a_wrong_token_is_refused_where_none_is_needed(open_server: Open) -> None:
    async with open_server(shared=False) as server:
        assert (await server.get("/api/sandboxes", "ikv_" + "A" * 43)).status_code == 401


# Host


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000", "kv.example.com", "in.example:81", "pub.example"],
)
async def test_a_host_of_ours_is_let_in(open_server: Open, host: str) -> None:
    names = {"allowed_hosts": ("KV.example.com", "in.example:81"), "public_url": "https://pub.example/"}
    async with open_server(**names) as server:
        assert (await server.get("/api/sandboxes", server.token(), host=host)).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "in.example:82", "in.example", "localhost@evil.example", "127.0.0.1.nip.io",
     "localhost:8000:1", "", " localhost", "localhost/", "[::2]", "xlocalhost", "localhost:99999999"],
)  # fmt: skip
async def test_a_forged_host_is_misdirected(open_server: Open, host: str) -> None:
    async with open_server(allowed_hosts=("in.example:81",)) as server:
        answer = await server.get("/api/sandboxes", server.token(), host=host)

    assert answer.status_code == 421
    assert "evil" not in answer.text


async def test_two_hosts_are_misdirected(open_server: Open) -> None:
    async with open_server() as server, server.client(server.token()) as client:
        answer = await client.get("/api/sandboxes", headers=[("host", "localhost"), ("host", "evil.example")])

    assert answer.status_code == 421


async def test_probes_are_answered_under_any_host_and_without_a_token(open_server: Open) -> None:
    async with open_server() as server:
        for path in ("/healthz", "/readyz"):
            assert (await server.get(path, host="10.1.2.3:8000")).status_code == 200


# Origin and CORS


@pytest.mark.parametrize(
    "origin",
    [EVIL, "null", "http://localhost:3000", "https://localhost", f"{APP}.evil.example", "http://app.example.com", ""],
)
async def test_a_page_of_another_origin_is_refused(open_server: Open, origin: str) -> None:
    async with open_server(shared=False, cors_origins=(APP,)) as server:
        answer = await server.get("/api/sandboxes", origin=origin)

    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers


async def test_pages_of_this_server_and_of_configured_origins_are_let_in(open_server: Open) -> None:
    async with open_server(cors_origins=(APP,), public_url="https://kv.example.com") as server:
        token = server.token()
        own = await server.get("/api/sandboxes", token, origin="http://localhost")
        public = await server.get("/api/sandboxes", token, origin="https://kv.example.com")
        configured = await server.get("/api/sandboxes", token, origin=APP)

    assert (own.status_code, public.status_code, configured.status_code) == (200, 200, 200)
    assert "access-control-allow-origin" not in own.headers
    assert configured.headers["access-control-allow-origin"] == APP
    exposed = configured.headers["access-control-expose-headers"]
    assert "ETag" in exposed
    assert "Iris-Kv-Entry" in exposed
    assert "access-control-allow-credentials" not in configured.headers


async def test_a_refusal_can_be_read_by_a_page_of_a_configured_origin(open_server: Open) -> None:
    async with open_server(cors_origins=(APP,)) as server:
        answer = await server.get("/sandboxes/a/mcp", origin=APP)

    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (401, APP)
    assert "WWW-Authenticate" in answer.headers["access-control-expose-headers"]


@pytest.mark.parametrize(("origin", "status"), [(APP, 200), (EVIL, 403)])
async def test_a_preflight_is_answered_for_configured_origins_only(open_server: Open, origin: str, status: int) -> None:
    wanted = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,if-match"}
    async with open_server(cors_origins=(APP,)) as server, server.client() as client:
        answer = await client.options("/api/sandboxes", headers={"origin": origin, **wanted})

    assert answer.status_code == status
    assert ("access-control-allow-origin" in answer.headers) is (status == 200)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"sec_fetch_site": "cross-site", "sec_fetch_mode": "no-cors", "sec_fetch_dest": "image"}, 403),
        ({"sec_fetch_site": "same-site", "sec_fetch_mode": "navigate", "sec_fetch_dest": "iframe"}, 403),
        ({"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate", "sec_fetch_dest": "document"}, 200),
        ({"sec_fetch_site": "same-origin", "sec_fetch_mode": "cors", "sec_fetch_dest": "empty"}, 200),
        ({"sec_fetch_site": "none", "sec_fetch_mode": "navigate", "sec_fetch_dest": "document"}, 200),
    ],
)
async def test_what_a_browser_says_of_a_request_without_an_origin_counts(open_server: Open, headers, status) -> None:
    async with open_server(shared=False) as server:
        assert (await server.get("/api/sandboxes", **headers)).status_code == status


async def test_answers_are_not_guessed_at_or_run(open_server: Open) -> None:
    async with open_server(shared=False) as server:
        answer = await server.get("/api/sandboxes")

    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"] == "default-src 'none'; sandbox"


# Tokens in the URL


JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl"


@pytest.mark.parametrize(
    "path",
    ["/api/sandboxes?access_token={}", "/api/sandboxes?ACCESS_TOKEN={}", "/api/sandboxes?x=1&token={}", "/api/sandboxes?apikey={}",
     "/api/sandboxes?key={}", "/api/sandboxes/{}/who", "/sandboxes/{}/mcp", "/{}", "/healthz?x={}"],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["static", "jwt"])
async def test_a_token_in_the_url_is_refused_and_not_logged(
    open_server: Open, path: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    # What the client itself logs is not ours; the last call tells what is captured at all.
    caplog.set_level(logging.ERROR, "httpx2")
    caplog.set_level(logging.ERROR, "httpcore2")
    caplog.set_level(logging.DEBUG)
    async with open_server() as server, server.listening() as url, httpx2.AsyncClient() as client:
        token = server.token() if kind == "static" else JWT
        answer = await client.get(
            url + path.format(token.replace("k", "%6b")), headers={"authorization": f"Bearer {token}"}
        )

    # What the client itself logs is not ours.
    ours = [record for record in caplog.records if not record.name.startswith(("httpx2", "httpcore2"))]
    logged = "".join(f"{record.getMessage()} {record.exc_text}\n" for record in ours)
    assert answer.status_code == 400
    assert "a token is sent in the header" in answer.json()["detail"]
    assert token not in answer.text + str(answer.headers)
    assert '"GET / HTTP/1.1" 400' in logged
    assert token not in logged
    assert token.replace("k", "%6b") not in logged


@pytest.mark.parametrize("before", ["", "Bearer+", "x", "a.b.", "eyJ", "key:"])
async def test_a_jwt_is_found_wherever_it_stands_in_a_url(open_server: Open, before: str) -> None:
    async with open_server() as server:
        assert (await server.get(f"/api/who?key={before}{JWT}")).status_code == 400


@pytest.mark.parametrize("part", ["eyJ", "eyJa.x.", "-eyJ_", "ikv.", "%65yJ"])
async def test_a_url_that_almost_holds_tokens_keeps_nobody_waiting(open_server: Open, part: str) -> None:
    async with open_server() as server:
        before = time.process_time()
        answer = await server.get(f"/api/who?key={part * (60_000 // len(part))}")

    assert answer.status_code == 401
    assert time.process_time() - before < 0.5


async def test_a_key_that_only_looks_odd_is_no_token(open_server: Open) -> None:
    async with open_server() as server:
        token = server.token()
        for query in ("key=token", "key=ikv_short", "key=a%26token%3Db", "prefix=eyJ.eyJ", "token_count=1"):
            assert (await server.get(f"/api/sandboxes/a/who?{query}", token)).status_code == 200


async def test_a_line_break_behind_a_path_leads_nowhere(open_server: Open) -> None:
    async with open_server() as server:
        reader, writer = server.token("reader", scopes="kv:read"), server.token("writer", scopes="kv:write")
        async with server.client(reader) as client:
            mcp = await client.post("/sandboxes/a/mcp%0a", headers=JSON, json=INITIALIZE)
        async with server.client(writer, peer="192.0.2.1") as client:
            metrics = await client.get("/metrics%0a")

    assert [answer.status_code for answer in (mcp, metrics)] == [404, 404]


@pytest.mark.parametrize(
    "path", ["/mcp%22,%20x=%22", "/sandboxes/a%0d%0ax:%20y/mcp", "/sandboxes/%22/mcp", "/api/x%0d%0aset-cookie:%20a"]
)
async def test_nothing_of_a_path_gets_into_a_header(open_server: Open, path: str) -> None:
    async with open_server() as server:
        answer = await server.get(path)

    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == (
        'Bearer resource_metadata="http://localhost/.well-known/oauth-protected-resource"'
    )
    assert "set-cookie" not in answer.headers
    assert "x" not in answer.headers


# Metadata, metrics


@pytest.mark.parametrize("resource", ["", "/mcp", "/sandboxes/a/mcp", "/sandboxes/none/mcp"])
async def test_the_metadata_of_a_resource_need_no_token(open_server: Open, resource: str) -> None:
    settings = {"public_url": "https://kv.example.com", "jwt_issuer": "https://issuer.example", "jwt_secret": "s" * 32}
    async with open_server(**settings) as server:
        answer = await server.get(f"/.well-known/oauth-protected-resource{resource}")

    assert answer.json() == {
        "resource": f"https://kv.example.com{resource}",
        "resource_name": "iris-kv",
        "bearer_methods_supported": ["header"],
        "scopes_supported": ["kv:read", "kv:write", "kv:admin"],
        "authorization_servers": ["https://issuer.example"],
    }


async def test_there_are_no_metadata_of_other_paths(open_server: Open) -> None:
    async with open_server() as server:
        assert (await server.get("/.well-known/oauth-protected-resource/api")).status_code == 404
        assert (await server.get("/.well-known/openid-configuration")).status_code == 401


async def test_metrics_need_the_right_to_read_or_this_machine(open_server: Open) -> None:
    async with open_server() as server:
        reader, writer = server.token("reader", scopes="kv:read"), server.token("writer", scopes="kv:write")
        local = await server.get("/metrics")
        proxied = await server.get("/metrics", x_forwarded_for="192.0.2.7")
        read = await server.get("/metrics", reader, via="1.1 proxy")
        written = await server.get("/metrics", writer, via="1.1 proxy")

    assert [each.status_code for each in (local, proxied, read, written)] == [200, 401, 200, 403]
    assert 'error="insufficient_scope", scope="kv:read"' in written.headers["www-authenticate"]


async def test_the_description_of_the_interface_needs_no_token(open_server: Open) -> None:
    async with open_server() as server:
        assert (await server.get("/api/openapi.json")).status_code == 200
