"""The workspaces that an HTTP server offers: one, or the sandboxes below a root."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import NamedTuple

import anyio
from anyio import to_thread

from iris_kv.background import Background
from iris_kv.errors import ForbiddenError, IrisError
from iris_kv.location import Location
from iris_kv.logs import REQUEST_ID
from iris_kv.model import SCOPES, Clock, Scope
from iris_kv.policy import Principal, check_right, may_touch
from iris_kv.sandboxes import DEFAULT, OpenSandboxes, SandboxRoot, check_id, no_sandbox
from iris_kv.surfaces.notify import Notifier
from iris_kv.surfaces.visits import Visit
from iris_kv.workspace import Workspace

OpenWorkspace = Callable[[Location], Workspace]
"""Makes the workspace of a folder, with its settings; blocks on the file system."""


class Limits(NamedTuple):
    """How many sandboxes are open at once, and how long one stays open without a visit."""

    max_open: int = 64
    idle_s: float = 300.0


class _Served:
    """An open workspace with what runs beside it."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.notifier = Notifier(workspace)

    async def run(self) -> None:
        # It outlives the request that opened the workspace.
        REQUEST_ID.set(None)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(Background(self.workspace).run)
            tasks.start_soon(self.notifier.run)

    async def aclose(self) -> None:
        await self.workspace.aclose()


class Platform:
    """Finds and opens the workspace that a request names, for whom may touch it."""

    def __init__(
        self,
        only: Location | None,
        root: SandboxRoot | None,
        open_workspace: OpenWorkspace,
        clock: Clock,
        limits: Limits,
    ) -> None:
        """Offer one workspace under the id `default`, or the sandboxes of a root.

        Args:
            only: The one workspace; None where there is a root.
            root: The sandboxes; None where there is one workspace.
            open_workspace: See `OpenWorkspace`.
            clock: Tells how long a sandbox was idle.
            limits: See `Limits`.
        """
        self._only = only
        self._root = root
        self._open_workspace = open_workspace
        self._open = OpenSandboxes(self._opened, clock, max_open=limits.max_open, idle_s=limits.idle_s)

    @property
    def is_shared(self) -> bool:
        """Whether there are sandboxes, and not one workspace."""
        return self._root is not None

    @property
    def open_ids(self) -> tuple[str, ...]:
        """The ids of the sandboxes that are open now."""
        return self._open.open_ids

    async def check_ready(self) -> None:
        """Write to the only workspace's store, or to the root of the sandboxes.

        Raises:
            IrisError: Why it cannot be written.
        """
        if self._root is None:
            async with self._open.visit(DEFAULT) as served:
                await (await served.workspace.store()).check_writable()
        else:
            await to_thread.run_sync(self._root.check_writable)

    async def usage(self) -> tuple[dict[Scope, int], dict[Scope, int]]:
        """Return what the workspaces that are open hold together, by scope, and may hold in bytes."""
        used: dict[Scope, int] = {}
        quota_bytes: dict[Scope, int] = {}
        for sandbox in self.open_ids:
            async with self._open.look(sandbox) as served:
                if served is not None:
                    with suppress(IrisError):
                        store = await served.workspace.store()
                        for scope in SCOPES:
                            used[scope] = used.get(scope, 0) + (await store.usage(scope)).bytes
                            quota = served.workspace.settings.limits(scope).quota_bytes
                            quota_bytes[scope] = quota_bytes.get(scope, 0) + quota
        return used, quota_bytes

    async def close_idle(self) -> None:
        """Close the workspaces that were idle for long enough, which otherwise happens from time to time."""
        await self._open.close_idle()

    def end_streams(self) -> None:
        """End the streams of changes that clients listen to, as they would hold a shutdown up."""
        for served in self._open.residents:
            served.notifier.end_streams()

    def run(self) -> AbstractAsyncContextManager[None]:
        """Let workspaces be visited; in the end every one is closed."""
        return self._open.run()

    @asynccontextmanager
    async def visit(self, principal: Principal, sandbox: str) -> AsyncGenerator[Visit]:
        """Open a sandbox for a while.

        Raises:
            InvalidArgumentError: The id is malformed.
            NotFoundError: There is none, or the principal may not touch it.
            BusyError: Too many are open and in use.
        """
        check_id(sandbox)
        if not may_touch(principal, sandbox) or (self._root is None and sandbox != DEFAULT):
            raise no_sandbox(sandbox)
        if self._root is not None and not self._open.is_open(sandbox):
            # What is not there must not close what is.
            await to_thread.run_sync(self._root.folder, sandbox)
        async with self._open.visit(sandbox) as served:
            yield Visit(served.workspace, served.notifier, principal)

    async def create(self, principal: Principal, sandbox: str) -> None:
        """Create a sandbox.

        Raises:
            ForbiddenError: The principal is no administrator, or may not touch a sandbox of this id.
            ConflictError: It exists.
            ForbiddenError: This server has one workspace.
        """
        check_right(principal, "kv:admin", "creating a sandbox")
        check_id(sandbox)
        if not may_touch(principal, sandbox):
            raise no_sandbox(sandbox)
        await to_thread.run_sync(self._sandboxes().create, sandbox)

    async def ids(self, principal: Principal) -> list[str]:
        """Return the ids of the sandboxes that a principal may touch, in order."""
        found = [DEFAULT] if self._root is None else await to_thread.run_sync(self._root.ids)
        return [sandbox for sandbox in found if may_touch(principal, sandbox)]

    def _sandboxes(self) -> SandboxRoot:
        if self._root is None:
            raise ForbiddenError(
                "this server has one workspace", "sandboxes are served with --sandboxes ROOT", f"use the id {DEFAULT!r}"
            )
        return self._root

    async def _opened(self, sandbox: str) -> _Served:
        location = self._only
        if location is None:
            folder = await to_thread.run_sync(self._sandboxes().folder, sandbox)
            location = Location(root=folder, reason="--sandboxes")
        return _Served(await to_thread.run_sync(self._open_workspace, location))
