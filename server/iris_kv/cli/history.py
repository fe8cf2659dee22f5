"""The verbs on kept versions: history, restore-entry."""

from __future__ import annotations

from typing import Annotated

import typer

from iris_kv.cli.entries import DigestOption, KeyArgument, line
from iris_kv.cli.output import (
    USER,
    JsonOption,
    ScopeArgument,
    TrustOption,
    WorkspaceOption,
    given,
    opened,
    progress,
    run,
    show,
)
from iris_kv.model import EntryInfo, History, KeptVersion, utc_text

history_app = typer.Typer()

_PAGE = 500


@history_app.command(short_help="Show kept versions, or what was deleted.")
def history(
    scope: ScopeArgument,
    key: Annotated[str | None, typer.Argument(help="The key; without it, the deleted entries of the scope.")] = None,
    workspace: WorkspaceOption = None,
    trust_owner: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show the kept versions of an entry, newest first; without a key, the deleted entries of a scope."""
    if key is None:
        _show_deleted(scope, workspace, trust_owner=trust_owner, as_json=as_json)
        return

    async def work() -> History:
        async with opened(workspace, given(trust_owner=trust_owner)) as found:
            return await found.history(scope, key)

    found = run(work, as_json=as_json)
    live = [] if found.live is None else [f"version {found.live.version}, live: {line(found.live)}"]
    show(found, "\n".join([*live, *map(_kept_line, found.kept)]), as_json=as_json)


def _show_deleted(scope: str, workspace: str | None, *, trust_owner: bool, as_json: bool) -> None:
    async def work() -> list[KeptVersion]:
        found: list[KeptVersion] = []
        async with opened(workspace, given(trust_owner=trust_owner)) as open_one:
            cursor: str | None = None
            while True:
                page = await open_one.deleted(scope, cursor=cursor, limit=_PAGE)
                found += page.entries
                cursor = page.next_cursor
                if cursor is None:
                    return found

    found = run(work, as_json=as_json)
    nothing = f"nothing that was deleted from {scope} is kept"
    show(found, "\n".join(map(_kept_line, found)) or nothing, as_json=as_json)


@history_app.command(name="restore-entry", short_help="Make a kept version the entry again.")
def restore_entry(
    scope: ScopeArgument,
    key: KeyArgument,
    version: Annotated[int | None, typer.Option(help="Which one, as `history` tells; without it, the newest.")] = None,
    if_digest: DigestOption = None,
    workspace: WorkspaceOption = None,
    trust_owner: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make a kept version the entry again, which undoes a put, a delete or a clear; what it replaces is kept."""

    async def work() -> EntryInfo:
        async with opened(workspace, given(trust_owner=trust_owner)) as found, progress("restoring"):
            return await found.restore_entry(USER, scope, key, version, if_digest=if_digest)

    info = run(work, as_json=as_json)
    show(info, f"restored {line(info)}", as_json=as_json)


def _kept_line(kept: KeptVersion) -> str:
    how = "replaced" if kept.replaced_by == "update" else "deleted"
    until = "" if kept.kept_until is None else f", kept until {utc_text(kept.kept_until)}"
    return f"version {kept.version}, {how} {utc_text(kept.replaced_at)}{until}: {line(kept)}"
