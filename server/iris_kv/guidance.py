"""What is served without a store: the instructions and prompts of a workspace, kept fresh."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from anyio import to_thread

from iris_kv.instructions import Instruction, InstructionLibrary, InstructionSource
from iris_kv.location import Location
from iris_kv.model import Clock
from iris_kv.prompts import PromptSelector, SourceParts
from iris_kv.rollout import LiveRollout, rollout_files
from iris_kv.settings import Settings, shipped
from iris_kv.tokens import TokenCounter

REFRESH_MS: Final = 1_000
"""How old a look at the files may be when an answer is made from them."""

_log = logging.getLogger(__name__)


class SystemClock:
    """The machine's wall clock."""

    def now_ms(self) -> int:
        """Return the milliseconds since the epoch."""
        return time.time_ns() // 1_000_000


@dataclass(frozen=True)
class ServedState:
    """The instructions and the prompt source as they were served at a moment."""

    instructions: tuple[Instruction, ...]
    prompt_source: SourceParts

    @property
    def tags(self) -> tuple[tuple[str, str], ...]:
        """Each tag with when to use it: what stands in lists and in the trigger table."""
        return tuple((each.tag, each.description) for each in self.instructions)

    def names_changed_since(self, before: ServedState) -> frozenset[str]:
        """Return the tags and aliases, with underscores, of instructions that are new, changed or gone."""
        changed = set(self.instructions).symmetric_difference(before.instructions)
        names = (name for each in changed for name in (each.tag, *each.aliases))
        return frozenset(name.casefold().replace("-", "_") for name in names)


class Guidance:
    """The library and the prompts of a workspace; `Workspace` adds the store."""

    def __init__(
        self, location: Location | None, settings: Settings, *, clock: Clock | None, counter: TokenCounter | None
    ) -> None:
        """Load the library and the prompts; see `Workspace`."""
        self.location: Final = location
        self.settings: Final = settings
        self.counter: Final = counter or TokenCounter()
        self.sources: Final = instruction_sources(location, settings)
        self.library: Final = InstructionLibrary(self.sources, self.counter)
        source = prompt_source(location, settings)
        label = "" if settings.prompt.source is None else str(source)
        self.rollout: Final = LiveRollout(settings, rollout_files(source))
        self.prompts: Final = PromptSelector(source, self.library, self.rollout, label=label)
        self.clock: Final[Clock] = clock or SystemClock()
        self._refreshed_at = self.clock.now_ms()

    async def refresh(self) -> bool:
        """Read edited files again; tell whether anything served changed. Cheap where nothing did."""
        self._refreshed_at = self.clock.now_ms()
        before = self.library.errors
        library = await to_thread.run_sync(self.library.refresh)
        prompts = await to_thread.run_sync(self.prompts.refresh)
        for error in self.library.errors:
            if error not in before:
                _log.error("instruction file %s: %s", error.file, error.problem)
        return library or prompts

    async def freshen(self) -> None:
        """Look at the files again if the last look is over a second old."""
        if not 0 <= self.clock.now_ms() - self._refreshed_at < REFRESH_MS:
            await self.refresh()

    async def instructions(self) -> tuple[Instruction, ...]:
        """Return the instructions served now."""
        await self.freshen()
        return self.library.instructions

    def served_state(self) -> ServedState:
        """Return what tells whether instructions or prompts changed; cheap where they did not."""
        return ServedState(self.library.instructions, self.prompts.source_parts)


def prompt_source(location: Location | None, settings: Settings) -> Path:
    """Return the file that the prompt is rendered from."""
    named = settings.prompt.source
    if named is None:
        return shipped("prompts") / "system.md"
    return named if location is None else location.root / named


def instruction_sources(location: Location | None, settings: Settings) -> tuple[InstructionSource, ...]:
    """Return where instructions come from, later ones winning: shipped, folders, the workspace's overlay.

    A prompt of one's own usually comes with instructions of its own, so that the shipped ones, which
    speak of the shipped prompt's tools and steps, are served beside it only where that is asked for.
    """
    wanted = settings.instructions.shipped
    sources: list[InstructionSource] = []
    if wanted or (wanted is None and settings.prompt.source is None):
        sources.append(InstructionSource(folder=shipped("instructions"), origin="shipped", label="shipped"))
    for folder in settings.instructions.folders:
        at = folder if location is None else location.root / folder
        sources.append(InstructionSource(folder=at, origin="folder", label=str(folder)))
    if location is not None:
        overlay = location.root / ".iris" / "instructions"
        sources.append(InstructionSource(folder=overlay, origin="workspace", label=".iris/instructions"))
    return tuple(sources)
