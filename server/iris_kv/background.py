"""What keeps a workspace going beside its answers: seeding, counting, collection."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import anyio
from anyio import to_thread

from iris_kv.errors import IrisError
from iris_kv.location import find_workspace
from iris_kv.model import Clock
from iris_kv.settings import Settings, load_settings
from iris_kv.workspace import Workspace

_COLLECT_EVERY_S: Final = 600
_WARM_UP_AFTER_S: Final = 1.0
_CHANCE: Final = random.SystemRandom()
"""Not the generator that the program around us may have seeded."""

_log = logging.getLogger(__name__)


class Background:
    """The background work of one workspace."""

    def __init__(self, workspace: Workspace) -> None:
        """Prepare; `run` does the work."""
        self._workspace = workspace
        self._failure = ""

    async def run(self) -> None:
        """Seed, count and collect until cancelled; failures are logged, and no answer waits for it."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._collect_regularly)
            tasks.start_soon(self._warm_up)
            while True:
                work = self._workspace.next_work()
                await self._guarded(self._workspace.catch_up)
                await work.wait()

    async def _warm_up(self) -> None:
        await anyio.sleep(_WARM_UP_AFTER_S)
        await to_thread.run_sync(self._workspace.counter.warm_up)

    async def _collect_regularly(self) -> None:
        while True:
            await self._guarded(self._workspace.collect_if_due)
            await anyio.sleep(_COLLECT_EVERY_S * _CHANCE.uniform(0.9, 1.1))

    async def _guarded(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run a piece of work; the server lives on whatever happens to it, and says each thing once."""
        try:
            await work()
        except IrisError as error:
            if str(error) != self._failure:
                _log.error("background work failed: %s", error)
            self._failure = str(error)
        except Exception:
            _log.exception("background work failed")


@asynccontextmanager
async def open_workspace(
    path: Path | str | None = None,
    *,
    settings: Settings | None = None,
    clock: Clock | None = None,
    create: bool = True,
) -> AsyncGenerator[Workspace]:
    """Open a workspace for a program, with seeding and collection in the background, and close it after.

    Args:
        path: The workspace's folder; None finds it as the server does.
        settings: None reads the layers of configuration.
        clock: Where the time comes from; None: the machine's.
        create: Create the cache where there is none.

    Raises:
        InvalidArgumentError: There is no such folder, or the configuration is broken.
    """
    location = find_workspace(None if path is None else str(path), os.environ)
    loaded = load_settings(location.root) if settings is None else settings
    workspace = Workspace(location, loaded, face="library", clock=clock, create=create)
    failure: Exception | None = None
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(Background(workspace).run)
            try:
                yield workspace
            except Exception as error:
                # Raised behind the task group, which would put it into a group of its own.
                failure = error
            tasks.cancel_scope.cancel()
    finally:
        await workspace.aclose()
    if failure is not None:
        raise failure
