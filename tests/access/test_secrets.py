"""Tokens and secrets stay where they belong: verbs that show one once, settings that show none, clean logs."""

from __future__ import annotations

import json
import logging
import re
from typing import TYPE_CHECKING

import httpx2
import jwt
import pytest
from typer.testing import CliRunner

from iris_kv.cli import app
from iris_kv.credentials import TOKEN, TokenFile, token_file_path
from iris_kv.errors import ForbiddenError, IrisError
from iris_kv.settings import load_settings, user_config_path

if TYPE_CHECKING:
    from pathlib import Path

    from tests.access.conftest import Open
    from tests.conftest import Clock

SECRET = "super-secret-jwt-token-with-at-least-32-characters-long"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def run(*arguments: str, code: int = 0) -> tuple[str, str]:
    found = CliRunner().invoke(app, ["token", *arguments])
    assert found.exit_code == code, found.output
    return found.stdout, found.stderr


# The verbs


def test_a_new_token_is_printed_once_and_is_known_to_servers(clock: Clock) -> None:
    out, err = run("new", "--name", "ci", "--scopes", "kv:read,kv:write", "--sandboxes", "a,b", "--expires-days", "30")

    token = out.strip()
    assert TOKEN.fullmatch(token)
    assert token not in err
    assert "it is not shown again" in err
    found = TokenFile(token_file_path(), clock).find(token)
    assert (found.name, found.rights, found.sandboxes) == ("ci", ("kv:read", "kv:write"), ("a", "b"))
    assert token not in "".join(run("list") + run("list", "--json") + run("revoke", "ci", "--json"))


def test_a_token_touches_the_only_workspace_unless_told_otherwise(clock: Clock) -> None:
    run("new", "--name", "one", "--scopes", "kv:read")
    run("new", "--name", "all", "--scopes", "kv:admin", "--sandboxes", "*")

    listed = {each["name"]: each["sandboxes"] for each in json.loads(run("list", "--json")[0])}
    assert listed == {"one": ["default"], "all": None}


def test_tokens_are_listed_with_what_they_allow_and_until_when(clock: Clock) -> None:
    TokenFile(token_file_path(), clock).create("old", ("kv:read",), ("a",), 1)
    run("new", "--name", "new", "--scopes", "kv:admin", "--sandboxes", "*")

    first, second = run("list")[0].splitlines()

    assert re.fullmatch(r"new  kv:admin  sandboxes=\*  created=\S+Z  expires=never", first)
    assert second == (
        "old  kv:read  sandboxes=a  created=2026-01-01T00:00:00.000Z  expires=2026-01-02T00:00:00.000Z EXPIRED"
    )


def test_a_token_as_json_has_itself_and_its_times() -> None:
    made = json.loads(run("new", "--name", "ci", "--scopes", "kv:read", "--json")[0])

    assert TOKEN.fullmatch(made.pop("token"))
    assert made.pop("created_at").endswith("Z")
    assert made == {"name": "ci", "rights": ["kv:read"], "sandboxes": ["default"], "expires_at": None}


def test_no_tokens_are_no_error() -> None:
    assert run("list")[0] == "no tokens\n"
    assert json.loads(run("list", "--json")[0]) == []


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("new", "--name", "a b", "--scopes", "kv:read"), 2, "the name 'a b' is malformed"),
        (("new", "--name", "", "--scopes", "kv:read"), 2, "the name '' is malformed"),
        (("new", "--name", "x", "--scopes", "kv:all"), 2, "unknown scope 'kv:all'; the scopes are kv:read, kv:write"),
        (("new", "--name", "x", "--scopes", ""), 2, "the token has no scope"),
        (("new", "--name", "x", "--scopes", "kv:read", "--sandboxes", "../x"), 2, "the sandbox id '../x' is malformed"),
        (("new", "--name", "x", "--scopes", "kv:read", "--sandboxes", ","), 2, "--sandboxes names none"),
        (("new", "--name", "x", "--scopes", "kv:read", "--expires-days", "0"), 2, "the expiry is 0 days"),
        (("new", "--name", "x", "--scopes", "kv:read", "--expires-days", "nan"), 2, "the expiry is nan days"),
        (("new", "--name", "ci", "--scopes", "kv:read"), 4, "there is a token 'ci'"),
        (("revoke", "cj"), 3, "no token 'cj'; the nearest names are ci"),
    ],
)
def test_a_mistake_is_told_and_changes_nothing(arguments: tuple[str, ...], code: int, says: str) -> None:
    run("new", "--name", "ci", "--scopes", "kv:read")
    before = token_file_path().read_bytes()

    out, err = run(*arguments, code=code)

    assert out == ""
    assert says in err
    assert token_file_path().read_bytes() == before


def test_a_folder_that_cannot_be_written_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", "/dev/null")

    assert "iris-kv/tokens.json cannot be written: " in run("new", "--name", "x", "--scopes", "kv:read", code=8)[1]


# Settings


