"""JSON Web Tokens through HTTP: forged, foreign and worn out ones, and what claims allow."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import TYPE_CHECKING, Any

import anyio
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from contextlib import AbstractAsyncContextManager

    from starlette.types import Receive, Scope, Send
    from tests.access.conftest import Open, Server

    Issuer = Callable[[Any], AbstractAsyncContextManager[str]]

SECRET = "super-secret-jwt-token-with-at-least-32-characters-long"
ISSUER = "https://project.supabase.co/auth/v1"
USER = "0f5e5b5e-7d3c-4a0b-9a43-6f0b8f1f7c11"
RSA_KEY = rsa.generate_private_key(65537, 2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
ED_KEY = ed25519.Ed25519PrivateKey.generate()
OTHER_KEY = rsa.generate_private_key(65537, 2048)
NOW_S = 1_767_225_600


def claims(**changes: Any) -> dict[str, Any]:
    """Return what Supabase Auth puts into an access token; a change to None leaves a claim out."""
    found: dict[str, Any] = {
        "aud": "authenticated",
        "exp": NOW_S + 3600,
        "iat": NOW_S,
        "iss": ISSUER,
        "sub": USER,
        "email": "ada@example.com",
        "phone": "",
        "app_metadata": {"provider": "email", "providers": ["email"], "sandboxes": ["a"]},
        "user_metadata": {"sandboxes": ["b"], "iris_kv": ["kv:admin"]},
        "role": "authenticated",
        "aal": "aal1",
        "amr": [{"method": "password", "timestamp": NOW_S}],
        "session_id": "5f2c1f8e-0c3e-4a38-8a3a-0f6d2f0c9a11",
        "is_anonymous": False,
    }
    return {name: value for name, value in {**found, **changes}.items() if value is not None}


def signed(key: Any = SECRET, algorithm: str = "HS256", kid: str | None = None, **changes: Any) -> str:
    return jwt.encode(claims(**changes), key, algorithm, {} if kid is None else {"kid": kid})


def encoded(data: object) -> str:
    raw = data if isinstance(data, bytes) else json.dumps(data).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def by_hand(header: object, payload: object, key: bytes | None = None) -> str:
    """Return a token as an attacker makes one, without any library's scruples."""
    signing = f"{encoded(header)}.{encoded(payload)}"
    signature = b"" if key is None else hmac.new(key, signing.encode(), hashlib.sha256).digest()
    return f"{signing}.{encoded(signature)}"


def jwk(key: Any, kid: str | None, **more: Any) -> dict[str, Any]:
    algorithm = {rsa.RSAPrivateKey: RSAAlgorithm, ec.EllipticCurvePrivateKey: ECAlgorithm}
    kind = next((value for base, value in algorithm.items() if isinstance(key, base)), OKPAlgorithm)
    found = kind.to_jwk(key.public_key(), as_dict=True)
    return {**found, **({} if kid is None else {"kid": kid}), **more}


async def who(server: Server, token: str) -> dict[str, Any]:
    answer = await server.get("/api/who", token)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def refused(server: Server, token: str) -> str:
    answer = await server.get("/api/who", token)
    assert answer.status_code == 401, answer.text
    assert 'error="invalid_token"' in answer.headers["www-authenticate"]
    assert token not in answer.text
    return answer.json()["detail"]


# Supabase Auth, as it is


async def test_a_token_of_supabase_is_accepted_as_it_is(open_server: Open) -> None:
    async with open_server(jwt_secret=SECRET) as server:
        told = await who(server, signed())
        opened = await server.get("/api/sandboxes/a/who", signed())
        closed = await server.get("/api/sandboxes/b/who", signed())

    assert told["name"] == f"jwt:{USER}"
    assert (sorted(told["rights"]), told["sandboxes"]) == (["kv:read", "kv:write"], ["a"])
    assert (opened.status_code, closed.status_code) == (200, 404)


async def test_without_sandboxes_a_user_has_the_sandbox_of_their_id(open_server: Open) -> None:
    async with open_server(jwt_secret=SECRET) as server:
        told = await who(server, signed(app_metadata={"provider": "email"}))

    assert told["sandboxes"] == [USER]


