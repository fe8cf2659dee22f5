"""Which workspace a request visits, and on whose behalf."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, NamedTuple, Protocol

import anyio
from mcp.server import ServerRequestContext

from iris_kv.policy import Principal
from iris_kv.surfaces.notify import Notifier
from iris_kv.surfaces.tools import AGENT
from iris_kv.workspace import Workspace

_log = logging.getLogger(__name__)


class Visit(NamedTuple):
    """A workspace, what tells its clients of changes, and who asks."""

    workspace: Workspace
    notifier: Notifier
    principal: Principal


class Visits(Protocol):
    """Finds the visit that a request makes."""

    def of(self, context: ServerRequestContext[Any, Any]) -> Visit:
        """Return the visit of a request."""
        ...

    def answered(self, context: ServerRequestContext[Any, Any], tool: str, outcome: str) -> None:
        """Note how a call of a tool ended: `ok`, or the code of its error."""
        ...

    def opening(self) -> Visit | None:
        """Return the visit of the connection that is being opened; None where there is none."""
        ...

    def open(self) -> AbstractAsyncContextManager[None]:
        """Do what visits need while the server runs."""
        ...


class OneWorkspace:
    """Every request visits the same workspace, on behalf of an agent: the server over stdio."""

    def __init__(self, workspace: Workspace) -> None:
        """Visit a workspace; the caller closes it."""
        self._visit = Visit(workspace, Notifier(workspace), AGENT)

    def of(self, context: ServerRequestContext[Any, Any]) -> Visit:
        """See `Visits`."""
        del context
        return self._visit

    def answered(self, context: ServerRequestContext[Any, Any], tool: str, outcome: str) -> None:
        """See `Visits`."""
        fields = {"operation": f"mcp:{tool}", "outcome": outcome}
        _log.debug("request %s", context.request_id, extra={"fields": fields})

    def opening(self) -> Visit:
        """See `Visits`."""
        return self._visit

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[None]:
        """Follow the workspace's changes for its clients."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._visit.notifier.run)
            yield
            tasks.cancel_scope.cancel()
