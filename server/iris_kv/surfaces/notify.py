"""Tells clients what changed: by other processes, by this one, and by hand in the files.

From the first client that listens on, the store's change feed is followed (250 ms) and the
instruction files are looked at (1 s). What changed is sent at most once a second.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
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
    SubscribeRequestParams,
    SubscriptionsListenRequestParams,
    SubscriptionsListenResult,
    UnsubscribeRequestParams,
)

from iris_kv.errors import BusyError, InvalidArgumentError, IrisError
from iris_kv.guidance import REFRESH_MS
from iris_kv.model import Change
from iris_kv.surfaces import uris
from iris_kv.surfaces.resources import LISTED_SCOPES
from iris_kv.workspace import Workspace

COALESCE_S: Final = 1.0
TELL_S: Final = 5.0
"""How long telling one client what changed may take."""
MAX_LISTENERS: Final = 256
"""How many clients of each era are told of one workspace's changes."""
MAX_HEARD: Final = 10_000
"""How many subscriptions to resources there are for one workspace, over all clients."""
MAX_URI_CHARS: Final = 4_096
"""How long the URI of a subscription may be; that of the longest key has 1,560 characters."""
_RETRY_S: Final = 5.0
_FIRST_LOOK_S: Final = 2.0

_log = logging.getLogger(__name__)


class Connection:
    """A connection of the older eras, and the URIs it subscribed to."""

    def __init__(self, session: ServerSession) -> None:
        """Tell a client through its session."""
        self.session = session
        self.subscribed: set[str] = set()
        self.is_open = True


class Connections:
    """The connections of the older eras that are there now."""

    def __init__(self) -> None:
        """Start with none."""
        self._by_id: dict[int, Connection] = {}

    def of(self, context: ServerRequestContext[Any, Any]) -> Connection:
        """Return the connection of a request.

        Raises:
            InvalidArgumentError: It has not said that it is initialized.
        """
        found = self._by_id.get(_connection_id(context))
        if found is None:
            raise InvalidArgumentError(
                "this connection was not initialized", "it is once notifications/initialized was sent", "send that"
            )
        return found

    def has(self, context: ServerRequestContext[Any, Any]) -> bool:
        """Tell whether the connection of a request has said that it is initialized."""
        return _connection_id(context) in self._by_id

    @asynccontextmanager
    async def entered(self, context: ServerRequestContext[Any, Any]) -> AsyncGenerator[Connection]:
        """Keep the connection of a request meanwhile."""
        connection_id, connection = _connection_id(context), Connection(context.session)
        self._by_id[connection_id] = connection
        try:
            yield connection
        finally:
            connection.is_open = False
            if self._by_id.get(connection_id) is connection:
                del self._by_id[connection_id]