@pytest.mark.parametrize(
    ("changes", "rights"),
    [
        ({"scope": "openid kv:read"}, ["kv:read"]),
        ({"scopes": ["kv:write"]}, ["kv:write"]),
        ({"scp": "kv:admin kv:read"}, ["kv:admin", "kv:read"]),
        ({"app_metadata": {"iris_kv": ["kv:read"]}}, ["kv:read"]),
        ({"app_metadata": {"iris_kv": []}}, []),
        ({"scope": "kv:read", "app_metadata": {"iris_kv": ["kv:admin"]}}, ["kv:read"]),
        ({"scope": "openid email"}, ["kv:read", "kv:write"]),
        ({"scope": 7, "scp": {"kv:admin": True}}, ["kv:read", "kv:write"]),
        ({"role": "service_role"}, ["kv:read", "kv:write"]),
    ],
)
async def test_scopes_come_from_the_claims_that_issuers_use(open_server: Open, changes, rights: list[str]) -> None:
    async with open_server(jwt_secret=SECRET) as server:
        assert sorted((await who(server, signed(**changes)))["rights"]) == rights


async def test_the_scopes_of_tokens_that_name_none_are_configured(open_server: Open) -> None:
    async with open_server(jwt_secret=SECRET, jwt_default_scopes=("kv:read",)) as server:
        assert (await who(server, signed()))["rights"] == ["kv:read"]


@pytest.mark.parametrize(
    ("settings", "changes", "sandboxes"),
    [
        ({}, {"app_metadata": None, "sandboxes": "a b"}, ["a", "b"]),
        ({}, {"app_metadata": {"sandboxes": ["*"]}}, None),
        ({}, {"app_metadata": None, "sub": "*"}, ["*"]),
        ({}, {"app_metadata": None, "sub": "a,b"}, ["a,b"]),
        ({}, {"app_metadata": {"sandboxes": []}}, []),
        ({}, {"app_metadata": {"sandboxes": 7}}, []),
        ({"jwt_sandboxes_claim": "app_metadata.teams"}, {"app_metadata": {"teams": ["b"], "sandboxes": ["a"]}}, ["b"]),
        ({"jwt_sandboxes_claim": "app_metadata.teams"}, {}, []),
        ({"jwt_sandboxes_claim": "sub"}, {}, [USER]),
    ],
)
async def test_sandboxes_come_from_the_claims(open_server: Open, settings, changes, sandboxes) -> None:
    async with open_server(jwt_secret=SECRET, **settings) as server:
        told = await who(server, signed(**changes))

    assert (told["sandboxes"] if told["sandboxes"] is None else sorted(told["sandboxes"])) == sandboxes


# Forged, foreign and worn out


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"exp": NOW_S - 31}, "it has expired"),
        ({"exp": None}, "it lacks one of exp, aud, sub"),
        ({"exp": True}, "its exp is no time"),
        ({"exp": "never"}, "its exp is no time"),
        ({"exp": float("inf")}, "its exp is no time"),
        ({"nbf": NOW_S + 31}, "it is not valid yet"),
        ({"iat": NOW_S + 31}, "it is not valid yet"),
        ({"aud": "other"}, "another audience"),
        ({"aud": ["other"]}, "another audience"),
        ({"aud": None}, "it lacks one of exp, aud, sub"),
        ({"iss": "https://evil.example"}, "another issuer"),
        ({"iss": None}, "it lacks one of exp, aud, sub"),
        ({"sub": None}, "it lacks one of exp, aud, sub"),
        ({"sub": ""}, "its sub is empty"),
        ({"sub": "a\nb"}, "its sub is empty, too long or not printable"),
        ({"sub": "x" * 129}, "its sub is empty, too long or not printable"),
    ],
)
async def test_a_token_whose_claims_are_wrong_is_refused(open_server: Open, changes, why: str) -> None:
    async with open_server(jwt_secret=SECRET, jwt_issuer=ISSUER) as server:
        assert why in await refused(server, by_hand({"alg": "HS256"}, claims(**changes), SECRET.encode()))


async def test_clocks_may_differ_by_the_leeway(open_server: Open) -> None:
    async with open_server(jwt_secret=SECRET, jwt_leeway_s=30) as server:
        await who(server, signed(exp=NOW_S - 29, nbf=NOW_S + 30, iat=NOW_S + 30))


async def test_an_accepted_token_expires(open_server: Open) -> None:
    async with open_server(jwt_secret=SECRET) as server:
        token = signed()
        await who(server, token)
        server.clock.move(3_630_000)

        assert "it has expired" in await refused(server, token)


@pytest.mark.parametrize(
    "alg", ["none", "None", "NONE", "nOnE", "", None, ["HS256"], "HS384", "HS512", "RS256", "ES256"]
)
@pytest.mark.parametrize("key", [None, SECRET.encode()])
async def test_no_other_algorithm_is_accepted(open_server: Open, alg: object, key: bytes | None) -> None:
    async with open_server(jwt_secret=SECRET) as server:
        await refused(server, by_hand({"alg": alg, "typ": "JWT"}, claims(), key))


