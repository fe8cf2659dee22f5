"""The verbs of tokens: make one for a client of the HTTP server, list them, revoke one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, cast, get_args

import typer

from iris_kv.cli.output import JsonOption, note, reported, show
from iris_kv.credentials import StaticToken, TokenFile, token_file_path
from iris_kv.errors import InvalidArgumentError
from iris_kv.guidance import SystemClock
from iris_kv.model import Timestamp, utc_text
from iris_kv.policy import RIGHTS, Right
from iris_kv.sandboxes import DEFAULT, check_id

token = typer.Typer(no_args_is_help=True, help="Make, list and revoke the bearer tokens of the HTTP server.")

_ALL = "*"


class NewToken(StaticToken):
    """A token that was just made, with the token itself, which is shown this once."""

    token: str


class ListedToken(StaticToken):
    """A token, and whether it is still accepted."""

    expired: bool


@token.command(short_help="Make a token and print it, this once.")
def new(
    name: Annotated[str, typer.Option(help="Who will use it; it stands in the server's log.")],
    scopes: Annotated[str, typer.Option(help="Of kv:read, kv:write and kv:admin, with commas.")],
    sandboxes: Annotated[
        str, typer.Option(help="The ids of the sandboxes that it may touch, with commas; * for every one.")
    ] = DEFAULT,
    expires_days: Annotated[float | None, typer.Option(help="After how many days it ends; without it, never.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a token and print it: only its SHA-256 is kept, so that it cannot be shown again."""
    with reported(as_json=as_json):
        made, kept = _file().create(name, _rights(scopes), _sandboxes(sandboxes), expires_days)
    show(NewToken(**kept.model_dump(), token=made), made, as_json=as_json)
    if not as_json:
        note(f"{_line(kept)}\nkeep it now: it is not shown again. Clients send it as `Authorization: Bearer TOKEN`")


@token.command("list", short_help="List the tokens.")
def list_tokens(as_json: JsonOption = False) -> None:
    """List who has a token, what it allows and until when."""
    with reported(as_json=as_json):
        found = _file().tokens()
    now_ms = SystemClock().now_ms()
    listed = [ListedToken(**each.model_dump(), expired=_is_past(each.expires_at, now_ms)) for each in found]
    show(listed, "\n".join(map(_listed_line, listed)) or "no tokens", as_json=as_json)


@token.command(short_help="Revoke a token at once.")
def revoke(name: Annotated[str, typer.Argument(help="The token's name.")], as_json: JsonOption = False) -> None:
    """Revoke a token: running servers refuse it from their next request on."""
    with reported(as_json=as_json):
        revoked = _file().revoke(name)
    show(revoked, f"revoked {revoked.name}", as_json=as_json)


def _file() -> TokenFile:
    return TokenFile(token_file_path(), SystemClock())


def _rights(text: str) -> tuple[Right, ...]:
    named = _named(text)
    unknown = [each for each in named if each not in RIGHTS]
    if unknown:
        raise InvalidArgumentError(
            f"unknown scope {unknown[0]!r}", f"the scopes are {', '.join(get_args(Right))}", "mend --scopes"
        )
    return cast("tuple[Right, ...]", named)


def _sandboxes(text: str) -> tuple[str, ...] | None:
    if text.strip() == _ALL:
        return None
    named = _named(text)
    if not named:
        raise InvalidArgumentError("--sandboxes names none", "ids with commas, or * for every one", "name one")
    return tuple(map(check_id, named))


def _named(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(each.strip() for each in text.split(",") if each.strip()))


def _is_past(at_ms: Timestamp | None, now_ms: int) -> bool:
    return at_ms is not None and at_ms <= now_ms


def _listed_line(each: ListedToken) -> str:
    return _line(each) + (" EXPIRED" if each.expired else "")


def _line(each: StaticToken) -> str:
    return "  ".join(_columns(each))


def _columns(each: StaticToken) -> Iterator[str]:
    yield each.name
    yield _joined(each.rights)
    yield f"sandboxes={_ALL if each.sandboxes is None else _joined(each.sandboxes)}"
    yield f"created={utc_text(each.created_at)}"
    yield f"expires={'never' if each.expires_at is None else utc_text(each.expires_at)}"


def _joined(names: Sequence[str]) -> str:
    return ",".join(names)
