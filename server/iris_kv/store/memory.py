"""The Store protocol in memory: the plain model that the backends are compared with in tests."""

from __future__ import annotations

import uuid
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio

from iris_kv.errors import IrisError, QuotaExceededError
from iris_kv.model import (
    KEEP_NOTHING,
    SCOPES,
    Activity,
    Change,
    Changes,
    Clock,
    Entry,
    EntryInfo,
    History,
    Keep,
    KeptPage,
    Limits,
    Operation,
    Page,
    Provenance,
    Removed,
    Scope,
    Usage,
    Verification,
    digest_of,
)
from iris_kv.store import names
from iris_kv.store.base import (
    GRACE_MS,
    MAX_CHANGES,
    MAX_COMPARED,
    MAX_COUNTERS,
    HeldReader,
    expired,
    no_version,
    not_found,
    oldest_counted_day,
    write_time,
)
from iris_kv.store.checks import Listing, PutRequest, check_expected, check_if_digest, check_page, check_put, check_size
from iris_kv.store.memory_versions import Held, MemoryVersions, is_over

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, Mapping


class MemoryStore:
    """Entries in dictionaries; every operation is one step, as nothing awaits inside it."""

    def __init__(self, clock: Clock) -> None:
        """Start empty."""
        self._clock = clock
        self._entries: dict[Scope, dict[str, Entry]] = {scope: {} for scope in SCOPES}
        self._renewing: set[tuple[Scope, str]] = set()
        self._versions = MemoryVersions()
        self._id = uuid.uuid4().hex
        self._changes: list[Change] = []
        self._trimmed = 0
        self._changed = anyio.Event()
        self._counts: dict[str, dict[str, int]] = {}
        self._written: dict[Scope, Activity] = {}
        self._read: dict[Scope, Activity] = {}

    @property
    def origin(self) -> str:
        """Return the name of this store in the change feed."""
        return self._id

    async def head(self, scope: Scope, key: str) -> EntryInfo:
        """See `Store.head`."""
        return self._live(scope, key).info

    async def get(self, scope: Scope, key: str) -> Entry:
        """See `Store.get`."""
        entry = self._live(scope, key)
        now = self._clock.now_ms()
        self._read[scope] = Activity(at=now, by="memory")
        info = entry.info
        if (scope, key) in self._renewing and info.ttl_ms is not None and info.expires_at is not None:
            info = info.model_copy(update={"expires_at": max(info.expires_at, now + info.ttl_ms)})
            entry = Entry(info=info, value=entry.value)
            self._entries[scope][key] = entry
        return entry

    @asynccontextmanager
    async def open_value(self, scope: Scope, key: str) -> AsyncGenerator[HeldReader]:
        """See `Store.open_value`."""
        entry = await self.get(scope, key)
        yield HeldReader(entry.info, entry.value)

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
        """See `Store.put`."""
        request = PutRequest(scope, key, content_type, limits, provenance, ttl_ms, metadata or {}, if_digest)
        check_put(request)
        data = value if isinstance(value, bytes) else b"".join([chunk async for chunk in value])
        check_size(len(data), limits)
        return self._store(request, data, None)

    def _store(self, request: PutRequest, data: bytes, restored: Held | None) -> EntryInfo:
        scope, key, limits, now = request.scope, request.key, request.limits, self._clock.now_ms()
        old = self._unexpired(scope, key)
        check_expected(None if old is None else old.info, request.if_digest, scope, key)
        self._make_room(scope, key, len(data), limits)
        ttl = request.effective_ttl_ms
        if old is None and key in self._entries[scope]:
            self._versions.end_versions(scope, key)
        if restored is not None:
            self._versions.take_out(restored, revives=old is None)
        origin = old or (restored and restored.entry)
        before = [each.entry for each in self._versions.of(scope, key)] + [
            each for each in (old, restored and restored.entry) if each
        ]
        if old is not None:
            self._versions.replace(old, limits.keep, now)
        at = write_time(now, origin.info.created_at if origin else None)
        info = EntryInfo(
            scope=scope,
            key=key,
            digest=digest_of(data),
            size=len(data),
            content_type=request.content_type,
            created_at=origin.info.created_at if origin else now,
            updated_at=at,
            expires_at=None if ttl is None else at + ttl,
            ttl_ms=ttl,
            version=1 + max((each.info.version for each in before), default=0),
            metadata=dict(request.metadata),
            provenance=request.provenance,
        )
        self._entries[scope][key] = Entry(info=info, value=data)
        self._versions.make_room(scope, self._used(scope), limits.quota_bytes)
        (self._renewing.add if limits.renew else self._renewing.discard)((scope, key))
        self._note(scope, key, "create" if old is None else "update")
        return info

    async def delete(
        self, scope: Scope, key: str, *, if_digest: str | None = None, keep: Keep = KEEP_NOTHING
    ) -> EntryInfo:
        """See `Store.delete`."""
        names.check_key(key)
        check_if_digest(if_digest)
        info = self._live(scope, key).info
        check_expected(info, if_digest, scope, key)
        self._versions.delete(scope, [self._entries[scope].pop(key)], keep, self._clock.now_ms(), "delete")
        self._note(scope, key, "delete")
        return info

    async def clear(self, scope: Scope, *, keep: Keep = KEEP_NOTHING) -> Removed:
        """See `Store.clear`."""
        used = await self.usage(scope)
        now = self._clock.now_ms()
        live = [entry for entry in self._entries[scope].values() if not _is_expired(entry.info, now)]
        for key in set(self._entries[scope]) - {entry.info.key for entry in live}:
            self._versions.end_versions(scope, key)
        self._versions.delete(scope, live, keep, now, "clear")
        self._entries[scope].clear()
        self._note(scope, "", "clear")
        return Removed(entries=used.entries, bytes=used.bytes)

    async def history(self, scope: Scope, key: str) -> History:
        """See `Store.history`."""
        live = self._unexpired(scope, key)
        kept = self._kept(scope, key)
        if live is None and not kept:
            self._live(scope, key)
        return History(live=live and live.info, kept=tuple(each.version for each in kept))

    async def deleted(self, scope: Scope, *, cursor: str | None = None, limit: int = 100) -> KeptPage:
        """See `Store.deleted`."""
        check_page(limit, cursor or "")
        newest = {
            each.version.key: each.version for each in self._versions.all(scope) if each.version.replaced_by != "update"
        }
        found = [
            version
            for key, version in sorted(newest.items())
            if key > (cursor or "")
            and not is_over(version.kept_until, self._clock.now_ms())
            and self._unexpired(scope, key) is None
        ]
        return KeptPage(entries=tuple(found[:limit]), next_cursor=found[limit - 1].key if len(found) > limit else None)

    async def restore_entry(
        self, scope: Scope, key: str, version: int | None = None, *, limits: Limits, if_digest: str | None = None
    ) -> EntryInfo:
        """See `Store.restore_entry`."""
        names.check_key(key)
        check_if_digest(if_digest)
        kept = self._kept(scope, key)
        held = next((each for each in kept if version in (None, each.version.version)), None)
        if held is None:
            raise no_version(scope, key, version, [each.version.version for each in kept])
        check_size(held.version.size, limits)
        info = held.entry.info
        request = PutRequest(
            scope, key, info.content_type, limits, info.provenance, info.ttl_ms, info.metadata, if_digest
        )
        return self._store(request, held.entry.value, held)

    def _kept(self, scope: Scope, key: str) -> list[Held]:
        is_expired = key in self._entries[scope] and self._unexpired(scope, key) is None
        return [
            each
            for each in self._versions.of(scope, key)
            if not is_over(each.version.kept_until, self._clock.now_ms()) and not (is_expired and each.goes_with_entry)
        ]

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
        """See `Store.list`."""
        start, glob = Listing(prefix, cursor, limit, pattern).checked()
        now = self._clock.now_ms()
        keys = sorted(key for key in self._entries[scope] if key.startswith(start) and (not cursor or key > cursor))
        within = keys if pattern is None else keys[:MAX_COMPARED]
        found = [
            info
            for info in (self._entries[scope][key].info for key in within)
            if glob.matches(info.key) and (include_expired or not _is_expired(info, now))
        ]
        if len(found) > limit:
            return Page(entries=tuple(found[:limit]), next_cursor=found[limit - 1].key)
        return Page(entries=tuple(found), next_cursor=within[-1] if len(within) < len(keys) else None)

    async def latest(self, scope: Scope, limit: int, *, prefix: str = "", without: str = "") -> tuple[EntryInfo, ...]:
        """See `Store.latest`."""
        check_page(limit, prefix, without)
        now = self._clock.now_ms()
        live = [
            entry.info
            for key, entry in self._entries[scope].items()
            if key.startswith(prefix) and not (without and key.startswith(without)) and not _is_expired(entry.info, now)
        ]
        return tuple(sorted(live, key=lambda info: (-info.updated_at, info.key))[:limit])

    async def usage(self, scope: Scope) -> Usage:
        """See `Store.usage`."""
        entries = self._entries[scope].values()
        return Usage(
            entries=len(entries),
            bytes=sum(entry.info.size for entry in entries),
            kept=len(self._versions.all(scope)),
            kept_bytes=self._versions.size(scope),
        )

    async def collect(self, scope: Scope | None = None) -> Removed:
        """See `Store.collect`."""
        scopes = SCOPES if scope is None else (scope,)
        removed = [self._remove_expired(each) for each in scopes]
        for each in scopes:
            self._versions.end_due(each, self._clock.now_ms())
        self._trim_counts()
        return Removed(entries=sum(each.entries for each in removed), bytes=sum(each.bytes for each in removed))

    async def verify(self, scope: Scope | None = None) -> Verification:
        """See `Store.verify`."""
        used = [await self.usage(each) for each in (SCOPES if scope is None else (scope,))]
        return Verification(
            entries=sum(each.entries for each in used),
            bytes=sum(each.bytes for each in used),
            kept=sum(each.kept for each in used),
            damaged=(),
            usage_matches=True,
        )

    async def count(self, day: str, deltas: Mapping[str, int]) -> None:
        """See `Store.count`."""
        for name, n in deltas.items():
            days = self._counts.setdefault(name, {})
            days[day] = days.get(day, 0) + n

    async def counts(self, since: str) -> Mapping[str, Mapping[str, int]]:
        """See `Store.counts`."""
        recent = {name: {day: n for day, n in days.items() if day >= since} for name, days in self._counts.items()}
        return {name: days for name, days in recent.items() if days}

    async def workspace_id(self) -> str:
        """See `Store.workspace_id`."""
        return self._id

    async def activity(self, scope: Scope) -> tuple[Activity | None, Activity | None]:
        """See `Store.activity`."""
        return self._written.get(scope), self._read.get(scope)

    async def changes(self, after: str | None, limit: int = 1000) -> Changes:
        """See `Store.changes`."""
        check_page(limit)
        last = self._trimmed + len(self._changes)
        if after is None:
            return Changes(events=(), next=f"{self._id}:{last}", reset=False)
        known, _, number = after.rpartition(":")
        at = int(number) if number.isascii() and number.isdecimal() and len(number) < len(known) else -1
        if known != self._id or not self._trimmed <= at <= last:
            return Changes(events=(), next=f"{self._id}:{last}", reset=True)
        events = self._changes[at - self._trimmed :][:limit]
        return Changes(events=tuple(events), next=f"{self._id}:{at + len(events)}", reset=False)

    async def wait_for_change(self, after: str) -> None:
        """See `Store.wait_for_change`."""
        while after == f"{self._id}:{self._trimmed + len(self._changes)}":
            await self._changed.wait()

    async def aclose(self) -> None:
        """See `Store.aclose`."""

    def _live(self, scope: Scope, key: str) -> Entry:
        names.check_key(key)
        entry = self._entries[scope].get(key)
        if entry is None:
            raise not_found(scope, key)
        if entry.info.expires_at is not None and entry.info.expires_at <= self._clock.now_ms():
            raise expired(scope, key, entry.info.expires_at)
        return entry

    def _unexpired(self, scope: Scope, key: str) -> Entry | None:
        try:
            return self._live(scope, key)
        except IrisError:
            return None

    def _make_room(self, scope: Scope, key: str, size: int, limits: Limits) -> None:
        used = self._used_by_others(scope, key)
        if used + size > limits.quota_bytes:
            self._remove_expired(scope)
            used = self._used_by_others(scope, key)
        if used + size <= limits.quota_bytes:
            return
        raise QuotaExceededError(
            f"{key!r} has {size} bytes, and {scope} holds {used} of {limits.quota_bytes}",
            "the sum of a scope's values stays within its quota",
            "delete what is not needed any more",
        )

    def _used_by_others(self, scope: Scope, key: str) -> int:
        return sum(entry.info.size for name, entry in self._entries[scope].items() if name != key)

    def _used(self, scope: Scope) -> int:
        return sum(entry.info.size for entry in self._entries[scope].values())

    def _remove_expired(self, scope: Scope) -> Removed:
        now = self._clock.now_ms()
        gone = [
            entry.info
            for key, entry in self._entries[scope].items()
            if _is_expired(entry.info, now - (GRACE_MS if (scope, key) in self._renewing else 0))
        ]
        for info in gone:
            del self._entries[scope][info.key]
            self._versions.end_versions(scope, info.key)
            self._note(scope, info.key, "expire")
        return Removed(entries=len(gone), bytes=sum(info.size for info in gone))

    def _trim_counts(self) -> None:
        since = oldest_counted_day(self._clock.now_ms())
        held = [(day, n, name) for name, days in self._counts.items() for day, n in days.items() if day >= since]
        held.sort(key=lambda each: each[2])
        held.sort(key=lambda each: each[:2], reverse=True)
        counts: dict[str, dict[str, int]] = {}
        for day, n, name in held[:MAX_COUNTERS]:
            counts.setdefault(name, {})[day] = n
        self._counts = counts

    def _note(self, scope: Scope, key: str, op: Operation) -> None:
        self._changes.append(Change(scope=scope, key=key, op=op, origin=self._id))
        over = max(0, len(self._changes) - MAX_CHANGES)
        del self._changes[:over]
        self._trimmed += over
        if op != "expire":
            self._written[scope] = Activity(at=self._clock.now_ms(), by="memory")
        self._changed.set()
        self._changed = anyio.Event()


def _is_expired(info: EntryInfo, now: int) -> bool:
    return info.expires_at is not None and info.expires_at <= now
