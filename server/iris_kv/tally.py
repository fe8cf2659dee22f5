"""Counts what is fetched, by day, for every process of a workspace: instructions, and exposures to a prompt.

An exposure is one fetch of the system prompt. Its counter's name holds variant, reason, the digest
of the text and a hash of the subject; the subject itself is not stored.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

import anyio

from iris_kv.errors import BusyError, UnavailableError
from iris_kv.model import DAY_MS, SHORT_DIGEST_CHARS, Clock, Frozen, day_of
from iris_kv.prompts import Prompt
from iris_kv.rollout import REASONS, VARIANTS, Reason, Variant, subject_hash
from iris_kv.store.base import Store

_CALLS: Final = "get_instruction:"
_RECENT_DAYS: Final = 7
_NOBODY: Final = "-"
"""Stands for the subject where none was known."""
_MAX_NOTED: Final = 10_000
"""How many names wait for a store that cannot take them; then subjects are not told apart any more."""


class Exposures(Frozen):
    """How often one variant was fetched on one day for one reason."""

    day: str
    """In UTC, such as `2026-01-31`."""
    variant: Variant
    reason: Reason
    times: int
    subjects: int
    """How many different subjects fetched it; those that were not known count as one."""
    prompts: tuple[str, ...]
    """The digests of the texts, `sha256:` and 16 hex digits each."""


class _Sum:
    def __init__(self) -> None:
        self._times = 0
        self._prompts: set[str] = set()
        self._subjects: set[str] = set()

    def add(self, times: int, digest: str, who: str) -> None:
        self._times += times
        self._prompts.add("sha256:" + digest)
        self._subjects.add(who)

    def exposures(self, day: str, variant: Variant, reason: Reason) -> Exposures:
        return Exposures(
            day=day,
            variant=variant,
            reason=reason,
            times=self._times,
            subjects=len(self._subjects),
            prompts=tuple(sorted(self._prompts)),
        )


class Tally:
    """What was fetched and is not written down yet."""

    def __init__(self, clock: Clock) -> None:
        """Count for days as the clock says."""
        self._clock = clock
        self._noted: dict[str, Counter[str]] = {}

    def note_instruction(self, tag: str) -> None:
        """Count a fetch of an instruction."""
        self._note(_CALLS + tag)

    def note_exposure(self, prompt: Prompt, subject: str | None) -> None:
        """Count a fetch of the system prompt."""
        digest = prompt.digest[:SHORT_DIGEST_CHARS].removeprefix("sha256:")
        name = f"exposure:{prompt.variant}:{prompt.reason}:{digest}:"
        full = sum(map(len, self._noted.values())) >= _MAX_NOTED
        self._note(name + (_NOBODY if subject is None or full else subject_hash(subject)))

    def _note(self, name: str) -> None:
        self._noted.setdefault(day_of(self._clock.now_ms()), Counter())[name] += 1

    async def write(self, store: Store) -> None:
        """Add what was counted to the store's counters; what it cannot take now is kept for the next time."""
        noted, self._noted = self._noted, {}
        while noted:
            day, names = noted.popitem()
            try:
                # A write that was begun is finished: whether it was counted could not be told any more.
                with anyio.CancelScope(shield=True):
                    await store.count(day, names)
            except (BusyError, UnavailableError):
                for again, counted in ((day, names), *noted.items()):
                    self._noted.setdefault(again, Counter()).update(counted)
                raise

    async def instruction_calls(self, store: Store) -> dict[str, int]:
        """Return how often each instruction was fetched in the last seven days."""
        counts = await store.counts(self._first_of(_RECENT_DAYS + 1))
        return {
            name.removeprefix(_CALLS): sum(days.values()) for name, days in counts.items() if name.startswith(_CALLS)
        }

    async def exposures(self, store: Store, days: int) -> tuple[Exposures, ...]:
        """Return the exposures of the last days, today included, the newest first."""
        found: dict[tuple[str, Variant, Reason], _Sum] = {}
        for name, counts in (await store.counts(self._first_of(days))).items():
            match name.split(":"):
                case ["exposure", variant, reason, digest, who] if variant in VARIANTS and reason in REASONS:
                    for day, times in counts.items():
                        found.setdefault((day, variant, reason), _Sum()).add(times, digest, who)
                case _:
                    pass
        return tuple(found[key].exposures(*key) for key in sorted(found, reverse=True))

    def _first_of(self, days: int) -> str:
        return day_of(self._clock.now_ms() - (days - 1) * DAY_MS)
