"""Tells clients what changed: by other processes, by this one, and by hand in the files.

From the first client that listens on, the store's change feed is followed (250 ms) and the
instruction files are looked at (1 s). What changed is sent at most once a second.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any, Final

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
from iris_kv.model import Change
from iris_kv.surfaces import uris
from iris_kv.surfaces.resources import LISTED_SCOPES
from iris_kv.workspace import REFRESH_MS, Workspace

COALESCE_S: Final = 1.0
_RETRY_S: Final = 5.0

_log = logging.getLogger(__name__)


class Notifier:
    """Follows one workspace and tells the clients of one server."""

    def __init__(self, workspace: Workspace, on_new_tags: Callable[[], None]) -> None:
        """Follow a workspace once somebody listens; `on_new_tags` runs when the set of tags changed."""
        self._workspace = workspace
        self._on_new_tags = on_new_tags
        self._bus = InMemorySubscriptionBus()
        self._listen = ListenHandler(self._bus)
        self._sessions: dict[ServerSession, set[str]] = {}
        self._heard: dict[str, set[str]] = {}
        self._pending: dict[ServerEvent, None] = {}
        self._has_pending = anyio.Event()
        self._has_listener = anyio.Event()

    # Who listens

    async def on_initialized(self, context: ServerRequestContext[Any, Any], _: NotificationParams) -> None:
        """Note a client of the older eras."""
        self._sessions[context.session] = set()
        self._has_listener.set()

    async def on_subscribe(
        self, context: ServerRequestContext[Any, Any], params: SubscribeRequestParams
    ) -> EmptyResult:
        """Note that a client wants to hear of one resource."""
        uri = str(params.uri)
        self._hear(uri)
        self._subscriptions(context).add(uri)
        return EmptyResult()

    async def on_unsubscribe(
        self, context: ServerRequestContext[Any, Any], params: UnsubscribeRequestParams
    ) -> EmptyResult:
        """Note that a client does not want to hear of a resource any more."""
        self._subscriptions(context).discard(str(params.uri))
        return EmptyResult()

    def _subscriptions(self, context: ServerRequestContext[Any, Any]) -> set[str]:
        return next(iter(self._sessions.values())) if len(self._sessions) == 1 else self._sessions[context.session]

    async def on_listen(
        self, context: ServerRequestContext[Any, Any], params: SubscriptionsListenRequestParams
    ) -> SubscriptionsListenResult:
        """Serve a client's stream of changes (2026-07-28)."""
        for uri in params.notifications.resource_subscriptions or ():
            self._hear(uri)
        self._has_listener.set()
        return await self._listen(context, params)

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
            tasks.start_soon(self._follow_files)
            tasks.start_soon(self._follow_store)
            tasks.start_soon(self._send_regularly)

    async def _follow_files(self) -> None:
        tags, digests = self._library_state()
        while True:
            await anyio.sleep(REFRESH_MS / 1000)
            await self._workspace.refresh()
            new_tags, new_digests = self._library_state()
            if new_tags != tags:
                self._on_new_tags()
                self._announce([ToolsListChanged(), ResourcesListChanged()])
            if new_digests != digests:
                self._announce(self._updates(_is_canonical))
            tags, digests = new_tags, new_digests

    def _library_state(self) -> tuple[tuple[tuple[str, str], ...], tuple[str, ...]]:
        found = self._workspace.library.instructions
        described = tuple((each.tag, each.description) for each in found)
        rendered = (self._workspace.prompts.render("full"), self._workspace.prompts.render("compact"))
        return described, (*(each.digest for each in found), *rendered)

    async def _follow_store(self) -> None:
        position: str | None = None
        while True:
            try:
                store = await self._workspace.store()
                if position is None:
                    position = (await store.changes(None)).next
                await store.wait_for_change(position)
                changes = await store.changes(position)
            except IrisError as error:
                _log.debug("the change feed cannot be read: %s", error)
                await anyio.sleep(_RETRY_S)
                continue
            position = changes.next
            if changes.reset:
                self._announce([ResourcesListChanged(), *self._updates(lambda _: True)])
            for change in changes.events:
                self._announce(self._events(change))

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
                for session, subscribed in list(self._sessions.items()):
                    await self._tell(session, subscribed, event)
            await anyio.sleep(COALESCE_S)

    async def _tell(self, session: ServerSession, subscribed: set[str], event: ServerEvent) -> None:
        try:
            if isinstance(event, ResourcesListChanged):
                await session.send_resource_list_changed()
            elif isinstance(event, ToolsListChanged):
                await session.send_tool_list_changed()
            elif isinstance(event, ResourceUpdated) and event.uri in subscribed:
                await session.send_resource_updated(event.uri)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            self._sessions.pop(session, None)


def _is_canonical(target: uris.Target) -> bool:
    return target.kind in ("instructions", "prompt")
