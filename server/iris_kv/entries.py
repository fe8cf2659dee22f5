"""The entries of a workspace: what every face reads and writes, checked on its way in."""

from __future__ import annotations

import difflib
from collections.abc import AsyncGenerator, AsyncIterable, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

from anyio import CapacityLimiter, to_thread

from iris_kv import intake
from iris_kv.errors import IrisError, NotFoundError, UnavailableError
from iris_kv.guidance import Guidance
from iris_kv.json_text import quoted
from iris_kv.location import Location
from iris_kv.model import (
    SCOPES,
    Archived,
    Clock,
    Entry,
    EntryInfo,
    Face,
    History,
    KeptPage,
    Limits,
    Page,
    Removed,
    Repair,
    Scope,
    Unwatched,
    Verification,
    Watch,
)
from iris_kv.opening import Opening
from iris_kv.policy import Principal, check_access
from iris_kv.reading import stored_answer
from iris_kv.settings import HOUR_MS, Settings
from iris_kv.slices import Call, Wanted
from iris_kv.store.base import Reader
from iris_kv.store.checks import check_size
from iris_kv.store.files import FileStore
from iris_kv.tokens import TokenCounter

_INLINE_BYTES: Final = 16_384
_NEAREST: Final = 5
_KEYS_COMPARED: Final = 2_000


