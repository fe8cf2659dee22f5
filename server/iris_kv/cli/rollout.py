"""The verb rollout status: who gets which prompt, why, and what was fetched."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import typer

from iris_kv.cli.output import JsonOption, PromptOption, SubjectOption, WorkspaceOption, given, opened, run, show
from iris_kv.rollout_status import RolloutStatus, rollout_status
from iris_kv.store.base import COUNTER_DAYS

rollout = typer.Typer(no_args_is_help=True, help="Show how the compact prompt is rolled out.")


@rollout.callback()
def _group() -> None:
    """Keep `status` a verb of its own; a group of one would take its place."""


@rollout.command(short_help="Say who gets which prompt, why, and what was fetched.")
def status(
    days: Annotated[int, typer.Option(min=1, max=COUNTER_DAYS, help="Of how many days exposures are shown.")] = 7,
    subject: SubjectOption = None,
    workspace: WorkspaceOption = None,
    prompt: PromptOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say how the compact prompt is rolled out, what this workspace gets and why, and what was fetched."""

    async def work() -> RolloutStatus:
        async with opened(workspace, given(prompt=prompt)) as found:
            return await rollout_status(found, subject, days)

    found = run(work, as_json=as_json)
    show(found, "\n".join(_lines(found)), as_json=as_json)


def _lines(found: RolloutStatus) -> Iterator[str]:
    said_by = found.origins
    yield f"phase: {found.phase} (from {said_by['phase']})"
    yield f"percent: {found.percent:g} (from {said_by['percent']})"
    yield f"allow list: {found.allowed} subjects (from {said_by['allow']})"
    yield f"kill switch: {_on(found.kill)} (from {said_by['kill']})"
    yield f"flag: {_on(found.flag)} (from {said_by['flag']})"
    where = "" if found.bucket is None else f", bucket {found.bucket:.4f}"
    yield f"subject: {found.subject or 'unknown'} ({found.subject_source}){where}"
    yield f"it gets: {found.variant} (chosen by: {found.reason})"
    yield f"fetched in the last {found.days} days:{'' if found.exposures else ' nothing'}"
    for each in found.exposures:
        subjects = f"{each.subjects} subject{'' if each.subjects == 1 else 's'}"
        times = f"{each.times} time{'' if each.times == 1 else 's'}"
        yield f"{each.day}  {each.variant:<8} {each.reason:<14} {times} for {subjects}: {', '.join(each.prompts)}"
    yield from (f"error: {error}" for error in found.errors)


def _on(is_on: bool) -> str:
    return "on" if is_on else "off"