class Notifier:
    """Follows one workspace and tells its clients."""

    def __init__(self, workspace: Workspace) -> None:
        """Follow a workspace once somebody listens."""
        self._workspace = workspace
        self._bus = InMemorySubscriptionBus()
        self._listen = ListenHandler(self._bus, max_subscriptions=MAX_LISTENERS)
        self._connections: dict[Connection, None] = {}
        self._heard: dict[str, Counter[str]] = {}
        self._heard_total = 0
        self._pending: dict[ServerEvent, None] = {}
        self._has_pending = anyio.Event()
        self._has_listener = anyio.Event()
        self._is_following = anyio.Event()
        self._library_state = workspace.served_state()
        self._position: str | None = None

    # Who listens

    @property
    def n_heard(self) -> int:
        """How many subscriptions to resources there are, over all clients."""
        return self._heard_total

    def attend(self, connection: Connection) -> None:
        """Tell a client of the older eras of changes, as long as its connection is open.

        Where too many are told already, it is not: it sees changes when it looks.
        """
        self._forget_closed()
        if len(self._connections) < MAX_LISTENERS:
            self._connections[connection] = None
        self._has_listener.set()

    async def on_subscribe(self, connection: Connection, params: SubscribeRequestParams) -> EmptyResult:
        """Note that a client wants to hear of one resource.

        Raises:
            BusyError: Too many are heard of already.
        """
        uri = str(params.uri)
        self.attend(connection)
        if connection not in self._connections:
            raise _too_many(f"{MAX_LISTENERS} clients are told of changes")
        if uri not in connection.subscribed:
            self._hear([uri])
            connection.subscribed.add(uri)
        await self._until_following()
        return EmptyResult()

    def on_unsubscribe(self, connection: Connection, params: UnsubscribeRequestParams) -> EmptyResult:
        """Note that a client does not want to hear of a resource any more."""
        uri = str(params.uri)
        if connection in self._connections and uri in connection.subscribed:
            connection.subscribed.discard(uri)
            self._hear_no_more([uri])
        return EmptyResult()

    def _forget_closed(self) -> None:
        for connection in [each for each in self._connections if not each.is_open]:
            del self._connections[connection]
            self._hear_no_more(connection.subscribed)

    async def on_listen(
        self, context: ServerRequestContext[Any, Any], params: SubscriptionsListenRequestParams
    ) -> SubscriptionsListenResult:
        """Serve a client's stream of changes (2026-07-28)."""
        wanted = list(dict.fromkeys(params.notifications.resource_subscriptions or ()))
        self._hear(wanted)
        try:
            await self._until_following()
            return await self._listen(context, params)
        finally:
            self._hear_no_more(wanted)

    def end_streams(self) -> None:
        """End every client's stream of changes; each is told so."""
        self._listen.close()

    async def _until_following(self) -> None:
        """Answer a subscription only once nothing that happens after the answer is missed."""
        self._has_listener.set()
        with anyio.move_on_after(_FIRST_LOOK_S):
            await self._is_following.wait()

    def _hear(self, wanted: Sequence[str]) -> None:
        """Keep the spellings that a client uses, as it waits for exactly these.

        Raises:
            InvalidArgumentError: One names no resource of ours, or is too long to be kept.
            BusyError: Too many are heard of already; none of them is kept.
        """
        if any(len(uri) > MAX_URI_CHARS for uri in wanted):
            raise InvalidArgumentError(
                f"a URI has over {MAX_URI_CHARS} characters",
                "none of ours has as many",
                "subscribe to one that is listed",
            )
        canonical = [uris.parse(uri).uri for uri in wanted]
        self._forget_closed()
        if self._heard_total + len(wanted) > MAX_HEARD:
            raise _too_many(f"{self._heard_total} resources are subscribed to, and {len(wanted)} more are asked for")
        self._heard_total += len(wanted)
        for uri, spelling in zip(canonical, wanted, strict=True):
            self._heard.setdefault(uri, Counter())[spelling] += 1

    def _hear_no_more(self, spellings: Iterable[str]) -> None:
        for spelling in spellings:
            self._heard_total -= 1
            canonical = uris.parse(spelling).uri
            heard = self._heard[canonical]
            heard[spelling] -= 1
            if not heard[spelling]:
                del heard[spelling]
            if not heard:
                del self._heard[canonical]

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
            self._forget_closed()
            async with anyio.create_task_group() as tasks:
                for connection in self._connections:
                    tasks.start_soon(self._tell, connection, events)
            await anyio.sleep(COALESCE_S)

    async def _tell(self, connection: Connection, events: Sequence[ServerEvent]) -> None:
        """Tell a client; one that reads nothing misses what it is told, and keeps the others waiting for a moment."""
        try:
            with anyio.move_on_after(TELL_S):
                for event in events:
                    await _send(connection, event)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            connection.is_open = False


async def _send(connection: Connection, event: ServerEvent) -> None:
    session = connection.session
    if isinstance(event, ResourcesListChanged):
        await session.send_resource_list_changed()
    elif isinstance(event, ToolsListChanged):
        await session.send_tool_list_changed()
    elif isinstance(event, ResourceUpdated) and event.uri in connection.subscribed:
        await session.send_resource_updated(event.uri)


def _too_many(wrong: str) -> BusyError:
    return BusyError(
        wrong,
        f"{MAX_HEARD} subscriptions and {MAX_LISTENERS} clients are served for one workspace",
        "unsubscribe from what is not needed, or read the resources when they are needed",
    )


def _connection_id(context: ServerRequestContext[Any, Any]) -> int:
    """Return what all requests of a connection share: the client's `initialize`; their `session` is each one's own."""
    return id(context.session.client_params)


def _shows_files(target: uris.Target, names: Collection[str]) -> bool:
    """Tell whether a resource shows something of the instructions with these names."""
    if target.kind == "instructions":
        return target.name.casefold().replace("-", "_") in names
    return target.kind != "cache"
