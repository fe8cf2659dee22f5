"""The verbs that check a store, mend it, and keep a copy of it: verify, repair, backup, restore."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from iris_kv.cli.output import (
    JsonOption,
    OptionalScope,
    TrustOption,
    WorkspaceOption,
    given,
    opened,
    progress,
    quantity,
    reported,
    run,
    show,
)
from iris_kv.errors import CorruptError
from iris_kv.model import Archived, Repair, Verification

safety = typer.Typer()


class Checked(Verification):
    """What `verify` found, and what it did."""

    repair: Repair | None
    """None: it was not asked for, or nothing was wrong."""


@safety.command(short_help="Read and hash every value.")
def verify(
    scope: OptionalScope = None,
    repair: Annotated[bool, typer.Option("--repair", help="Mend the index if anything is wrong.")] = False,
    workspace: WorkspaceOption = None,
    trust_owner: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Read and hash every value; exit with 7 if one is damaged."""

    async def work() -> Checked:
        async with opened(workspace, given(trust_owner=trust_owner)) as found, progress("verifying"):
            mended = await found.repair() if repair else None
            return Checked(**dict(await found.verify(scope)), repair=mended)

    report = run(work, as_json=as_json)
    lines = [] if report.repair is None else list(_repair_lines(report.repair))
    lines += [f"damaged: {each.scope} {each.key!r}: {each.problem}" for each in report.damaged]
    if not report.usage_matches:
        lines.append("the kept usage differs from the sum of the entries")
    kept = f" and {report.kept} kept versions" if report.kept else ""
    lines.append(f"verified {report.entries} entries ({quantity(report.bytes)}){kept}, {len(report.damaged)} damaged")
    show(report, "\n".join(lines), as_json=as_json)
    with reported(as_json=as_json):
        _check_sound(report)


@safety.command(short_help="Make a lost or damaged index anew.")
def repair(workspace: WorkspaceOption = None, trust_owner: TrustOption = False, as_json: JsonOption = False) -> None:
    """Look at the whole index, and make it anew if anything is wrong with it; nothing is deleted."""

    async def work() -> Repair:
        async with opened(workspace, given(trust_owner=trust_owner)) as found, progress("repairing"):
            return await found.repair()

    report = run(work, as_json=as_json)
    show(report, "\n".join(_repair_lines(report)), as_json=as_json)


@safety.command(short_help="Write all entries into an archive.")
def backup(
    file: Annotated[Path, typer.Argument(help="The archive, a tar; one of that name is replaced.")],
    workspace: WorkspaceOption = None,
    trust_owner: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write all entries as they are at one moment into an archive, while servers run."""

    async def work() -> Archived:
        async with opened(workspace, given(trust_owner=trust_owner)) as found, progress("backing up"):
            return await found.back_up(file)

    report = run(work, as_json=as_json)
    lines = [f"not in it, as damaged before: {each.scope} {each.key!r}" for each in report.damaged]
    lines.append(f"backed up {report.entries} entries ({quantity(report.bytes)})")
    show(report, "\n".join(lines), as_json=as_json)
    with reported(as_json=as_json):
        _check_complete(report)


@safety.command(short_help="Replace all entries by those of an archive.")
def restore(
    file: Annotated[Path, typer.Argument(help="An archive of backup.")],
    workspace: WorkspaceOption = None,
    trust_owner: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Replace all entries by those of an archive, at once or not at all, while servers run.

    What was there is kept as older versions.
    """

    async def work() -> Archived:
        arguments = given(trust_owner=trust_owner)
        async with opened(workspace, arguments, create=True) as found, progress("restoring"):
            return await found.restore(file)

    report = run(work, as_json=as_json)
    show(report, f"restored {report.entries} entries ({quantity(report.bytes)})", as_json=as_json)


def _check_complete(report: Archived) -> None:
    if report.damaged:
        raise CorruptError(
            f"{len(report.damaged)} damaged entries are not in the archive",
            "all others are, and were verified",
            "write them again, or delete their keys",
        )


def _repair_lines(report: Repair) -> Iterator[str]:
    rebuilt = report.rebuilt
    if rebuilt is None:
        yield "the index is sound"
        return
    yield f"the index was made anew, as {report.problem}"
    yield f"{rebuilt.entries} entries, {rebuilt.versions} older or deleted versions"
    if rebuilt.recovered:
        yield f"{rebuilt.recovered} values of unknown keys are kept as deleted versions of recovered/..."
    if rebuilt.quarantined:
        yield f"{rebuilt.quarantined} files that are no whole value are in .iris/kv-cache/.store/quarantine"
    yield from (f"damaged: {each.scope} {each.key!r}: {each.problem}" for each in rebuilt.damaged)


def _check_sound(report: Verification) -> None:
    if report.damaged:
        raise CorruptError(
            f"{len(report.damaged)} of {report.entries} entries are damaged",
            "damaged values are never served",
            "write them again, or delete their keys",
        )
    if not report.usage_matches:
        raise CorruptError(
            "the kept usage differs from the sum of the entries",
            "every value is whole; quotas are checked against a wrong sum",
            "run `iris-kv verify --repair`",
        )
