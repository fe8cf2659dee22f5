"""One open workspace: the few methods that every face calls."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Final

import anyio
from anyio import to_thread

from iris_kv import intake
from iris_kv.entries import Entries
from iris_kv.errors import Code, IrisError
from iris_kv.instruction_reading import instruction_answer, instruction_list
from iris_kv.instructions import Instruction, LibraryError
from iris_kv.location import Location
from iris_kv.model import (
    SCOPES,
    Activity,
    Clock,
    Face,
    Frozen,
    Scope,
    Watch,
)
from iris_kv.opening import BRIEFLY_S
from iris_kv.prompts import Prompt
from iris_kv.rollout import Choice, Subject, Variant, check_variant
from iris_kv.seeding import SeedReport, degradation, prompt_key, seed
from iris_kv.settings import HOUR_MS, Settings
from iris_kv.store.files import FileStore
from iris_kv.tally import Exposures, Tally
from iris_kv.tokens import TokenCounter

SUMMARY_KEY: Final = "summary"

_INLINE_BYTES: Final = 32_768


class ScopeStats(Frozen):
    """What one scope holds and may hold."""

    scope: Scope
    entries: int
    bytes: int
    kept: int
    """How many replaced and deleted versions are kept; they count in the quota, too, and make room first."""
    kept_bytes: int
    quota_bytes: int
    ttl_hours: float | None
    """The default TTL; None: never expires."""


class Stats(Frozen):
    """What a workspace holds."""

    scopes: tuple[ScopeStats, ...]
    instructions: int
    instruction_errors: tuple[LibraryError, ...]
    prompt_variant: Variant
    prompt_reason: str


class ScopeActivity(Frozen):
    """When a scope was last written and last read; None: never."""

    scope: Scope
    written: Activity | None
    read: Activity | None


class Workspace(Entries):
    """A workspace with its settings, instructions, prompts and store.

    Instructions and prompts are always served. The store is opened at its first use; where that
    fails, every store method raises why, and tries again the next time.
    """

    def __init__(
        self,
        location: Location | None,
        settings: Settings,
        *,
        face: Face,
        clock: Clock | None = None,
        counter: TokenCounter | None = None,
        create: bool = True,
        problem: IrisError | None = None,
        watch: Watch | None = None,
    ) -> None:
        """Load the library and the prompts; nothing is written.

        Args:
            location: The workspace's folder; None serves instructions and prompts alone.
            settings: See `load_settings`.
            face: Through which face this process reads and writes, for the record.
            clock: Where the time comes from; None: the machine's.
            counter: What counts tokens; None: the tokenizer where it is installed.
            create: Create the cache where there is none.
            problem: Why the store must not be used, such as a broken configuration.
            watch: Is told what happens here; None: nobody is.
        """
        super().__init__(
            location, settings, face=face, clock=clock, counter=counter, create=create, problem=problem, watch=watch
        )
        self._tally = Tally(self.clock)
        self._work = anyio.Event()
        self._seed_wanted = True

    async def aclose(self) -> None:
        """Write what is pending and close the store."""
        store = self._opening.let_go()
        if store is not None:
            try:
                await self._tally.write(store)
            finally:
                await store.aclose()

    # Instructions and prompts

    async def refresh(self) -> bool:
        """See `Guidance.refresh`; what changed is seeded in the background."""
        changed = await super().refresh()
        if changed:
            self._seed_wanted = True
            self._work.set()
        return changed

    async def used_instruction(self, tag: str) -> Instruction:
        """Return an instruction and count its use.

        Raises:
            NotFoundError: No such tag; the text lists those there are.
        """
        await self.freshen()
        instruction = self.library.get(tag)
        self._tally.note_instruction(instruction.tag)
        self._work.set()
        return instruction

    async def get_instruction(
        self,
        tag: str,
        *,
        section_name: str | None = None,
        offset: int = 0,
        known_digest: str | None = None,
        max_tokens: int | None = None,
    ) -> str:
        """Return an instruction or one of its sections behind a header line.

        Raises:
            NotFoundError: No such tag or section; the text lists those there are.
            ConflictError: An `offset` above 0, and the instruction is not the one of `known_digest`.
        """
        instruction = await self.used_instruction(tag)
        wanted = intake.wanted(offset, max_tokens, known_digest)
        degraded = await self._degradation(await self._at_hand(), "instructions", instruction.tag, instruction.digest)

        def answer() -> str:
            return instruction_answer(instruction, section_name, wanted, self.counter, degraded=degraded)

        # A megabyte of Markdown takes seconds to take apart; the second answer from a usual file takes 0.3 ms.
        if instruction.is_taken_apart and len(instruction.body) <= _INLINE_BYTES:
            return answer()
        return await to_thread.run_sync(answer)

    async def list_instructions(self, query: str | None = None) -> str:
        """Return each instruction's tag, tokens and when to use it, one a line, and what is wrong with files."""
        await self.freshen()
        return await to_thread.run_sync(partial(instruction_list, self.library, query, self.counter))

    async def prompt(self, variant: str | None = None, *, subject: str | None = None) -> Prompt:
        """Return the system prompt that a fetch gets, and count the exposure.

        Args:
            variant: `compact` or `full`; None: as the rollout decides.
            subject: Who fetches; None, or where `prompt.subject` is set: see `Workspace.subject`.

        Raises:
            InvalidArgumentError: There is no such variant.
        """
        await self.freshen()
        found = await self._at_hand()
        who = await self._subject(subject, found)
        prompt = await to_thread.run_sync(self.prompts.select, variant, who.name)
        await self._degradation(found, "system", prompt_key(prompt.variant), prompt.digest)
        self._tally.note_exposure(prompt, who.name)
        self._watch.prompted(prompt.variant)
        self._work.set()
        return prompt

    async def preview(self, variant: str | None = None, *, subject: str | None = None) -> Prompt:
        """Return what `prompt` would return now, and count nothing."""
        await self.freshen()
        who = await self.subject(subject)
        return await to_thread.run_sync(self.prompts.select, variant, who.name)

    async def choice(self, subject: str | None = None) -> Choice:
        """Return which variant a fetch that asks for none gets now, and why."""
        who = await self.subject(subject)
        return await to_thread.run_sync(self.prompts.choose, None, who.name)

    async def rendering(self, variant: str) -> bytes:
        """Return a variant of the system prompt, whatever the rollout says.

        Raises:
            InvalidArgumentError: There is no such variant.
        """
        await self.freshen()
        return (await to_thread.run_sync(self.prompts.render, check_variant(variant))).encode()

    async def subject(self, argument: str | None = None) -> Subject:
        """Return for whom the rollout decides: as configured, else the argument, else the workspace's id."""
        return await self._subject(argument, await self._at_hand())

    async def _subject(self, argument: str | None, found: FileStore | Code) -> Subject:
        if self.settings.prompt.subject is not None:
            return Subject("configured", self.settings.prompt.subject)
        if argument is not None:
            return Subject("argument", argument)
        with suppress(IrisError):
            if isinstance(found, FileStore):
                return Subject("workspace", await found.workspace_id())
        return Subject("unknown", None)

    async def _at_hand(self) -> FileStore | Code:
        found = await self._opening.at_hand()
        if found == "busy":
            # The background opens the store once the other process lets go of its lock.
            self._work.set()
        return found

    async def _degradation(self, found: FileStore | Code, scope: Scope, key: str, digest: str) -> str | None:
        """Return why the store cannot answer; None: it can."""
        if not isinstance(found, FileStore):
            return found
        with anyio.move_on_after(BRIEFLY_S):
            return await degradation(found, scope, key, digest)
        return "busy"

    async def seed(self, *, force: bool = False) -> SeedReport:
        """Write the library and the prompts into the store; `force` overwrites other sources' too."""
        await self.refresh()
        labels = [source.label for source in self.sources]
        return await seed(await self.store(), self.library, self.prompts, self._limits, labels, force=force)

    async def stats(self) -> Stats:
        """Return what the workspace holds."""
        await self.freshen()
        store = await self.store()
        choice = await self.choice()
        return Stats(
            scopes=tuple([await self._scope_stats(store, scope) for scope in SCOPES]),
            instructions=len(self.library.instructions),
            instruction_errors=self.library.errors,
            prompt_variant=choice.variant,
            prompt_reason=choice.shown,
        )

    async def _scope_stats(self, store: FileStore, scope: Scope) -> ScopeStats:
        usage = await store.usage(scope)
        limits = self._limits[scope]
        return ScopeStats(
            scope=scope,
            entries=usage.entries,
            bytes=usage.bytes,
            kept=usage.kept,
            kept_bytes=usage.kept_bytes,
            quota_bytes=limits.quota_bytes,
            ttl_hours=None if limits.ttl_ms is None else limits.ttl_ms / HOUR_MS,
        )

    # What happened

    async def activity(self) -> tuple[ScopeActivity, ...]:
        """Return when each scope was last written and last read."""
        store = await self.store()
        found: list[ScopeActivity] = []
        for scope in SCOPES:
            written, read = await store.activity(scope)
            found.append(ScopeActivity(scope=scope, written=written, read=read))
        return tuple(found)

    async def instruction_calls(self) -> dict[str, int]:
        """Return how often each instruction was fetched in the last seven days, by any process."""
        return await self._tally.instruction_calls(await self.store())

    async def exposures(self, days: int) -> tuple[Exposures, ...]:
        """Return the exposures of the last days, today included, by any process, the newest first."""
        return await self._tally.exposures(await self.store(), days)

    # Work in the background

    def next_work(self) -> anyio.Event:
        """Return an event that is set once `catch_up` has something to do that comes from now on."""
        self._work = anyio.Event()
        return self._work

    async def catch_up(self) -> None:
        """Seed if a source changed since the last time, and write down what was counted."""
        if self._seed_wanted:
            # Cleared first: files that change meanwhile ask for another round.
            self._seed_wanted = False
            try:
                await self.seed()
            except BaseException:
                self._seed_wanted = True
                raise
        await self._tally.write(await self.store())

    async def collect_if_due(self) -> None:
        """Remove expired entries and tidy up, if no process did so for ten minutes."""
        store = await self.store()
        if await store.collection_is_due():
            await store.collect()
