"""How the compact prompt is rolled out in a workspace: who gets what, why, and what was fetched."""

from __future__ import annotations

from typing import Literal

from anyio import to_thread

from iris_kv.errors import IrisError, NotFoundError
from iris_kv.model import Frozen
from iris_kv.rollout import BUCKETS, Phase, Reason, Variant, bucket
from iris_kv.tally import Exposures
from iris_kv.workspace import Workspace


class RolloutStatus(Frozen):
    """How the compact prompt is rolled out, and what one subject gets of it."""

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


async def rollout_status(found: Workspace, argument: str | None, days: int) -> RolloutStatus:
    """Return what a subject gets (None: as a fetch that names none), and the exposures of the last days."""
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
