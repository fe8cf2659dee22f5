"""The Store protocol: what every backend does, with no optional parts.

Conflict, quota and expiry are decided inside the backend's one atomic step, with the backend's
own time. Cursors and positions are opaque strings. No operation spans two scopes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from iris_kv.errors import ExpiredError, NotFoundError
from iris_kv.model import (
    DAY_MS,
    KEEP_NOTHING,
    Activity,
    Changes,
    Entry,
    EntryInfo,
    History,
    Keep,
    KeptPage,
    Limits,
    Page,
    Provenance,
    Removed,
    Scope,
    Usage,
    Verification,
    day_of,
    utc_text,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

FLUSH_INTERVAL_MS = 60_000
"""Reads are noted in memory and written to the index at most this much later."""

GRACE_MS = 2 * FLUSH_INTERVAL_MS
"""How long past its expiry a renewable entry is kept, as another process may still note a read."""

MAX_CHANGES = 10_000
"""How many changes the feed keeps."""

COUNTER_DAYS = 90
"""Counters of days that are older are forgotten by `Store.collect`."""

MAX_COUNTERS = 50_000
"""How many counters `Store.collect` keeps, of the newest days, and of a day the highest: names may come from clients."""

MAX_DELETED = 10
"""How many deleted versions of one key are kept: programs put and delete the same key all day."""

MAX_COMPARED = 5_000
"""How many keys one page of a list with a pattern compares: 10 ms, and 0.5 s for the longest keys."""


class Reader(Protocol):
    """One immutable generation of a value, verified whole before it was handed out."""

    @property
    def info(self) -> EntryInfo:
        """Return what is known of the entry."""
        ...

    async def read(self, offset: int, n: int) -> bytes:
        """Return at most `n` bytes from `offset`; fewer only at the end of the value."""
        ...


class HeldReader:
    """One generation of a value in memory."""

    def __init__(self, info: EntryInfo, value: bytes) -> None:
        """Read from a value."""
        self._info = info
        self._value = value

    @property
    def info(self) -> EntryInfo:
        """See `Reader.info`."""
        return self._info

    async def read(self, offset: int, n: int) -> bytes:
        """See `Reader.read`."""
        return self._value[offset : offset + n]


class Store(Protocol):
    """Entries of bytes under (scope, key). Every method may raise the errors of `iris_kv.errors`."""

    async def head(self, scope: Scope, key: str) -> EntryInfo:
        """Return what is known of an entry without reading its value.

        Raises:
            NotFoundError: There is no such entry.
            ExpiredError: Its TTL has run out.
        """
        ...

    async def get(self, scope: Scope, key: str) -> Entry:
        """Return an entry with its verified value, and note the read.

        Raises:
            NotFoundError: There is no such entry.
            ExpiredError: Its TTL has run out.
            CorruptError: The stored bytes do not match their digest.
        """
        ...

    def open_value(self, scope: Scope, key: str) -> AbstractAsyncContextManager[Reader]:
        """Open a verified reader over the entry's generation; later writes do not touch it."""
        ...

    async def put(
        self,
        scope: Scope,
        key: str,
        value: bytes | AsyncIterable[bytes],
        *,
        content_type: str,
        limits: Limits,
        provenance: Provenance,
        ttl_ms: int | None = None,
        metadata: Mapping[str, str] | None = None,
        if_digest: str | None = None,
    ) -> EntryInfo:
        """Write an entry; when this returns, it is acknowledged and survives as `durability` says.

        Args:
            scope: The entry's scope.
            key: 1 to 512 bytes of UTF-8 without control characters; compared byte for byte.
            value: The bytes, or their chunks.
            content_type: A media type such as `text/markdown`, in at most 200 ASCII characters.
            limits: What the scope allows.
            provenance: Who writes, through which face.
            ttl_ms: Milliseconds to live, up to 100 years; None takes the limits' TTL.
            metadata: Strings kept with the entry, at most 64 KiB as JSON.
            if_digest: Write only over this generation; `""` only if absent, and an expired entry
                counts as absent. At least `sha256:` and 16 hex digits.

        Raises:
            InvalidArgumentError: One of these is malformed.
            ConflictError: The entry is not what `if_digest` says; nothing was changed.
            QuotaExceededError: The scope has no room, even without kept versions and with expired entries
                collected; nothing was changed.
            TooLargeError: The value is over `limits.max_value_bytes`.
            UncertainError: The commit itself failed; a retry is safe.
        """
        ...

    async def delete(
        self, scope: Scope, key: str, *, if_digest: str | None = None, keep: Keep = KEEP_NOTHING
    ) -> EntryInfo:
        """Delete an entry and return what it was; `keep` says for how long it can be restored.

        Raises:
            NotFoundError: There is no such entry.
            ExpiredError: Its TTL has run out.
            ConflictError: The entry is not what `if_digest` says.
        """
        ...

    async def clear(self, scope: Scope, *, keep: Keep = KEEP_NOTHING) -> Removed:
        """Delete every entry of a scope, expired ones included; these cannot be restored, the others as `keep` says."""
        ...

    async def history(self, scope: Scope, key: str) -> History:
        """Return what an entry is and which of its versions are kept.

        Raises:
            NotFoundError: There is no such entry, and nothing is kept of one.
            ExpiredError: Its TTL has run out, which ends its versions, too, but for those that were deleted.
        """
        ...

    async def deleted(self, scope: Scope, *, cursor: str | None = None, limit: int = 100) -> KeptPage:
        """Return a page of at most `limit` (from 1 up) entries that were deleted and can be restored."""
        ...

    async def restore_entry(
        self, scope: Scope, key: str, version: int | None = None, *, limits: Limits, if_digest: str | None = None
    ) -> EntryInfo:
        """Make a kept version the entry again: a put of its value, metadata and provenance, its TTL counted anew.

        Args:
            scope: The entry's scope.
            key: The entry's key.
            version: Which one, as `history` tells; None: the newest that is kept.
            limits: What the scope allows.
            if_digest: As for `put`; it is about the live entry.

        Raises:
            NotFoundError: There is no such version.
            CorruptError: Its bytes do not match their digest.
            ConflictError: The entry is not what `if_digest` says; nothing was changed.
            QuotaExceededError: The scope has no room; nothing was changed.
            TooLargeError: It is over `limits.max_value_bytes`.
            UncertainError: The commit itself failed; a retry is safe.
        """
        ...

    async def list(
        self,
        scope: Scope,
        *,
        prefix: str = "",
        cursor: str | None = None,
        limit: int = 100,
        include_expired: bool = False,
        pattern: str | None = None,
    ) -> Page:
        """Return a page of at most `limit` (from 1 up) entries in the byte order of their keys.

        With a `pattern` (see `Glob`) only those whose key it matches; as such a page ends after
        `MAX_COMPARED` keys, too, it may have fewer entries, or none, and still not be the last.
        """
        ...

    async def latest(self, scope: Scope, limit: int, *, prefix: str = "", without: str = "") -> tuple[EntryInfo, ...]:
        """Return the live entries that were written last, newest first.

        Args:
            scope: The entries' scope.
            limit: How many at most, from 1 up.
            prefix: Only those whose key starts with it.
            without: None of those whose key starts with it; empty leaves none out.
        """
        ...

    async def usage(self, scope: Scope) -> Usage:
        """Return what a scope holds, expired entries that were not collected yet included."""
        ...

    async def collect(self, scope: Scope | None = None) -> Removed:
        """Remove expired entries and versions kept long enough, of one scope or all; forget old counters; tidy up."""
        ...

    async def verify(self, scope: Scope | None = None) -> Verification:
        """Read and hash every value, of one scope or of all, those of kept versions included."""
        ...

    async def count(self, day: str, deltas: Mapping[str, int]) -> None:
        """Add to the counters of a day (`2026-01-31`) in one atomic step."""
        ...

    async def counts(self, since: str) -> Mapping[str, Mapping[str, int]]:
        """Return the counters by name and day, from the day `since` on."""
        ...

    async def workspace_id(self) -> str:
        """Return the random id of what is stored here: 32 hex digits, the same for every process."""
        ...

    async def activity(self, scope: Scope) -> tuple[Activity | None, Activity | None]:
        """Return when the scope was last written and last read; None: never."""
        ...

    async def changes(self, after: str | None, limit: int = 1000) -> Changes:
        """Return the changes after a position; None returns the present position and no events."""
        ...

    async def wait_for_change(self, after: str) -> None:
        """Return once anything changed after a position, in this process or another."""
        ...

    async def aclose(self) -> None:
        """Write what is pending and close; the store cannot be used afterwards."""
        ...


