"""Opens the store of a workspace at its first use, and says why where that fails."""

from __future__ import annotations

from typing import Final

import anyio

from iris_kv.errors import BusyError, Code, IrisError, UnavailableError
from iris_kv.location import Location
from iris_kv.model import Clock, Face, Watch
from iris_kv.settings import Settings
from iris_kv.store.files import FileStore

BRIEFLY_S: Final = 1.0
"""How long an answer that can do without the store waits for it."""


class Opening:
    """The store of a workspace, opened when it is first wanted and again after a failure."""

    def __init__(
        self,
        location: Location | None,
        settings: Settings,
        clock: Clock,
        *,
        face: Face,
        create: bool,
        problem: IrisError | None,
        watch: Watch,
    ) -> None:
        """Prepare; see `Workspace` for the arguments."""
        self._location = location
        self._settings = settings
        self._clock = clock
        self._face: Face = face
        self._create = create
        self._problem = problem
        self._watch = watch
        self._store: FileStore | None = None
        self._one_at_a_time = anyio.Lock()
        self._attempts = 0
        self._unopened: IrisError | None = None

    async def store(self) -> FileStore:
        """Return the open store.

        Raises:
            IrisError: Why it cannot be opened.
        """
        if self._store is None:
            attempts = self._attempts
            async with self._one_at_a_time:
                if self._store is None and self._unopened is not None and self._attempts > attempts:
                    # Where each opening waits for a lock, those who waited for one do not wait for another.
                    raise self._unopened
                if self._store is None:
                    self._store = await self._tried()
        return self._store

    async def at_hand(self) -> FileStore | Code:
        """Return the store, or why it cannot answer; this waits for another process's lock only briefly."""
        if self._store is None and isinstance(self._unopened, BusyError):
            # The next opening waits as long again, so it is left to those who cannot do without.
            return self._unopened.code
        with anyio.move_on_after(BRIEFLY_S):
            try:
                return await self.store()
            except IrisError as error:
                return error.code
        return "busy"

    def let_go(self) -> FileStore | None:
        """Return the store if it is open, for the caller to close."""
        store, self._store = self._store, None
        return store

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
        if self._location is None:
            raise UnavailableError(
                "this server has no workspace", "instructions and prompts are served", "name one with --workspace"
            )
        return await FileStore.open(
            self._location.root,
            clock=self._clock,
            face=self._face,
            create=self._create,
            durable=self._settings.durability == "full",
            trust_owner=self._settings.trust_owner,
            watch=self._watch,
        )
