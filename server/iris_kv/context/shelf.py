"""The stored summaries: a store that fails or hangs costs the stored summaries, and never an answer."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple, TypeVar

import anyio

from iris_kv.context.complaints import Complaints
from iris_kv.errors import ExpiredError, InvalidArgumentError, NotFoundError
from iris_kv.model import Entry, EntryInfo, Limits, Scope
from iris_kv.policy import Principal
from iris_kv.store.base import Store
from iris_kv.store.names import check_key

SCOPE: Final[Scope] = "task"
KEY_PREFIX: Final = "summary_"

_KIND: Final = "summary"
_AUTHOR: Final = Principal(author="agent", face="library")

_T = TypeVar("_T")


class Wanted(NamedTuple):
    """A summary that is wanted, and of what."""

    key: str
    digest: str
    """The message's digest: an entry with another one is of another version of the message."""
    role: str
    text: str
    """What is to be summarised."""


class Shelf:
    """The stored summaries as one call sees them; a store that hangs is waited for once."""

    def __init__(self, store: Store | None, limits: Limits, timeout_s: float, complaints: Complaints) -> None:
        """Use a store; None keeps nothing. `timeout_s` bounds each operation."""
        self._store = store
        self._limits = limits
        self._timeout_s = timeout_s
        self._complaints = complaints
        self._hangs = False
        self.failures = 0
        """How many operations failed or were not over in time."""

    async def read(self, wanted: Wanted) -> str | None:
        """Return the stored summary; None: there is none of this version of the message."""
        store = self._store
        return None if store is None else await self._attempt(lambda: _read(store, wanted), shield=False)

    async def write(self, wanted: Wanted, summary: str) -> None:
        """Store a summary; it was paid for, so that a cancelled caller waits for it, too."""
        store = self._store
        if store is not None:
            await self._attempt(lambda: _write(store, wanted, summary, self._limits), shield=True)

    async def _attempt(self, work: Callable[[], Awaitable[_T]], *, shield: bool) -> _T | None:
        if self._hangs:
            return None
        try:
            with anyio.fail_after(self._timeout_s, shield=shield):
                return await work()
        except (NotFoundError, ExpiredError):
            return None
        except Exception as error:
            self._hangs = self._hangs or isinstance(error, TimeoutError)
            self.failures += 1
            self._complaints.add("a summary could not be read or stored, and the answer is the same", error)
            return None


def summary_key(message_id: str) -> str:
    """Return the key of a message's summary: `summary_` with the id, or with its SHA-256 if no key can hold it."""
    key = KEY_PREFIX + message_id
    try:
        check_key(key)
    except InvalidArgumentError:
        return KEY_PREFIX + hashlib.sha256(message_id.encode("utf-8", "surrogatepass")).hexdigest()
    return key


async def _read(store: Store, wanted: Wanted) -> str | None:
    entry = await store.get(SCOPE, wanted.key)
    return entry.value.decode() if _is_of(entry, wanted) else None


def _is_of(entry: Entry, wanted: Wanted) -> bool:
    metadata = entry.info.metadata
    return (
        entry.info.provenance == _AUTHOR.provenance
        and metadata.get("kind") == _KIND
        and metadata.get("message_digest") == wanted.digest
    )


async def _write(store: Store, wanted: Wanted, summary: str, limits: Limits) -> EntryInfo:
    return await store.put(
        SCOPE,
        wanted.key,
        summary.encode(),
        content_type="text/plain",
        limits=limits,
        provenance=_AUTHOR.provenance,
        metadata={"kind": _KIND, "message_digest": wanted.digest, "role": wanted.role},
    )