class Entries(Guidance):
    """The store of a workspace, opened at its first use; `Workspace` adds what is counted and seeded."""

    def __init__(
        self,
        location: Location | None,
        settings: Settings,
        *,
        face: Face,
        clock: Clock | None,
        counter: TokenCounter | None,
        create: bool,
        problem: IrisError | None,
        watch: Watch | None,
    ) -> None:
        """Prepare; see `Workspace` for the arguments."""
        super().__init__(location, settings, clock=clock, counter=counter)
        self._watch = watch or Unwatched()
        self._opening = Opening(
            location, settings, self.clock, face=face, create=create, problem=problem, watch=self._watch
        )
        self._one_parser = CapacityLimiter(1)
        self._limits: Mapping[Scope, Limits] = {scope: settings.limits(scope) for scope in SCOPES}

    async def store(self) -> FileStore:
        """Return the open store.

        Raises:
            IrisError: Why it cannot be opened.
        """
        return await self._opening.store()

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
            content_type=await self._typed(value, content_type),
            limits=self._limits[checked],
            provenance=principal.provenance,
            ttl_ms=intake.ttl_ms(ttl_hours),
            metadata=intake.check_metadata(metadata),
            if_digest=intake.check_digest(if_digest),
        )

    async def _typed(self, value: bytes, content_type: str | None) -> str:
        if len(value) <= _INLINE_BYTES:
            return intake.typed(value, content_type)
        return await to_thread.run_sync(intake.typed, value, content_type)

    async def put_chunks(
        self,
        principal: Principal,
        scope: str,
        key: str,
        chunks: AsyncIterable[bytes],
        *,
        content_type: str,
        size: int | None,
        ttl_hours: float | None = None,
        metadata: Mapping[str, str] | None = None,
        if_digest: str | None = None,
    ) -> EntryInfo:
        """Write an entry of which never more than a chunk is in memory, but JSON while it is checked.

        Args:
            principal: On whose behalf.
            scope: The entry's scope.
            key: The entry's key.
            chunks: The value; nothing is written if they end with an exception.
            content_type: The value's media type.
            size: How many bytes will come, as far as that is known; too many are refused before they are read.
            ttl_hours: Hours to live; None takes the scope's default.
            metadata: Strings kept with the entry.
            if_digest: See `Store.put`, also for what is raised.
        """
        checked = intake.check_scope(scope)
        check_access(principal, checked, "write")
        limits = self._limits[checked]
        check_size(size or 0, limits)
        declared = intake.media_type(content_type)
        write = partial(
            (await self.store()).put,
            checked,
            key,
            content_type=declared,
            limits=limits,
            provenance=principal.provenance,
            ttl_ms=intake.ttl_ms(ttl_hours),
            metadata=intake.check_metadata(metadata),
            if_digest=intake.check_digest(if_digest),
        )
        if not intake.is_json(declared):
            return await write(chunks)
        async with aclosing(intake.json_checked(chunks, declared, self._one_parser)) as parsed:
            return await write(parsed)

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
        intake.check_metadata(metadata)
        check_access(principal, intake.check_scope(scope), "write")
        file = await to_thread.run_sync(intake.WorkspaceFile, self._root(), path)
        try:
            return await self.put_chunks(
                principal,
                scope,
                key,
                file.chunks(),
                content_type=await file.content_type(),
                size=file.size,
                ttl_hours=ttl_hours,
                metadata=metadata,
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

    async def head(self, scope: str, key: str) -> EntryInfo:
        """Return what is known of an entry; this is no read that would renew it."""
        checked = intake.check_scope(scope)
        return await (await self.store()).head(checked, key)

    @asynccontextmanager
    async def open_value(self, scope: str, key: str) -> AsyncGenerator[Reader]:
        """Open an entry's value, verified whole; later writes do not touch what is read."""
        checked = intake.check_scope(scope)
        async with (await self.store()).open_value(checked, key) as reader:
            yield reader

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
        return await (await self.store()).delete(
            checked, key, if_digest=intake.check_digest(if_digest), keep=self._limits[checked].keep
        )

    async def list(
        self,
        scope: str,
        *,
        prefix: str = "",
        cursor: str | None = None,
        limit: int = 100,
        include_expired: bool = False,
        pattern: str | None = None,
    ) -> Page:
        """Return a page of a scope's entries in key order; see `Store.list`."""
        checked = intake.check_scope(scope)
        store = await self.store()
        return await store.list(
            checked, prefix=prefix, cursor=cursor, limit=limit, include_expired=include_expired, pattern=pattern
        )

    async def latest(
        self, scope: str, limit: int = 20, *, prefix: str = "", without: str = ""
    ) -> tuple[EntryInfo, ...]:
        """Return a scope's entries that were written last, newest first; see `Store.latest`."""
        checked = intake.check_scope(scope)
        return await (await self.store()).latest(checked, limit, prefix=prefix, without=without)

    async def prune(self, scope: str | None = None) -> Removed:
        """Remove expired entries, of one scope or of all."""
        checked = None if scope is None else intake.check_scope(scope)
        return await (await self.store()).collect(checked)

    async def clear(self, principal: Principal, scope: str) -> Removed:
        """Delete every entry of a scope."""
        checked = intake.check_scope(scope)
        check_access(principal, checked, "clear")
        return await (await self.store()).clear(checked, keep=self._limits[checked].keep)

    def undo_hours(self, scope: str) -> float:
        """Return for how many hours what is deleted from a scope can be restored; 0: not at all."""
        return self._limits[intake.check_scope(scope)].keep.deleted_ms / HOUR_MS

    async def history(self, scope: str, key: str) -> History:
        """Return what an entry is and which of its versions are kept; see `Store.history`."""
        checked = intake.check_scope(scope)
        return await (await self.store()).history(checked, key)

    async def deleted(self, scope: str, *, cursor: str | None = None, limit: int = 100) -> KeptPage:
        """Return a page of a scope's entries that were deleted and can be restored, in key order."""
        checked = intake.check_scope(scope)
        return await (await self.store()).deleted(checked, cursor=cursor, limit=limit)

    async def restore_entry(
        self, principal: Principal, scope: str, key: str, version: int | None = None, *, if_digest: str | None = None
    ) -> EntryInfo:
        """Make a kept version the entry again; None: the newest. See `Store.restore_entry` for what it raises."""
        checked = intake.check_scope(scope)
        check_access(principal, checked, "write")
        return await (await self.store()).restore_entry(
            checked, key, version, limits=self._limits[checked], if_digest=intake.check_digest(if_digest)
        )

    async def verify(self, scope: str | None = None) -> Verification:
        """Read and hash every value, of one scope or of all."""
        checked = None if scope is None else intake.check_scope(scope)
        return await (await self.store()).verify(checked)

    async def back_up(self, path: Path) -> Archived:
        """Write all entries as they are at one moment into an archive."""
        return await (await self.store()).back_up(path)

    async def restore(self, path: Path) -> Archived:
        """Replace all entries by those of an archive; what was there is kept as versions."""
        return await (await self.store()).restore(path)

    async def repair(self) -> Repair:
        """Look at the whole index, and make it anew if anything is wrong with it."""
        return await (await self.store()).repair()