async def test_a_token_of_another_secret_and_a_tampered_one_are_refused(open_server: Open) -> None:
    async with open_server(jwt_secret=SECRET) as server:
        header, _, signature = signed().split(".")
        await refused(server, signed("another-secret-that-has-32-bytes-too"))
        await refused(server, f"{header}.{encoded(claims(scope='kv:admin'))}.{signature}")
        await refused(server, f"{header}.{encoded(claims())}.")
        await refused(server, f"{encoded({'alg': 'none'})}.{encoded(claims())}.{signature}")


@pytest.mark.parametrize(
    "token",
    [
        by_hand({"alg": "HS256", "crit": ["x"], "x": 1}, claims(), SECRET.encode()),
        by_hand({"alg": "HS256", "b64": False, "crit": ["b64"]}, claims(), SECRET.encode()),
        by_hand({"alg": "HS256", "kid": 7}, claims(), SECRET.encode()),
        by_hand({"alg": "HS256"}, [1], SECRET.encode()),
        by_hand({"alg": "HS256"}, b"[" * 5000, SECRET.encode()),
        by_hand(b"[" * 5000, claims(), SECRET.encode()),
        by_hand(b"\xff", b"\xff", SECRET.encode()),
        by_hand([], {}, SECRET.encode()),
        "..",
        "a.b.c",
        "a.b",
        "a.b.c.d",
        "x" * 16_385 + ".a.b",
    ],
)
async def test_a_malformed_token_is_refused(open_server: Open, token: str) -> None:
    async with open_server(jwt_secret=SECRET) as server:
        await refused(server, token)


@pytest.mark.parametrize(
    "header", [{"jku": "http://127.0.0.1:1/"}, {"x5u": "http://127.0.0.1:1/"}, {"kid": "../../dev/null"}]
)
async def test_a_token_does_not_say_where_its_key_is(open_server: Open, issuer: Issuer, header) -> None:
    asked: list[str] = []
    async with issuer(keys_of(asked, jwk(RSA_KEY, "one"))) as url, open_server(jwks_url=url) as server:
        forged = {**header, "jwk": jwk(OTHER_KEY, "one")}
        await refused(server, jwt.encode(claims(), OTHER_KEY, "RS256", {"kid": "one", **forged}))

    assert asked == ["/jwks.json"]


# An issuer's public keys


def keys_of(asked: list[str], *keys: dict[str, Any]) -> Any:
    """Return an issuer that notes what it is asked for, and publishes some keys, which may be changed."""

    async def issuer(scope: Scope, receive: Receive, send: Send) -> None:
        asked.append(scope["path"])
        await JSONResponse({"keys": list(keys)})(scope, receive, send)

    return issuer


@pytest.mark.parametrize(("key", "algorithm"), [(RSA_KEY, "RS256"), (EC_KEY, "ES256"), (ED_KEY, "EdDSA")])
@pytest.mark.parametrize("kid", ["one", None])
async def test_a_token_of_the_issuer_is_accepted(open_server: Open, issuer: Issuer, key, algorithm, kid) -> None:
    asked: list[str] = []
    async with issuer(keys_of(asked, jwk(key, "one", use="sig"))) as url, open_server(jwks_url=url) as server:
        for _ in range(3):
            assert (await who(server, signed(key, algorithm, kid)))["name"] == f"jwt:{USER}"

    assert len(asked) == 1


@pytest.mark.parametrize("settings", [{}, {"jwt_secret": SECRET}])
async def test_a_public_key_is_no_secret(open_server: Open, issuer: Issuer, settings) -> None:
    encoding, form = serialization.Encoding, serialization.PublicFormat
    pem = RSA_KEY.public_key().public_bytes(encoding.PEM, form.SubjectPublicKeyInfo)
    der = RSA_KEY.public_key().public_bytes(encoding.DER, form.SubjectPublicKeyInfo)
    text = json.dumps(jwk(RSA_KEY, "one")).encode()
    async with issuer(keys_of([], jwk(RSA_KEY, "one"))) as url, open_server(jwks_url=url, **settings) as server:
        for key in (pem, pem.strip(), der, text):
            await refused(server, by_hand({"alg": "HS256", "kid": "one"}, claims(), key))


