"""The verbs that work on entries: get, put, delete, list, stats, prune, clear, seed, verify."""

from __future__ import annotations

import base64
import sys
from pathlib import Path
from typing import Annotated

import typer

from iris_kv import intake
from iris_kv.cli.output import (
    USER,
    FoldersOption,
    JsonOption,
    TrustOption,
    WorkspaceOption,
    given,
    note,
    opened,
    progress,
    quantity,
    run,
    show,
)
from iris_kv.errors import CorruptError, InvalidArgumentError, NotFoundError, TooLargeError
from iris_kv.model import EntryInfo, utc_text
from iris_kv.workspace import Workspace

entries = typer.Typer()

ScopeArgument = Annotated[str, typer.Argument(help="system, instructions, project, task or artifacts.")]
OptionalScope = Annotated[str | None, typer.Argument(help="One scope; without it, all.")]
KeyArgument = Annotated[str, typer.Argument(help="The key; any text of 1 to 512 bytes.")]
DigestOption = Annotated[
    str | None, typer.Option("--if-digest", help="Only over this digest; an empty one: only if absent.")
]

_BLOCK = 1 << 20
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

    async def work() -> None:
        async with opened(workspace, given(trust_owner=trust_owner)) as found:
            entry = await found.get(scope, key)
            if output is not None:
                output.write_bytes(entry.value)
                note(f"wrote {quantity(entry.info.size)} to {output}")
            elif as_json:
                show({**entry.info.model_dump(mode="json"), **_shown_value(entry.value)}, "", as_json=True)
            else:
                sys.stdout.buffer.write(entry.value)
                sys.stdout.buffer.flush()

    run(work, as_json=as_json)


