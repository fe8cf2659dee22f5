"""The verb rollout status: who gets which prompt, why, and what was fetched."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

import typer
from anyio import to_thread

from iris_kv.cli.output import JsonOption, PromptOption, SubjectOption, WorkspaceOption, given, opened, run, show
from iris_kv.errors import IrisError, NotFoundError
from iris_kv.model import Frozen
from iris_kv.rollout import BUCKETS, Phase, Reason, Variant, bucket
from iris_kv.store.base import COUNTER_DAYS
from iris_kv.tally import Exposures
from iris_kv.workspace import Workspace

rollout = typer.Typer(no_args_is_help=True, help="Show how the compact prompt is rolled out.")


class RolloutStatus(Frozen):
    """What `rollout status` tells."""

    phase: Phase
    percent: float
    allowed: int
    """How many subjects are on the allow list."""
    kill: bool
    flag: bool
    origins: dict[str, str]
    """Which layer or file said each of these."""
    subject: str | None
    subject_source: Literal["configured", "argument", "workspace", "unknown"]
    bucket: float | None
    """From 0 up to 100: a higher percentage than this reaches the subject. None: it is unknown."""
    variant: Variant
    """What the subject gets now."""
    reason: Reason
    days: int
    exposures: tuple[Exposures, ...]
    """Of the last `days`, today included, the newest first."""
    errors: tuple[str, ...]


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
            return await _status(found, subject, days)

    found = run(work, as_json=as_json)
    show(found, "\n".join(_lines(found)), as_json=as_json)


async def _status(found: Workspace, argument: str | None, days: int) -> RolloutStatus:
    who = await found.subject(argument)
    choice = await found.choice(argument)
    now = await to_thread.run_sync(found.rollout.read)
    flag, flag_origin = found.rollout.flag
    errors = list(found.prompts.errors)
    exposures: tuple[Exposures, ...] = ()
    try:
        exposures = await found.exposures(days)
    except NotFoundError:
        pass  # there is no cache yet
    except IrisError as error:
        errors.append(f"what was fetched cannot be read: {error}")
    keys = ("phase", "percent", "allow", "kill")
    return RolloutStatus(
        phase=now.phase,
        percent=now.percent,
        allowed=len(now.allow),
        kill=now.kill,
        flag=flag,
        origins={**{key: now.origin(key) for key in keys}, "flag": flag_origin},
        subject=who.name,
        subject_source=who.source,
        bucket=None if who.name is None else bucket(who.name) * 100 / BUCKETS,
        variant=choice.variant,
        reason=choice.reason,
        days=days,
        exposures=exposures,
        errors=tuple(errors),
    )


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
