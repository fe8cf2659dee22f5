"""The verbs that work on whole scopes: stats, prune, clear, seed."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from iris_kv.cli.output import (
    USER,
    FoldersOption,
    JsonOption,
    OptionalScope,
    PromptOption,
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
from iris_kv.errors import InvalidArgumentError
from iris_kv.instructions import LibraryError
from iris_kv.model import Removed
from iris_kv.seeding import SeedReport
from iris_kv.workspace import Stats

upkeep = typer.Typer()


@upkeep.command()
def stats(workspace: WorkspaceOption = None, trust_owner: TrustOption = False, as_json: JsonOption = False) -> None:
    """Show entries, bytes and quota of each scope."""

    async def work() -> Stats:
        async with opened(workspace, given(trust_owner=trust_owner)) as found:
            return await found.stats()

    data = run(work, as_json=as_json)
    lines = [
        f"{each.scope:<13}{each.entries:>8} entries {quantity(each.bytes):>12} of {quantity(each.quota_bytes)}"
        + (f", and {each.kept} kept versions of {quantity(each.kept_bytes)}" if each.kept else "")
        for each in data.scopes
    ]
    lines.append(f"{data.instructions} instructions; prompt {data.prompt_variant} ({data.prompt_reason})")
    lines += [f"error in {error.file}: {error.problem}" for error in data.instruction_errors]
    show(data, "\n".join(lines), as_json=as_json)


@upkeep.command(short_help="Remove expired entries.")
def prune(
    scope: OptionalScope = None,
    workspace: WorkspaceOption = None,
    trust_owner: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Remove expired entries; those of task and artifacts two minutes after they expired."""

    async def work() -> Removed:
        async with opened(workspace, given(trust_owner=trust_owner)) as found, progress("removing expired entries"):
            return await found.prune(scope)

    removed = run(work, as_json=as_json)
    show(removed, f"removed {removed.entries} expired entries ({quantity(removed.bytes)})", as_json=as_json)


@upkeep.command()
def clear(
    scope: ScopeArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    workspace: WorkspaceOption = None,
    trust_owner: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Delete every entry of a scope."""
    with reported(as_json=as_json):
        at = locate(workspace).root
        allowed(scope, "clear")
        _check_can_ask(scope, yes=yes)
    if not (yes or typer.confirm(f"Delete every entry of {scope} in {at}?", err=True)):
        note("nothing was deleted")
        raise SystemExit(1)

    async def work() -> tuple[Removed, float]:
        async with opened(workspace, given(trust_owner=trust_owner)) as found, progress(f"clearing {scope}"):
            return await found.clear(USER, scope), found.undo_hours(scope)

    removed, hours = run(work, as_json=as_json)
    done = f"cleared {scope}: {removed.entries} entries ({quantity(removed.bytes)})"
    how = undo(hours, f"iris-kv history {scope} lists the keys, iris-kv restore-entry {scope} KEY restores one")
    show(removed, done + how, as_json=as_json)


@upkeep.command(short_help="Write instructions and prompts to the cache.")
def seed(
    force: Annotated[bool, typer.Option("--force", help="Overwrite what another source wrote, too.")] = False,
    workspace: WorkspaceOption = None,
    instructions: FoldersOption = None,
    prompt: PromptOption = None,
    trust_owner: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write the instructions and the rendered prompts into the cache."""

    async def work() -> tuple[SeedReport, tuple[LibraryError, ...]]:
        arguments = given(instructions, prompt, trust_owner=trust_owner)
        async with opened(workspace, arguments, create=True) as found, progress("seeding"):
            return await found.seed(force=force), found.library.errors

    report, errors = run(work, as_json=as_json)
    for error in errors:
        note(f"error in {error.file}: {error.problem}")
    counts = [(name, getattr(report, name)) for name in ("written", "unchanged", "kept", "removed")]
    lines = [f"{name} {len(keys)}" + (": " + ", ".join(keys) if keys else "") for name, keys in counts]
    show(report, "\n".join(lines), as_json=as_json)


def _check_can_ask(scope: str, *, yes: bool) -> None:
    if not yes and not sys.stdin.isatty():
        raise InvalidArgumentError(
            f"clear {scope} deletes all its entries", "without a terminal to ask on, --yes is needed", "add --yes"
        )
