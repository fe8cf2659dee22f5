"""The tools on kept versions: what an entry was, what was deleted, and bringing one back."""

from __future__ import annotations

from typing import Final

from iris_kv.json_text import quoted
from iris_kv.model import EntryInfo, KeptVersion, short_digest, utc_text
from iris_kv.slices import bounded_lines
from iris_kv.surfaces import arguments as args
from iris_kv.workspace import Workspace

_DELETED: Final = 50


async def history(workspace: Workspace, a: args.CacheHistory) -> str:
    """Return an entry's versions, the newest first, or without a key what was deleted."""
    if a.key is None:
        return await _deleted(workspace, a)
    found = await workspace.history(a.scope, a.key)
    lines = [f"{quoted(a.key)} in {a.scope}, newest first:"]
    lines += [] if found.live is None else [f"{_line(found.live)}, live"]
    lines += [_line(each) for each in found.kept]
    return bounded_lines(lines, workspace.counter, "they are older")


async def _deleted(workspace: Workspace, a: args.CacheHistory) -> str:
    page = await workspace.deleted(a.scope, limit=_DELETED)
    lines = [f"{quoted(each.key)} {_line(each)}" for each in page.entries]
    if page.next_cursor is not None:
        lines.append("more are deleted, behind these keys; they show once these are restored")
    return bounded_lines(lines, workspace.counter, "they show once these are restored") or (
        f"nothing that was deleted from {a.scope} is kept"
    )


def undo(workspace: Workspace, scope: str, what: str) -> str:
    """Return how a deletion is undone, to stand behind its answer; nothing where it cannot be."""
    hours = workspace.undo_hours(scope)
    return f"; for {hours:g} hours {what}" if hours else ""


def _line(info: EntryInfo) -> str:
    by = f"{info.provenance.author} via {info.provenance.face}"
    facts = f"{info.size} bytes {info.content_type} digest={short_digest(info.digest)}"
    line = f"version {info.version}: {facts} written {utc_text(info.updated_at)} by {by}"
    if not isinstance(info, KeptVersion):
        return line
    how = "replaced" if info.replaced_by == "update" else "deleted"
    until = "" if info.kept_until is None else f", kept until {utc_text(info.kept_until)}"
    return f"{line}, {how} {utc_text(info.replaced_at)}{until}"