@pytest.mark.parametrize(
    "key",
    [
        {"kty": "oct", "k": encoded(b"s" * 32), "kid": "one"},
        {"kty": "oct", "k": encoded(b"s" * 32), "kid": "one", "alg": "HS256"},
        jwk(RSA_KEY, "one", use="enc"),
    ],
)
async def test_a_published_key_that_verifies_no_signature_is_left_out(open_server: Open, issuer: Issuer, key) -> None:
    async with issuer(keys_of([], key, jwk(RSA_KEY, "two"))) as url, open_server(jwks_url=url) as server:
        await who(server, signed(RSA_KEY, "RS256", "two"))
        await refused(server, by_hand({"alg": "HS256", "kid": "one"}, claims(), b"s" * 32))
        await refused(server, signed(RSA_KEY, "RS256", "one"))


async def test_a_key_of_another_kind_does_not_verify(open_server: Open, issuer: Issuer) -> None:
    async with issuer(keys_of([], jwk(RSA_KEY, "one"))) as url, open_server(jwks_url=url) as server:
        await refused(server, signed(EC_KEY, "ES256", "one"))
        await refused(server, signed(OTHER_KEY, "RS256", "one"))


async def test_a_rotated_key_is_fetched_but_not_for_every_token(open_server: Open, issuer: Issuer) -> None:
    asked: list[str] = []
    keys = [jwk(RSA_KEY, "one")]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await keys_of(asked, *keys)(scope, receive, send)

    async with issuer(app) as url, open_server(jwks_url=url) as server:
        await who(server, signed(RSA_KEY, "RS256", "one"))
        keys[:] = [jwk(OTHER_KEY, "two")]
        for _ in range(20):
            await refused(server, signed(OTHER_KEY, "RS256", "two"))
        assert len(asked) == 1
        server.clock.move(10_000)

        await who(server, signed(OTHER_KEY, "RS256", "two"))
        assert "no such key" in await refused(server, signed(RSA_KEY, "RS256", "one"))
    assert len(asked) == 2


async def test_keys_serve_for_an_hour_while_the_issuer_is_down(open_server: Open, issuer: Issuer) -> None:
    down: list[bool] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        answer = Response(status_code=500) if down else JSONResponse({"keys": [jwk(RSA_KEY, "one")]})
        await answer(scope, receive, send)

    async with issuer(app) as url, open_server(jwks_url=url) as server:
        token = signed(RSA_KEY, "RS256", "one", exp=NOW_S + 100_000)
        await who(server, token)
        down.append(True)
        server.clock.move(3_600_000)
        await who(server, token)
        server.clock.move(1)
        late = await server.get("/api/who", token)
        down.clear()
        server.clock.move(10_000)

        await who(server, token)
    assert late.status_code == 503


async def _huge(scope: Scope, receive: Receive, send: Send) -> None:
    async def chunks() -> AsyncGenerator[bytes]:
        for _ in range(64):
            yield b" " * 65_536

    await StreamingResponse(chunks())(scope, receive, send)


async def _slow(scope: Scope, receive: Receive, send: Send) -> None:
    async def chunks() -> AsyncGenerator[bytes]:
        yield b" "
        await anyio.sleep_forever()

    await StreamingResponse(chunks())(scope, receive, send)


@pytest.mark.parametrize(
    "app",
    [
        _huge,
        _slow,
        Response("no", 500),
        Response("<html>", 200),
        Response("[" * 100_000, 200),
        JSONResponse([]),
        JSONResponse({"keys": 7}),
        JSONResponse({"keys": [7, None, {}, {"kty": 7}]}),
        RedirectResponse("http://127.0.0.1:1/"),
    ],
)
async def test_an_issuer_that_fails_costs_a_moment_and_nothing_else(open_server: Open, issuer: Issuer, app) -> None:
    async with issuer(app) as url, open_server(jwks_url=url, jwks_timeout_s=0.3) as server:
        with anyio.fail_after(4):
            for _ in range(3):
                answer = await server.get("/api/who", signed(RSA_KEY, "RS256", "one"))
                assert answer.status_code in (401, 503)
            static = await server.get("/api/who", server.token())
    assert static.status_code == 200
    assert "127.0.0.1" not in answer.text


async def test_an_issuer_that_is_down_is_told_and_not_asked_by_every_request(open_server: Open) -> None:
    async with open_server(jwks_url="http://127.0.0.1:9/jwks") as server:
        answers = [await server.get("/api/who", signed(RSA_KEY, "RS256", "one")) for _ in range(3)]

    assert {each.status_code for each in answers} == {503}
    assert "the issuer's keys cannot be fetched" in answers[0].json()["detail"]
    assert answers[0].headers["retry-after"] == "10"
