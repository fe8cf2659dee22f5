"""The verbs that work on one entry, or list them: get, put, delete, list."""

from __future__ import annotations

import base64
import sys
from pathlib import Path
from typing import Annotated

import typer

from iris_kv import intake
from iris_kv.cli.output import (
    USER,
    JsonOption,
    ScopeArgument,
    TrustOption,
    WorkspaceOption,
    allowed,
    given,
    locate,
    note,
    opened,
    progress,
    quantity,
    reported,
    run,
    show,
    undo,
)
from iris_kv.errors import InvalidArgumentError, NotFoundError, TooLargeError
from iris_kv.model import Entry, EntryInfo, short_digest, utc_text
from iris_kv.reading import is_text
from iris_kv.settings import load_settings
from iris_kv.store.names import content_type_of

entries = typer.Typer()

KeyArgument = Annotated[
    str, typer.Argument(help="The key; any text of 1 to 512 bytes. Write -- before one that starts with -.")
]
DigestOption = Annotated[
    str | None, typer.Option("--if-digest", help="Only over this digest; an empty one: only if absent.")
]

_PAGE = 500


@entries.command()
def get(
    scope: ScopeArgument,
    key: KeyArgument,
    output: Annotated[Path | None, typer.Option(help="Write the value to this file.")] = None,
    workspace: WorkspaceOption = None,
    trust_owner: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Print an entry's value, verified, byte for byte."""

    async def work() -> Entry:
        async with opened(workspace, given(trust_owner=trust_owner)) as found:
            return await found.get(scope, key)

    entry = run(work, as_json=as_json)
    with reported(as_json=as_json):
        if output is not None:
            _write(output, entry.value)
            note(f"wrote {quantity(entry.info.size)} to {output}")
        elif not as_json:
            _print_value(entry.value)
    if as_json:
        value = _shown_value(entry.value) if output is None else {"output": str(output)}
        show({**entry.info.model_dump(mode="json"), **value}, "", as_json=True)


@entries.command()
def put(
    scope: ScopeArgument,
    key: KeyArgument,
    value: Annotated[str | None, typer.Argument(help="The value; - or nothing, without --file: stdin.")] = None,
    file: Annotated[Path | None, typer.Option(help="Take the value from this file.")] = None,
    content_type: Annotated[str | None, typer.Option(help="Such as text/markdown.")] = None,
    ttl_hours: Annotated[float | None, typer.Option(help="Hours to live; without it, the scope's default.")] = None,
    metadata: Annotated[list[str] | None, typer.Option(help="NAME=VALUE; repeatable.")] = None,
    if_digest: DigestOption = None,
    workspace: WorkspaceOption = None,
    trust_owner: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write an entry from the argument, a file or stdin."""
    # Before the event loop starts, which would not let an interrupt end a read of stdin.
    with reported(as_json=as_json):
        pairs = _pairs(metadata or [])
        most = load_settings(locate(workspace).root).limits(allowed(scope, "write")).max_value_bytes
        data = _value(value, file, most)
    kind = content_type or (None if file is None else content_type_of(file.suffix))

    async def work() -> EntryInfo:
        arguments = given(trust_owner=trust_owner)
        async with opened(workspace, arguments, create=True) as found, progress(f"writing {quantity(len(data))}"):
            return await found.put(
                USER,
                scope,
                key,
                data,
                content_type=kind,
                ttl_hours=ttl_hours,
                metadata=pairs,
                if_digest=if_digest,
            )

    info = run(work, as_json=as_json)
    show(info, f"stored {line(info)}", as_json=as_json)


@entries.command()
def delete(
    scope: ScopeArgument,
    key: KeyArgument,
    if_digest: DigestOption = None,
    workspace: WorkspaceOption = None,
    trust_owner: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Delete an entry."""

    async def work() -> tuple[EntryInfo, float]:
        async with opened(workspace, given(trust_owner=trust_owner)) as found:
            return await found.delete(USER, scope, key, if_digest=if_digest), found.undo_hours(scope)

    info, hours = run(work, as_json=as_json)
    show(info, f"deleted {line(info)}" + undo(hours, f"iris-kv restore-entry {scope} KEY"), as_json=as_json)


@entries.command(name="list")
def list_entries(
    scope: ScopeArgument,
    prefix: Annotated[str, typer.Option(help="Only keys that start with this.")] = "",
    include_expired: Annotated[bool, typer.Option("--include-expired", help="Expired ones too.")] = False,
    workspace: WorkspaceOption = None,
    trust_owner: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """List a scope's entries in key order."""

    async def work() -> list[EntryInfo]:
        found: list[EntryInfo] = []
        async with opened(workspace, given(trust_owner=trust_owner)) as open_one:
            cursor: str | None = None
            while True:
                page = await open_one.list(
                    scope, prefix=prefix, cursor=cursor, limit=_PAGE, include_expired=include_expired
                )
                found += page.entries
                cursor = page.next_cursor
                if cursor is None:
                    return found

    found = run(work, as_json=as_json)
    show(found, "\n".join(map(line, found)) or f"no entries in {scope}", as_json=as_json)


def _value(value: str | None, file: Path | None, most: int) -> bytes:
    if value is not None and file is not None:
        raise InvalidArgumentError("a value and --file", "the value comes from one place", "give only one of them")
    if value is not None and value != "-":
        return intake.encoded(value)
    if file is None:
        if sys.stdin.isatty():
            note("reading the value from the terminal; end it with Ctrl-D on a new line")
        return _bounded(sys.stdin.buffer.read(most + 1), most)
    try:
        with file.open("rb") as reader:
            return _bounded(reader.read(most + 1), most)
    except FileNotFoundError:
        raise NotFoundError(f"no file {str(file)!r}", "--file names a file", "check the path") from None
    except OSError as error:
        problem = f"{str(file)!r} cannot be read ({error.strerror})"
        raise InvalidArgumentError(problem, "--file names a readable file", "check the path") from None


def _bounded(data: bytes, most: int) -> bytes:
    if len(data) > most:
        raise TooLargeError(
            f"the value has over {most} bytes", f"one value of this scope has at most {most} bytes", "split it"
        )
    return data


def _pairs(metadata: list[str]) -> dict[str, str]:
    for text in metadata:
        if "=" not in text[1:]:
            raise InvalidArgumentError(f"--metadata {text!r}", "it is NAME=VALUE", "put a = between the two")
    return dict(text.split("=", 1) for text in metadata)


def _write(output: Path, value: bytes) -> None:
    try:
        output.write_bytes(value)
    except OSError as error:
        raise InvalidArgumentError(
            f"{str(output)!r} cannot be written ({error.strerror})", "its folder exists and is writable", "mend that"
        ) from None


def _print_value(value: bytes) -> None:
    if sys.stdout.isatty() and not is_text(value):
        raise InvalidArgumentError(
            "the value is binary", "it would garble the terminal", "add --output FILE or --json, or pipe it"
        )
    sys.stdout.buffer.write(value)


def _shown_value(value: bytes) -> dict[str, str]:
    try:
        return {"value": value.decode()}
    except UnicodeDecodeError:
        return {"value_base64": base64.b64encode(value).decode("ascii")}


def line(info: EntryInfo) -> str:
    """Return what is known of an entry, for people."""
    expires = "never" if info.expires_at is None else utc_text(info.expires_at)
    author = f"{info.provenance.author} via {info.provenance.face}"
    facts = f"{quantity(info.size)} {info.content_type} {short_digest(info.digest)}"
    return f"{info.scope} {info.key!r} {facts} by {author}, expires {expires}"