@entries.command()
def put(
    scope: ScopeArgument,
    key: KeyArgument,
    value: Annotated[str | None, typer.Argument(help="The value; without it or --file, stdin.")] = None,
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

    async def work() -> EntryInfo:
        async with opened(workspace, given(trust_owner=trust_owner), create=True) as found:
            data, suffix = _value(found, scope, value, file)
            kind = content_type or (intake.content_type_of(suffix) if suffix else None)
            async with progress(f"writing {quantity(len(data))}"):
                return await found.put(
                    USER,
                    scope,
                    key,
                    data,
                    content_type=kind,
                    ttl_hours=ttl_hours,
                    metadata=_pairs(metadata or []),
                    if_digest=if_digest,
                )

    info = run(work, as_json=as_json)
    show(info, f"stored {_line(info)}", as_json=as_json)


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

    async def work() -> EntryInfo:
        async with opened(workspace, given(trust_owner=trust_owner)) as found:
            return await found.delete(USER, scope, key, if_digest=if_digest)

    info = run(work, as_json=as_json)
    show(info, f"deleted {_line(info)}", as_json=as_json)


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
    show(found, "\n".join(map(_line, found)) or f"no entries in {scope}", as_json=as_json)


@entries.command()
def stats(workspace: WorkspaceOption = None, trust_owner: TrustOption = False, as_json: JsonOption = False) -> None:
    """Show entries, bytes and quota of each scope."""

    async def work() -> None:
        async with opened(workspace, given(trust_owner=trust_owner)) as found:
            data = await found.stats()
        lines = [
            f"{each.scope:<13}{each.entries:>8} entries {quantity(each.bytes):>12} of {quantity(each.quota_bytes)}"
            for each in data.scopes
        ]
        lines.append(f"{data.instructions} instructions; prompt {data.prompt_variant} ({data.prompt_reason})")
        lines += [f"error in {error.file}: {error.problem}" for error in data.instruction_errors]
        show(data, "\n".join(lines), as_json=as_json)

    run(work, as_json=as_json)


@entries.command()
def prune(
    scope: OptionalScope = None,
    workspace: WorkspaceOption = None,
    trust_owner: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Remove expired entries now."""

    async def work() -> None:
        async with opened(workspace, given(trust_owner=trust_owner)) as found, progress("removing expired entries"):
            removed = await found.prune(scope)
        text = f"removed {removed.entries} expired entries ({quantity(removed.bytes)})"
        show(removed, text, as_json=as_json)

    run(work, as_json=as_json)


@entries.command()
def clear(
    scope: ScopeArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    workspace: WorkspaceOption = None,
    trust_owner: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Delete every entry of a scope."""

    async def work() -> None:
        async with opened(workspace, given(trust_owner=trust_owner)) as found:
            _check_sure(scope, yes=yes)
            async with progress(f"clearing {scope}"):
                removed = await found.clear(USER, scope)
        text = f"cleared {scope}: {removed.entries} entries ({quantity(removed.bytes)})"
        show(removed, text, as_json=as_json)

    run(work, as_json=as_json)


@entries.command()
def seed(
    force: Annotated[bool, typer.Option("--force", help="Overwrite what another source wrote, too.")] = False,
    workspace: WorkspaceOption = None,
    instructions: FoldersOption = None,
    trust_owner: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write the instructions and the rendered prompts into the cache."""

    async def work() -> None:
        arguments = given(instructions, trust_owner=trust_owner)
        async with opened(workspace, arguments, create=True) as found, progress("seeding"):
            report = await found.seed(force=force)
        counts = [(name, getattr(report, name)) for name in ("written", "unchanged", "kept", "removed")]
        lines = [f"{name} {len(keys)}" + (": " + ", ".join(keys) if keys else "") for name, keys in counts]
        show(report, "\n".join(lines), as_json=as_json)

    run(work, as_json=as_json)


@entries.command()
def verify(
    scope: OptionalScope = None,
    workspace: WorkspaceOption = None,
    trust_owner: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Read and hash every value; exit with 7 if one is damaged."""

    async def work() -> None:
        async with opened(workspace, given(trust_owner=trust_owner)) as found, progress("verifying"):
            report = await found.verify(scope)
        lines = [f"damaged: {each.scope} {each.key!r}: {each.problem}" for each in report.damaged]
        if not report.usage_matches:
            lines.append("the kept usage differs from the sum of the entries")
        lines.append(f"verified {report.entries} entries ({quantity(report.bytes)}), {len(report.damaged)} damaged")
        show(report, "\n".join(lines), as_json=as_json)
        if report.damaged or not report.usage_matches:
            raise CorruptError(
                f"{len(report.damaged)} of {report.entries} entries are damaged",
                "damaged values are never served",
                "write them again, or delete their keys",
            )

    run(work, as_json=as_json)


def _value(workspace: Workspace, scope: str, value: str | None, file: Path | None) -> tuple[bytes, str]:
    """Return the bytes to store, and the file's suffix if they come from one."""
    if value is not None and file is not None:
        raise InvalidArgumentError("a value and --file", "the value comes from one place", "give only one of them")
    if value is not None and value != "-":
        return intake.encoded(value), ""
    most = workspace.settings.limits(intake.check_scope(scope)).max_value_bytes
    if file is None:
        return _bounded(sys.stdin.buffer.read(most + 1), most), ""
    try:
        with file.open("rb") as reader:
            return _bounded(reader.read(most + 1), most), file.suffix
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
        if "=" not in text:
            raise InvalidArgumentError(f"--metadata {text!r}", "it is NAME=VALUE", "put a = between the two")
    return dict(text.split("=", 1) for text in metadata)


def _check_sure(scope: str, *, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise InvalidArgumentError(
            f"clear {scope} deletes all its entries", "without a terminal to ask on, --yes is needed", "add --yes"
        )
    if not typer.confirm(f"Delete every entry of {scope}?", err=True):
        raise InvalidArgumentError("not confirmed", "nothing was deleted", "answer y, or add --yes")


def _shown_value(value: bytes) -> dict[str, str]:
    try:
        return {"value": value.decode()}
    except UnicodeDecodeError:
        return {"value_base64": base64.b64encode(value).decode("ascii")}


def _line(info: EntryInfo) -> str:
    expires = "never" if info.expires_at is None else utc_text(info.expires_at)
    author = f"{info.provenance.author} via {info.provenance.face}"
    return f"{info.scope} {info.key!r} {quantity(info.size)} {info.content_type} by {author}, expires {expires}"
