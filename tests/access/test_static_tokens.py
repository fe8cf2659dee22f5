"""Static tokens through HTTP: who gets in, what a token may touch, and how soon it ends."""

from __future__ import annotations

import json
import os
import stat
from typing import TYPE_CHECKING

import pytest

from iris_kv.credentials import TOKEN

if TYPE_CHECKING:
    from tests.access.conftest import Open

DAY_MS = 24 * 3_600_000


async def test_without_a_token_the_answer_says_where_one_is_to_be_had(open_server: Open) -> None:
    async with open_server() as server:
        answer = await server.get("/sandboxes/a/mcp")

    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == (
        'Bearer resource_metadata="http://localhost/.well-known/oauth-protected-resource/sandboxes/a/mcp"'
    )
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["detail"].startswith("unauthorized: a token is needed; it is sent as `Authorization: Bearer")


async def test_a_token_tells_the_routes_who_asks(open_server: Open) -> None:
    async with open_server() as server:
        token = server.token("ci", scopes="kv:read", sandboxes="a,b")
        answer = await server.get("/api/sandboxes/a/who", token)

    assert TOKEN.fullmatch(token)
    told = answer.json()
    assert (told["name"], told["face"], told["author"]) == ("ci", "rest", "user")
    assert (told["rights"], sorted(told["sandboxes"])) == (["kv:read"], ["a", "b"])


@pytest.mark.parametrize("sandbox", ["b", "none"])
async def test_a_sandbox_that_a_token_may_not_touch_is_as_if_it_did_not_exist(open_server: Open, sandbox: str) -> None:
    async with open_server() as server:
        token = server.token(sandboxes="a")
        rest = await server.get(f"/api/sandboxes/{sandbox}/who", token)
        mcp = await server.get(f"/sandboxes/{sandbox}/mcp", token)

    assert rest.status_code == mcp.status_code == 404
    assert rest.json() == mcp.json()
    assert rest.json()["detail"].startswith(f"not_found: no sandbox {sandbox!r}; ")


async def test_a_token_for_every_sandbox_touches_every_one(open_server: Open) -> None:
    async with open_server() as server:
        token = server.token(sandboxes=None)

        assert [(await server.get(f"/api/sandboxes/{each}/who", token)).status_code for each in "ab"] == [200, 200]


async def test_a_revoked_token_ends_at_once(open_server: Open) -> None:
    async with open_server() as server:
        token, other = server.token(), server.token("other")
        assert (await server.get("/api/sandboxes", token)).status_code == 200
        server.tokens.revoke("agent")

        answer = await server.get("/api/sandboxes", token)

        assert (await server.get("/api/sandboxes", other)).status_code == 200
    assert answer.status_code == 401
    assert 'error="invalid_token"' in answer.headers["www-authenticate"]
    assert "not known or was revoked" in answer.json()["detail"]


async def test_an_expired_token_is_refused_and_told_so(open_server: Open) -> None:
    async with open_server() as server:
        token = server.token(expires_days=1)
        server.clock.move(DAY_MS - 1)
        assert (await server.get("/api/sandboxes", token)).status_code == 200
        server.clock.move(1)

        answer = await server.get("/api/sandboxes", token)

    assert answer.status_code == 401
    assert "the token 'agent' has expired" in answer.json()["detail"]


@pytest.mark.parametrize(
    "change", [lambda t: t[:-1] + ("A" if t[-1] != "A" else "B"), str.upper, lambda t: t[:-1], lambda t: t + "A"]
)
async def test_a_tampered_token_is_refused(open_server: Open, change) -> None:
    async with open_server() as server:
        token = server.token()

        assert (await server.get("/api/sandboxes", change(token))).status_code == 401


@pytest.mark.parametrize(
    "given", ["Basic YTpi", "Bearer", "Bearer ", "Bearer a b", "Bearer ü", "bearer: x", "Bearer a,b"]
)
async def test_a_malformed_header_is_a_bad_request(open_server: Open, given: str) -> None:
    async with open_server() as server, server.client() as client:
        answer = await client.get("/api/sandboxes", headers=[(b"authorization", given.encode("latin-1"))])

    assert answer.status_code == 400
    assert 'error="invalid_request"' in answer.headers["www-authenticate"]


async def test_two_tokens_are_a_bad_request(open_server: Open) -> None:
    async with open_server() as server, server.client() as client:
        token = f"Bearer {server.token()}"
        answer = await client.get("/api/sandboxes", headers=[("authorization", token), ("authorization", token)])

    assert answer.status_code == 400


async def test_the_scheme_is_read_in_any_case(open_server: Open) -> None:
    async with open_server() as server, server.client() as client:
        answer = await client.get("/api/sandboxes", headers={"authorization": f"bEARER  {server.token()}"})

    assert answer.status_code == 200


# The file


async def test_the_file_holds_no_token_and_belongs_to_its_user_alone(open_server: Open) -> None:
    async with open_server() as server:
        token = server.token()
        path = server.tokens._path

        assert token not in path.read_text()
        assert token[4:] not in path.read_text()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert sorted(each.name for each in path.parent.iterdir()) == ["tokens.json", "tokens.lock"]


async def test_a_file_that_others_may_write_grants_nothing(open_server: Open) -> None:
    async with open_server() as server:
        token = server.token()
        os.chmod(server.tokens._path, 0o666)

        answer = await server.get("/api/sandboxes", token)

    assert answer.status_code == 403
    assert "could have been written by another user" in answer.json()["detail"]


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"version": 2}', b"\xff", b"[" * 100_000])
async def test_a_damaged_file_grants_nothing_and_says_nothing_of_what_it_holds(
    open_server: Open, damage: bytes
) -> None:
    async with open_server() as server:
        token = server.token()
        server.tokens._path.write_bytes(damage)

        answer = await server.get("/api/sandboxes", token)

    assert answer.status_code == 503
    assert answer.json()["detail"].startswith("unavailable: config/tokens.json cannot be read: it is not what")


async def test_a_deleted_file_grants_nothing(open_server: Open) -> None:
    async with open_server() as server:
        token = server.token()
        server.tokens._path.unlink()

        assert (await server.get("/api/sandboxes", token)).status_code == 401


async def test_a_new_token_is_accepted_at_once(open_server: Open) -> None:
    async with open_server() as server:
        before = await server.get("/api/sandboxes", "ikv_" + "A" * 43)
        after = await server.get("/api/sandboxes", server.token())

    assert (before.status_code, after.status_code) == (401, 200)


def test_the_hash_in_the_file_is_no_token(token_file) -> None:
    token_file.create("a", ("kv:read",), ("a",))
    (kept,) = json.loads(token_file._path.read_text())["tokens"]

    with pytest.raises(Exception, match="not known or was revoked"):
        token_file.find("ikv_" + kept["sha256"][:43])
