"""One open workspace: the few methods that every face calls."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Final

import anyio
from anyio import to_thread

from iris_kv import intake
from iris_kv.errors import BusyError, IrisError, NotFoundError, UnavailableError
from iris_kv.guidance import Guidance
from iris_kv.instruction_reading import instruction_answer, instruction_list
from iris_kv.instructions import Instruction, LibraryError
from iris_kv.json_text import quoted
from iris_kv.location import Location
from iris_kv.model import (
    SCOPES,
    Activity,
    Clock,
    Entry,
    EntryInfo,
    Face,
    Frozen,
    Limits,
    Page,
    Removed,
    Scope,
    Verification,
)
from iris_kv.policy import Principal, check_access
from iris_kv.prompts import Prompt, Variant
from iris_kv.reading import stored_answer
from iris_kv.seeding import SeedReport, degradation, prompt_key, seed
from iris_kv.settings import HOUR_MS, Settings
from iris_kv.slices import Call, Wanted
from iris_kv.store.files import FileStore
from iris_kv.tokens import TokenCounter

SUMMARY_KEY: Final = "summary"

_INLINE_BYTES: Final = 32_768
_BRIEFLY_S: Final = 1.0
_NEAREST: Final = 5
_KEYS_COMPARED: Final = 2_000
_RECENT_DAYS: Final = 7
_CALLS: Final = "get_instruction:"


class ScopeStats(Frozen):
    """What one scope holds and may hold."""

    scope: Scope
    entries: int
    bytes: int
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


class Workspace(Guidance):
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
        """
        super().__init__(location, settings, clock=clock, counter=counter)
        self._face: Face = face
        self._create = create
        self._problem = problem
        self._store: FileStore | None = None
        self._opening = anyio.Lock()
        self._attempts = 0
        self._unopened: IrisError | None = None
        self._noted: dict[str, int] = {}
        self._work = anyio.Event()
        self._seed_wanted = True

    async def store(self) -> FileStore:
        """Return the open store.

        Raises:
            IrisError: Why it cannot be opened.
        """
        if self._store is None:
            attempts = self._attempts
            async with self._opening:
                if self._store is None and self._unopened is not None and self._attempts > attempts:
                    # Where each opening waits for a lock, those who waited for one do not wait for another.
                    raise self._unopened
                if self._store is None:
                    self._store = await self._tried()
        return self._store

    async def _tried(self) -> FileStore:
        try:
            store = await self._opened()
        except IrisError as error:
            self._unopened = error
            raise
        else:
            self._unopened = None
            return store
        finally:
            self._attempts += 1

    async def _opened(self) -> FileStore:
        if self._problem is not None:
            raise self._problem
        if self.location is None:
            raise UnavailableError(
                "this server has no workspace", "instructions and prompts are served", "name one with --workspace"
            )
        return await FileStore.open(
            self.location.root,
            clock=self.clock,
            face=self._face,
            create=self._create,
            durable=self.settings.durability == "full",
            trust_owner=self.settings.trust_owner,
        )

    async def aclose(self) -> None:
        """Write what is pending and close the store."""
        store, self._store = self._store, None
        if store is not None:
            try:
                await self._flush_counts(store)
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
        self._note(_CALLS + instruction.tag)
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
        degraded = await self._degradation("instructions", instruction.tag, instruction.digest)

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

    async def prompt(self, variant: str | None = None) -> Prompt:
        """Return a rendered system prompt and why it is this one."""
        await self.freshen()
        prompt = self.prompts.select(variant)
        await self._degradation("system", prompt_key(prompt.variant), prompt.digest)
        return prompt

    async def _degradation(self, scope: Scope, key: str, digest: str) -> str | None:
        """Return why the store cannot answer; None: it can. No answer waits long for another process's lock."""
        if self._store is None and isinstance(self._unopened, BusyError):
            # The next opening waits as long again, so it is left to the background and to the store's tools.
            self._work.set()
            return self._unopened.code
        store: FileStore | None = None
        with anyio.move_on_after(_BRIEFLY_S):
            try:
                store = await self.store()
            except IrisError as error:
                return error.code
        return "busy" if store is None else await degradation(store, scope, key, digest)

    async def seed(self, *, force: bool = False) -> SeedReport:
        """Write the library and the prompts into the store; `force` overwrites other sources' too."""
        await self.refresh()
        limits: dict[Scope, Limits] = {scope: self.settings.limits(scope) for scope in SCOPES}
        labels = [source.label for source in self.sources]
        return await seed(await self.store(), self.library, self.prompts, limits, labels, force=force)

    # Entries

    async def put(
        self,
        principal: Principal,
        scope: str,
        key: str,
        value: bytes,
        *,
        content_type: str | None = None,
        ttl_hours: float | None = None,
        metadata: Mapping[str, str] | None = None,
        if_digest: str | None = None,
    ) -> EntryInfo:
        """Write an entry; see `Store.put` for what it raises."""
        checked = intake.check_scope(scope)
        check_access(principal, checked, "write")
        return await (await self.store()).put(
            checked,
            key,
            value,
            content_type=await to_thread.run_sync(intake.typed, value, content_type),
            limits=self.settings.limits(checked),
            provenance=principal.provenance,
            ttl_ms=intake.ttl_ms(ttl_hours),
            metadata=intake.check_metadata(metadata),
            if_digest=intake.check_digest(if_digest),
        )

    async def put_file(
        self,
        principal: Principal,
        scope: str,
        key: str,
        path: str,
        *,
        ttl_hours: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> EntryInfo:
        """Copy a file of the workspace into an entry.

        Raises:
            ForbiddenError: It is outside the workspace, or reached through a link.
        """
        checked = intake.check_scope(scope)
        check_access(principal, checked, "write")
        store = await self.store()
        file = await to_thread.run_sync(intake.WorkspaceFile, self._root(), path)
        try:
            content_type = await file.content_type()
            limits = self.settings.limits(checked)
            if intake.is_json(content_type) and file.size <= limits.max_value_bytes:
                value = b"".join([chunk async for chunk in file.chunks()])
                return await self.put(
                    principal, scope, key, value, content_type=content_type, ttl_hours=ttl_hours, metadata=metadata
                )
            return await store.put(
                checked,
                key,
                file.chunks(),
                content_type=content_type,
                limits=limits,
                provenance=principal.provenance,
                ttl_ms=intake.ttl_ms(ttl_hours),
                metadata=intake.check_metadata(metadata),
            )
        finally:
            file.close()

    def _root(self) -> Path:
        if self.location is None:
            raise UnavailableError("this server has no workspace", "files are read from it", "name one")
        return self.location.root

    async def get(self, scope: str, key: str) -> Entry:
        """Return an entry with its verified value."""
        checked = intake.check_scope(scope)
        return await (await self.store()).get(checked, key)

    async def read(
        self, scope: str, key: str, wanted: Wanted, *, call: Call, uri: str, pointer: str | None = None
    ) -> str:
        """Return a slice of an entry's value between fence lines, within a token budget; see `stored_answer`.

        Raises:
            NotFoundError: No such key, or a pointer that leads nowhere; the text names the nearest ones.
        """
        checked = intake.check_scope(scope)
        store = await self.store()
        async with AsyncExitStack() as stack:
            try:
                reader = await stack.enter_async_context(store.open_value(checked, key))
            except NotFoundError:
                raise await self._unknown_key(store, checked, key) from None
            return await stored_answer(reader, wanted, self.counter, call, uri, pointer=pointer)

    async def _unknown_key(self, store: FileStore, scope: Scope, key: str) -> NotFoundError:
        page = await store.list(scope, limit=_KEYS_COMPARED)
        keys = [info.key for info in page.entries]
        near = difflib.get_close_matches(key, keys, _NEAREST, 0.3) or keys[:_NEAREST]
        named = ", ".join(quoted(each) for each in near) if near else f"none: {scope} is empty"
        return NotFoundError(
            f"no entry {key!r} in {scope}", f"the nearest keys are {named}", "take one of them, or list the keys"
        )

    async def delete(self, principal: Principal, scope: str, key: str, *, if_digest: str | None = None) -> EntryInfo:
        """Delete an entry and return what it was."""
        checked = intake.check_scope(scope)
        check_access(principal, checked, "delete")
        return await (await self.store()).delete(checked, key, if_digest=intake.check_digest(if_digest))

    async def list(
        self,
        scope: str,
        *,
        prefix: str = "",
        cursor: str | None = None,
        limit: int = 100,
        include_expired: bool = False,
    ) -> Page:
        """Return a page of a scope's entries in key order."""
        checked = intake.check_scope(scope)
        store = await self.store()
        return await store.list(checked, prefix=prefix, cursor=cursor, limit=limit, include_expired=include_expired)

    async def latest(self, scope: str, limit: int = 20) -> tuple[EntryInfo, ...]:
        """Return a scope's entries that were written last, newest first."""
        checked = intake.check_scope(scope)
        return await (await self.store()).latest(checked, limit)

    async def stats(self) -> Stats:
        """Return what the workspace holds."""
        await self.freshen()
        store = await self.store()
        return Stats(
            scopes=tuple([await self._scope_stats(store, scope) for scope in SCOPES]),
            instructions=len(self.library.instructions),
            instruction_errors=self.library.errors,
            prompt_variant="compact" if self.prompts.compact else "full",
            prompt_reason=self.prompts.reason,
        )

    async def _scope_stats(self, store: FileStore, scope: Scope) -> ScopeStats:
        usage = await store.usage(scope)
        limits = self.settings.limits(scope)
        return ScopeStats(
            scope=scope,
            entries=usage.entries,
            bytes=usage.bytes,
            quota_bytes=limits.quota_bytes,
            ttl_hours=None if limits.ttl_ms is None else limits.ttl_ms / HOUR_MS,
        )

    async def prune(self, scope: str | None = None) -> Removed:
        """Remove expired entries, of one scope or of all."""
        checked = None if scope is None else intake.check_scope(scope)
        return await (await self.store()).collect(checked)

    async def clear(self, principal: Principal, scope: str) -> Removed:
        """Delete every entry of a scope."""
        checked = intake.check_scope(scope)
        check_access(principal, checked, "clear")
        return await (await self.store()).clear(checked)

    async def verify(self, scope: str | None = None) -> Verification:
        """Read and hash every value, of one scope or of all."""
        checked = None if scope is None else intake.check_scope(scope)
        return await (await self.store()).verify(checked)

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
        since = datetime.fromtimestamp(self.clock.now_ms() / 1000, UTC) - timedelta(days=_RECENT_DAYS)
        counts = await (await self.store()).counts(f"{since:%Y-%m-%d}")
        return {
            name.removeprefix(_CALLS): sum(days.values()) for name, days in counts.items() if name.startswith(_CALLS)
        }

    # Work in the background

    def _note(self, name: str) -> None:
        self._noted[name] = self._noted.get(name, 0) + 1
        self._work.set()

    async def _flush_counts(self, store: FileStore) -> None:
        noted, self._noted = self._noted, {}
        if noted:
            today = datetime.fromtimestamp(self.clock.now_ms() / 1000, UTC)
            await store.count(f"{today:%Y-%m-%d}", noted)

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
        await self._flush_counts(await self.store())

    async def collect_if_due(self) -> None:
        """Remove expired entries and tidy up, if no process did so for ten minutes."""
        store = await self.store()
        if await store.collection_is_due():
            await store.collect()