def write_user(text: str) -> None:
    path = user_config_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_user_and_the_environment_configure_http(monkeypatch: pytest.MonkeyPatch) -> None:
    write_user(
        f'[http]\njwt_secret = "{SECRET}"\npublic_url = "https://KV.example.com:443/"\nallowed_hosts = ["KV.lan"]'
    )
    monkeypatch.setenv("IRIS_KV_HTTP__CORS_ORIGINS", '["https://app.example.com"]')
    monkeypatch.setenv("IRIS_KV_HTTP__JWT_DEFAULT_SCOPES", '["kv:read"]')

    found = load_settings(None, {"http.require_token": True})

    assert found.http.jwt_secret is not None
    assert found.http.jwt_secret.get_secret_value() == SECRET
    assert (found.http.public_url, found.http.allowed_hosts) == ("https://kv.example.com", ("kv.lan",))
    assert (found.http.cors_origins, found.http.jwt_default_scopes) == (("https://app.example.com",), ("kv:read",))
    assert found.http.require_token is True
    assert SECRET not in repr(found) + str(found) + found.model_dump_json()


@pytest.mark.parametrize(
    "line",
    ["[http]\njwt_secret='x'", "[http]\ncors_origins=['*']", "[http]\nallowed_hosts=[]", "[http]\nrequire_token=false",
     "http.jwks_url='https://evil.example'", "[http]\npublic_url='https://evil.example'"],
)  # fmt: skip
def test_a_workspace_configures_nothing_of_http(tmp_path: Path, line: str) -> None:
    (tmp_path / ".iris").mkdir()
    (tmp_path / ".iris" / "config.toml").write_text(line)

    with pytest.raises(ForbiddenError, match=r"\.iris/config\.toml sets 'http\."):
        load_settings(tmp_path)


@pytest.mark.parametrize(
    "text",
    ['[http]\njwt_secret = "hunter2"', '[http]\njwt_secret = ["hunter2"]', 'http = "hunter2"', "[http]\njwt_secret = 2002002",
     '[http]\njwt_secret = { value = "hunter2" }'],
)  # fmt: skip
def test_a_bad_secret_is_told_without_it(text: str) -> None:
    write_user(text)

    with pytest.raises(IrisError) as error:
        load_settings(None)

    assert "hunter2" not in str(error.value)
    assert "2002002" not in str(error.value)
    assert "not shown" in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cors_origins", ["*"]),
        ("cors_origins", ["https://app.example.com/path"]),
        ("cors_origins", ["null"]),
        ("allowed_hosts", ["*"]),
        ("allowed_hosts", ["https://kv.example.com"]),
        ("public_url", "kv.example.com"),
        ("public_url", "https://kv.example.com/path"),
        ("public_url", "https://user:password@kv.example.com"),
        ("public_url", "ftp://kv.example.com"),
        ("public_url", "https://kv.example.com\r\nx: y"),
        ("jwks_url", "http://issuer.example/jwks"),
        ("jwks_url", "file:///etc/passwd"),
        ("jwt_leeway_s", -1),
        ("jwt_default_scopes", ["kv:everything"]),
        ("jwt_audience", ""),
    ],
)
def test_a_setting_that_would_open_the_server_by_mistake_is_refused(name: str, value: object) -> None:
    with pytest.raises(IrisError, match=rf"^invalid_argument: http\.{name}"):
        load_settings(None, {f"http.{name}": value})


# Logs and answers


def tokens_of(secret: str) -> dict[str, str]:
    claims = {"aud": "authenticated", "sub": "u", "exp": 1_767_225_600 + 60, "app_metadata": {"sandboxes": ["a"]}}
    return {
        "good": jwt.encode(claims, secret, "HS256"),
        "expired": jwt.encode({**claims, "exp": 1}, secret, "HS256"),
        "foreign": jwt.encode({**claims, "aud": "x"}, secret, "HS256"),
        "forged": jwt.encode(claims, "x" * 32, "HS256"),
        "unknown": "ikv_" + "B" * 43,
    }


async def test_no_token_and_no_secret_is_logged_or_answered(
    open_server: Open, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with open_server(jwt_secret=SECRET) as server, server.listening() as url:
        tokens = {**tokens_of(SECRET), "static": server.token(), "revoked": server.token("revoked")}
        server.tokens.revoke("revoked")
        answered = ""
        async with httpx2.AsyncClient(base_url=url) as client:
            for token in tokens.values():
                bearer = {"authorization": f"Bearer {token}"}
                for path in ("/api/sandboxes", "/api/sandboxes/a/who", "/api/sandboxes/b/who", "/sandboxes/a/mcp"):
                    answer = await client.post(path, headers=bearer, json={})
                    answered += f"{answer.status_code} {answer.headers} {answer.text}"
        server.tokens._path.write_bytes(b"{" + tokens["static"].encode())
        answered += (await server.get("/api/sandboxes", tokens["static"])).text

    kept = [record for record in caplog.records if not record.name.startswith(("httpx2", "httpcore2"))]
    logged = "".join(f"{record.getMessage()} {record.args} {record.exc_text}" for record in kept)
    assert "POST /api/sandboxes HTTP/1.1" in logged
    for hidden in (*tokens.values(), SECRET, server.tokens._path.parent.as_posix()):
        assert hidden not in logged + answered


@pytest.mark.parametrize("sub", ["a\nlevel=error msg=forged", "a\x1b[31m", "a\u202eb", "a b", "a\x00"])
async def test_a_subject_cannot_forge_a_line_of_the_log(open_server: Open, sub: str) -> None:
    async with open_server(jwt_secret=SECRET) as server:
        token = jwt.encode({"aud": "authenticated", "sub": sub, "exp": 1_767_229_200}, SECRET, "HS256")

        assert (await server.get("/api/sandboxes", token)).status_code == 401