def oldest_counted_day(now_ms: int) -> str:
    """Return the first of the days whose counters are kept, such as `2026-01-31`."""
    return day_of(now_ms - (COUNTER_DAYS - 1) * DAY_MS)


def write_time(now_ms: int, created_at: int | None) -> int:
    """Return when a write happens: what writes over an entry never does so in the millisecond that made it."""
    return now_ms + (now_ms == created_at)


def not_found(scope: Scope, key: str) -> NotFoundError:
    """Return the error for an entry that is not there."""
    return NotFoundError(
        f"no entry {key!r} in {scope}",
        "keys are compared byte for byte",
        f"list the keys of {scope} and take one of them",
    )


def no_version(scope: Scope, key: str, version: int | None, kept: Sequence[int]) -> NotFoundError:
    """Return the error for a version that is not kept; `kept` are those that are."""
    which = "no version" if version is None else f"no version {version}"
    return NotFoundError(
        f"{which} of {key!r} in {scope} is kept",
        f"kept are {', '.join(map(str, kept))}" if kept else "nothing is kept of it",
        "take one of them" if kept else "make the value again and put it",
    )


def expired(scope: Scope, key: str, at_ms: int) -> ExpiredError:
    """Return the error for an entry whose TTL has run out."""
    return ExpiredError(
        f"{key!r} in {scope} expired at {utc_text(at_ms)}",
        "an expired value is never served",
        "make the value again and put it, with a longer ttl_hours if it should last",
    )
