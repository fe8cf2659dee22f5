"""Tells clients what changed: by other processes, by this one, and by hand in the files.

From the first client that listens on, the store's change feed is followed (250 ms) and the
instruction files are looked at (1 s). What changed is sent at most once a second.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import Any, Final, NamedTuple

import anyio
from mcp.server import ServerRequestContext
from mcp.server.session import ServerSession
from mcp.server.subscriptions import (
    InMemorySubscriptionBus,
    ListenHandler,
    ResourcesListChanged,
    ResourceUpdated,
    ServerEvent,
    ToolsListChanged,
)
from mcp.types import (
    EmptyResult,
    NotificationParams,
    SubscribeRequestParams,
    SubscriptionsListenRequestParams,
    SubscriptionsListenResult,
    UnsubscribeRequestParams,
)

from iris_kv.errors import IrisError
from iris_kv.guidance import REFRESH_MS
from iris_kv.model import Change
from iris_kv.surfaces import uris
from iris_kv.surfaces.resources import LISTED_SCOPES
from iris_kv.workspace import Workspace

COALESCE_S: Final = 1.0
_RETRY_S: Final = 5.0
_FIRST_LOOK_S: Final = 2.0

_log = logging.getLogger(__name__)


class _Connection(NamedTuple):
    """A connection of the older eras, and the URIs it subscribed to."""

    session: ServerSession
    subscribed: set[str]


class Notifier:
    """Follows one workspace and tells its clients."""

    def __init__(self, workspace: Workspace) -> None:
        """Follow a workspace once somebody listens."""
        self._workspace = workspace
        self._bus = InMemorySubscriptionBus()
        self._listen = ListenHandler(self._bus)
        self._connections: dict[int, _Connection] = {}
        self._heard: dict[str, set[str]] = {}
        self._pending: dict[ServerEvent, None] = {}
        self._has_pending = anyio.Event()
        self._has_listener = anyio.Event()
        self._is_following = anyio.Event()
        self._library_state = workspace.served_state()
        self._position: str | None = None

    # Who listens

    async def on_initialized(self, context: ServerRequestContext[Any, Any], _: NotificationParams) -> None:
        """Note a client of the older eras."""
        self._connection(context)
        self._has_listener.set()

    async def on_subscribe(
        self, context: ServerRequestContext[Any, Any], params: SubscribeRequestParams
    ) -> EmptyResult:
        """Note that a client wants to hear of one resource."""
        uri = str(params.uri)
        self._hear(uri)
        self._connection(context).subscribed.add(uri)
        await self._until_following()
        return EmptyResult()

    async def on_unsubscribe(
        self, context: ServerRequestContext[Any, Any], params: UnsubscribeRequestParams
    ) -> EmptyResult:
        """Note that a client does not want to hear of a resource any more."""
        self._connection(context).subscribed.discard(str(params.uri))
        return EmptyResult()

    def _connection(self, context: ServerRequestContext[Any, Any]) -> _Connection:
        return self._connections.setdefault(_connection_id(context), _Connection(context.session, set()))

    async def on_listen(
        self, context: ServerRequestContext[Any, Any], params: SubscriptionsListenRequestParams
    ) -> SubscriptionsListenResult:
        """Serve a client's stream of changes (2026-07-28)."""
        for uri in params.notifications.resource_subscriptions or ():
            self._hear(uri)
        await self._until_following()
        return await self._listen(context, params)

    async def _until_following(self) -> None:
        """Answer a subscription only once nothing that happens after the answer is missed."""
        self._has_listener.set()
        with anyio.move_on_after(_FIRST_LOOK_S):
            await self._is_following.wait()

    def _hear(self, uri: str) -> None:
        """Keep the spelling that a client uses, as it waits for exactly that one.

        Raises:
            IrisError: It names no resource of ours.
        """
        self._heard.setdefault(uris.parse(uri).uri, set()).add(uri)

    # What changes

    async def run(self) -> None:
        """Follow the workspace until cancelled."""
        await self._has_listener.wait()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._forever, self._follow_files)
            tasks.start_soon(self._forever, self._follow_store)
            tasks.start_soon(self._forever, self._send_regularly)

    async def _forever(self, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await work()
            except IrisError as error:
                _log.debug("changes cannot be followed: %s", error)
            except Exception:
                _log.exception("following changes failed")
            self._is_following.set()
            await anyio.sleep(_RETRY_S)

    async def _follow_files(self) -> None:
        while True:
            before, self._library_state = self._library_state, self._workspace.served_state()
            if before.tags != self._library_state.tags:
                self._announce([ToolsListChanged(), ResourcesListChanged()])
            if before != self._library_state:
                names = self._library_state.names_changed_since(before)
                self._announce(self._updates(lambda target, names=names: _shows_files(target, names)))
            await anyio.sleep(REFRESH_MS / 1000)
            await self._workspace.refresh()

    async def _follow_store(self) -> None:
        store = await self._workspace.store()
        if self._position is None:
            self._position = (await store.changes(None)).next
            if self._is_following.is_set():
                # What happened before the store could be read first is not known.
                self._announce([ResourcesListChanged(), *self._updates(lambda _: True)])
        self._is_following.set()
        while True:
            await store.wait_for_change(self._position)
            changes = await store.changes(self._position)
            if changes.reset:
                self._announce([ResourcesListChanged(), *self._updates(lambda _: True)])
            for change in changes.events:
                self._announce(self._events(change))
            self._position = changes.next

    def _events(self, change: Change) -> Iterable[ServerEvent]:
        if change.scope in LISTED_SCOPES and change.op != "update":
            yield ResourcesListChanged()
        if change.op == "clear":
            yield from self._updates(lambda target: target.scope == change.scope)
        else:
            yield from self._spellings(uris.entry_uri(change.scope, change.key))
        yield from self._spellings(uris.STATS)

    def _updates(self, wanted: Callable[[uris.Target], bool]) -> Iterable[ServerEvent]:
        for canonical in list(self._heard):
            if wanted(uris.parse(canonical)):
                yield from self._spellings(canonical)

    def _spellings(self, canonical: str) -> Iterable[ServerEvent]:
        for spelling in sorted(self._heard.get(canonical, ())):
            yield ResourceUpdated(uri=spelling)

    # Telling

    def _announce(self, events: Iterable[ServerEvent]) -> None:
        for event in events:
            self._pending[event] = None
        if self._pending:
            self._has_pending.set()

    async def _send_regularly(self) -> None:
        while True:
            await self._has_pending.wait()
            self._has_pending = anyio.Event()
            events, self._pending = list(self._pending), {}
            for event in events:
                await self._bus.publish(event)
                for connection_id in list(self._connections):
                    await self._tell(connection_id, event)
            await anyio.sleep(COALESCE_S)

    async def _tell(self, connection_id: int, event: ServerEvent) -> None:
        session, subscribed = self._connections[connection_id]
        try:
            if isinstance(event, ResourcesListChanged):
                await session.send_resource_list_changed()
            elif isinstance(event, ToolsListChanged):
                await session.send_tool_list_changed()
            elif isinstance(event, ResourceUpdated) and event.uri in subscribed:
                await session.send_resource_updated(event.uri)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            self._connections.pop(connection_id, None)


def _connection_id(context: ServerRequestContext[Any, Any]) -> int:
    """Return what all requests of a connection share: the client's `initialize`; their `session` is each one's own."""
    return id(context.session.client_params)


def _shows_files(target: uris.Target, names: Collection[str]) -> bool:
    """Tell whether a resource shows something of the instructions with these names."""
    if target.kind == "instructions":
        return target.name.casefold().replace("-", "_") in names
    return target.kind != "cache"
