"""What every store does: the one suite that runs unchanged over each backend."""

from __future__ import annotations

import unicodedata
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager

import anyio
import pytest

from iris_kv.errors import (
    ConflictError,
    ExpiredError,
    InvalidArgumentError,
    NotFoundError,
    QuotaExceededError,
    TooLargeError,
)
from iris_kv.model import (
    SCOPES,
    Activity,
    Change,
    Entry,
    History,
    Keep,
    KeptVersion,
    Limits,
    Provenance,
    Removed,
    Scope,
    Usage,
    Verification,
    digest_of,
)
from iris_kv.store.base import GRACE_MS, MAX_CHANGES, MAX_COMPARED, MAX_COUNTERS, MAX_DELETED, Store
from iris_kv.store.memory import MemoryStore

HOUR_MS = 3_600_000
NFC, NFD = unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é")
HOSTILE_KEYS = [
    *("../../etc/passwd", "/abs", "..", ".", "C:\\x", "_index.json", ".index.json", "a/b", "a_b", "a-b", "A-B", "CON"),
    *("con", "\U0001f600", NFC, NFD, " ", "a ", "%2e%2e", "a'b\"c", "-rf", "~", "*", "k" * 512, "ß" * 256),
]
OpenStore = Callable[[], AbstractAsyncContextManager[Store]]


@pytest.fixture(params=["memory", "file"])
def open_store(request, clock, open_file_store) -> OpenStore:
    @asynccontextmanager
    async def memory() -> AsyncGenerator[Store]:
        async with aclosing(MemoryStore(clock)) as store:
            yield store

    return memory if request.param == "memory" else open_file_store


async def everything(store: Store) -> list[object]:
    """Return all that can be asked of a store without changing it, for comparing before and after."""
    seen: list[object] = []
    for scope in SCOPES:
        page = await store.list(scope, limit=1000, include_expired=True)
        seen += [page, await store.usage(scope), (await store.activity(scope))[0]]
    return [*seen, (await store.changes(None)).next]


async def chunked(*chunks: bytes) -> AsyncGenerator[bytes]:
    for chunk in chunks:
        yield chunk


# Values


async def test_a_put_value_is_read_back_with_all_that_was_said_of_it(open_store, put, clock):
    async with open_store() as store:
        info = await put(store, "k", b"v1", content_type="text/markdown; charset=utf-8", ttl_ms=5, metadata={"a": "é"})

        assert info.model_dump() == {
            "scope": "task",
            "key": "k",
            "digest": digest_of(b"v1"),
            "size": 2,
            "content_type": "text/markdown; charset=utf-8",
            "created_at": clock.at_ms,
            "updated_at": clock.at_ms,
            "expires_at": clock.at_ms + 5,
            "ttl_ms": 5,
            "version": 1,
            "metadata": {"a": "é"},
            "provenance": {"author": "agent", "face": "mcp"},
        }
        assert await store.get("task", "k") == Entry(info=info, value=b"v1")
        assert await store.head("task", "k") == info


async def test_an_overwrite_counts_up_and_keeps_the_time_of_creation(open_store, put, clock):
    async with open_store() as store:
        first = await put(store, "k", b"one", metadata={"a": "1"}, ttl_ms=HOUR_MS)
        clock.move(1000)
        second = await put(store, "k", b"two!", content_type="application/json")

        assert (second.version, second.created_at, second.updated_at) == (2, first.created_at, clock.at_ms)
        assert (second.metadata, second.expires_at, second.content_type) == ({}, None, "application/json")
        assert (await store.get("task", "k")).value == b"two!"
        assert await store.usage("task") == Usage(entries=1, bytes=4)


async def test_only_an_entry_that_was_never_written_over_has_two_times_that_are_one(open_store, put, clock):
    async with open_store() as store:
        first, second = [await put(store, "k", value, ttl_ms=HOUR_MS) for value in (b"one", b"two")]
        found = (await store.get("task", "k")).info
        await store.delete("task", "k")
        third = await put(store, "k", b"three")

        assert first.created_at == first.updated_at == clock.at_ms
        assert (second.updated_at, second.expires_at) == (clock.at_ms + 1, clock.at_ms + 1 + HOUR_MS)
        assert found == second
        assert third.created_at == third.updated_at == clock.at_ms


async def test_a_clock_that_was_set_back_stops_nothing(open_store, put, clock):
    async with open_store() as store:
        await put(store, "k", b"one", ttl_ms=HOUR_MS)
        clock.move(-2 * HOUR_MS)
        info = await put(store, "k", b"two", ttl_ms=HOUR_MS)

        assert (info.version, info.updated_at, info.expires_at) == (2, clock.at_ms, clock.at_ms + HOUR_MS)
        assert (await store.get("task", "k")).value == b"two"
        assert await store.collect() == Removed(entries=0, bytes=0)


@pytest.mark.parametrize("value", [b"", b"\0\xff" * 3000, bytes(range(256)) * 2000], ids=["empty", "binary", "large"])
async def test_any_bytes_are_a_value(open_store, put, value):
    async with open_store() as store:
        await put(store, "k", value)
        assert (await store.get("task", "k")).value == value


async def test_chunks_are_joined(open_store, put):
    async with open_store() as store:
        info = await put(store, "k", chunked(b"ab", b"", b"cd" * 50_000))
        assert (await store.get("task", "k")).value == b"ab" + b"cd" * 50_000
        assert (info.size, info.digest) == (100_002, digest_of(b"ab" + b"cd" * 50_000))
        assert (await put(store, "none", chunked())).size == 0


async def test_chunks_that_fail_leave_everything_as_it_was(open_store, put):
    async def failing() -> AsyncGenerator[bytes]:
        yield b"half"
        raise RuntimeError

    async with open_store() as store:
        await put(store, "k", b"old")
        before = await everything(store)
        with pytest.raises(RuntimeError):
            await put(store, "k", failing())
        assert await everything(store) == before


async def test_a_cancelled_upload_leaves_everything_as_it_was(open_store, put):
    async with open_store() as store:
        await put(store, "k", b"old")
        before = await everything(store)
        with anyio.CancelScope() as scope:

            async def cancelling() -> AsyncGenerator[bytes]:
                yield b"half"
                scope.cancel()
                await anyio.lowlevel.checkpoint()
                yield b"never"

            await put(store, "k", cancelling())
        assert scope.cancelled_caught
        assert await everything(store) == before


async def test_a_reader_keeps_its_generation_while_the_entry_is_replaced(open_store, put):
    async with open_store() as store:
        info = await put(store, "k", b"0123456789")
        async with store.open_value("task", "k") as reader:
            await put(store, "k", b"other")
            await store.delete("task", "k")
            assert reader.info == info
            assert [await reader.read(*span) for span in ((0, 4), (4, 100), (10, 5), (99, 1), (3, 0))] == [
                b"0123",
                b"456789",
                b"",
                b"",
                b"",
            ]


async def test_what_is_not_there_is_not_found(open_store, put):
    async with open_store() as store:
        await put(store, "k", scope="project")
        for call in (store.head("task", "k"), store.get("task", "k"), store.delete("task", "k")):
            with pytest.raises(NotFoundError, match=r"not_found: no entry 'k' in task; .*; list the keys of task"):
                await call
        with pytest.raises(NotFoundError):
            async with store.open_value("task", "k"):
                pass


# Keys


async def test_hostile_keys_are_plain_keys_and_kept_apart(open_store, put):
    async with open_store() as store:
        for n, key in enumerate(HOSTILE_KEYS):
            await put(store, key, str(n).encode())
        assert [(await store.get("task", key)).value for key in HOSTILE_KEYS] == [
            str(n).encode() for n in range(len(HOSTILE_KEYS))
        ]
        page = await store.list("task", limit=1000)
        assert [info.key for info in page.entries] == sorted(HOSTILE_KEYS, key=str.encode)


@pytest.mark.parametrize("key", ["", "k" * 513, "ß" * 257, "\ud800", "a\0b", "a\nb", "\x7f", "\x85", "\t"])
async def test_refused_keys_are_refused_by_every_method_and_change_nothing(open_store, put, key):
    async with open_store() as store:
        await put(store, "k")
        before = await everything(store)
        for call in (put(store, key), store.get("task", key), store.head("task", key), store.delete("task", key)):
            with pytest.raises(InvalidArgumentError, match="the key "):
                await call
        with pytest.raises(InvalidArgumentError):
            async with store.open_value("task", key):
                pass
        assert await everything(store) == before


@pytest.mark.parametrize(
    "wrong",
    [
        {"content_type": ""},
        {"content_type": "text"},
        {"content_type": "text/plain\r\nX-Evil: 1"},
        {"content_type": "text/pläin"},
        {"content_type": "text/" + "x" * 200},
        {"ttl_ms": 0},
        {"ttl_ms": -1},
        {"ttl_ms": 1 << 62},
        {"ttl_ms": 1 << 80},
        {"default_ttl_ms": 1 << 62},
        {"metadata": {"a": "\ud800"}},
        {"metadata": {"\udfff": "a"}},
        {"metadata": {"a": "x" * 70_000}},
        {"if_digest": "sha256:"},
        {"if_digest": "s"},
        {"if_digest": "sha256:" + "0" * 15},
        {"if_digest": "sha256:" + "0" * 65},
        {"if_digest": "0" * 64},
    ],
    ids=str,
)
async def test_malformed_puts_are_refused_and_change_nothing(open_store, put, wrong):
    async with open_store() as store:
        await put(store, "k")
        before = await everything(store)
        for value in (b"new", chunked(b"new")):
            with pytest.raises(InvalidArgumentError):
                await put(store, "k", value, **wrong)
        assert await everything(store) == before


@pytest.mark.parametrize("wrong", [{"limit": 0}, {"limit": -1}, {"prefix": "\ud800"}, {"cursor": "\udc00"}], ids=str)
async def test_malformed_pages_are_refused(open_store, wrong):
    async with open_store() as store:
        with pytest.raises(InvalidArgumentError):
            await store.list("task", **wrong)
        if "limit" in wrong:
            for call in (store.latest("task", wrong["limit"]), store.changes(None, wrong["limit"])):
                with pytest.raises(InvalidArgumentError):
                    await call


# Compare and set


@pytest.mark.parametrize("length", [16, 17, 64])
async def test_a_write_over_the_expected_digest_happens(open_store, put, length):
    async with open_store() as store:
        await put(store, "k", b"one", if_digest="")
        info = await put(store, "k", b"two", if_digest=digest_of(b"one")[: 7 + length])
        assert info.version == 2
        assert (await store.delete("task", "k", if_digest=digest_of(b"two")[: 7 + length])) == info


async def test_a_write_over_another_digest_is_refused_and_changes_nothing(open_store, put):
    async with open_store() as store:
        await put(store, "k", b"one")
        before = await everything(store)
        other = digest_of(b"other")
        for call in (
            put(store, "k", b"two", if_digest=other),
            put(store, "k", b"two", if_digest=""),
            put(store, "k", chunked(b"two"), if_digest=other[:23]),
            put(store, "absent", b"two", if_digest=other),
            store.delete("task", "k", if_digest=other),
            store.delete("task", "k", if_digest=""),
        ):
            with pytest.raises(ConflictError, match=r"conflict: .*; .*; read the entry"):
                await call
        assert await everything(store) == before


async def test_an_expired_entry_counts_as_absent_for_compare_and_set(open_store, put, clock):
    async with open_store() as store:
        await put(store, "k", b"one", ttl_ms=HOUR_MS)
        clock.move(HOUR_MS)
        with pytest.raises(ConflictError, match="does not exist"):
            await put(store, "k", b"two", if_digest=digest_of(b"one"))
        assert (await put(store, "k", b"two", if_digest="")).version == 1


# Expiry


async def test_an_entry_is_there_until_its_ttl_has_run_out(open_store, put, clock):
    async with open_store() as store:
        await put(store, "k", ttl_ms=HOUR_MS, default_ttl_ms=1)
        await put(store, "scope", default_ttl_ms=HOUR_MS)
        await put(store, "ever")
        clock.move(HOUR_MS - 1)
        assert [info.key for info in (await store.list("task")).entries] == ["ever", "k", "scope"]
        clock.move(1)
        for call in (store.head("task", "k"), store.get("task", "scope"), store.delete("task", "k")):
            with pytest.raises(ExpiredError, match=r"expired: .* expired at 2026-01-01T01:00:00.000Z; "):
                await call
        assert [info.key for info in (await store.list("task")).entries] == ["ever"]
        assert [info.key for info in await store.latest("task", 9)] == ["ever"]
        assert len((await store.list("task", include_expired=True)).entries) == 3
        assert await store.usage("task") == Usage(entries=3, bytes=15)


async def test_expired_entries_are_collected(open_store, put, clock):
    async with open_store() as store:
        await put(store, "k", b"12", ttl_ms=HOUR_MS)
        await put(store, "p", b"345", scope="project", ttl_ms=HOUR_MS)
        await put(store, "ever")
        clock.move(HOUR_MS)
        assert await store.collect("project") == Removed(entries=1, bytes=3)
        assert await store.collect() == Removed(entries=1, bytes=2)
        assert await store.collect() == Removed(entries=0, bytes=0)
        with pytest.raises(NotFoundError):
            await store.get("task", "k")
        assert await store.usage("task") == Usage(entries=1, bytes=5)


async def test_a_put_over_an_expired_entry_starts_anew(open_store, put, clock):
    async with open_store() as store:
        await put(store, "k", b"one", ttl_ms=HOUR_MS)
        clock.move(HOUR_MS)
        info = await put(store, "k", b"two", ttl_ms=HOUR_MS)
        assert (info.version, info.created_at) == (1, clock.at_ms)
        assert await store.usage("task") == Usage(entries=1, bytes=3)


async def test_reading_renews_where_the_scope_says_so(open_store, put, clock):
    async with open_store() as store:
        await put(store, "renewed", renew=True, default_ttl_ms=HOUR_MS)
        await put(store, "fixed", default_ttl_ms=HOUR_MS)
        clock.move(HOUR_MS - 1)
        entry = await store.get("task", "renewed")
        assert entry.info.expires_at == clock.at_ms + HOUR_MS
        await store.get("task", "fixed")
        clock.move(HOUR_MS - 1)
        assert (await store.head("task", "renewed")).expires_at == entry.info.expires_at
        with pytest.raises(ExpiredError):
            await store.head("task", "fixed")
        async with store.open_value("task", "renewed") as reader:
            assert reader.info.expires_at == clock.at_ms + HOUR_MS
        await store.collect()
        assert [info.key for info in (await store.list("task", include_expired=True)).entries] == ["renewed"]


async def test_looking_does_not_renew(open_store, put, clock):
    async with open_store() as store:
        await put(store, "k", renew=True, default_ttl_ms=HOUR_MS)
        clock.move(HOUR_MS - 1)
        await store.head("task", "k")
        await store.list("task")
        await store.verify()
        clock.move(1)
        with pytest.raises(ExpiredError):
            await store.get("task", "k")


async def test_a_renewable_entry_is_collected_only_after_its_grace(open_store, put, clock):
    async with open_store() as store:
        await put(store, "k", renew=True, default_ttl_ms=HOUR_MS)
        clock.move(HOUR_MS + GRACE_MS - 1)
        assert (await store.collect()).entries == 0
        with pytest.raises(ExpiredError):
            await store.get("task", "k")
        clock.move(1)
        assert (await store.collect()).entries == 1


# Quota


async def test_a_value_over_the_limit_is_refused_and_changes_nothing(open_store, put):
    async with open_store() as store:
        await put(store, "k", b"old", max_value=3)
        before = await everything(store)
        for value in (b"four", chunked(b"fo", b"ur")):
            with pytest.raises(TooLargeError, match=r"too_large: .*at most 3 bytes"):
                await put(store, "k", value, max_value=3)
        assert await everything(store) == before


async def test_the_quota_is_the_sum_of_a_scopes_values_and_never_passed(open_store, put):
    async with open_store() as store:
        await put(store, "a", b"x" * 60, quota=100)
        await put(store, "b", b"x" * 40, quota=100)
        await put(store, "other", b"x" * 100, scope="project", quota=100)
        before = await everything(store)
        for key, value in (("c", b"x"), ("a", b"x" * 61), ("a", chunked(b"x" * 61))):
            with pytest.raises(QuotaExceededError, match=r"quota_exceeded: .* of 100; .*; delete "):
                await put(store, key, value, quota=100)
        assert await everything(store) == before
        assert (await put(store, "a", b"x" * 59, quota=100)).version == 2
        assert await store.usage("task") == Usage(entries=2, bytes=99)


async def test_expired_entries_make_room_before_a_put_is_refused(open_store, put, clock):
    async with open_store() as store:
        await put(store, "old", b"x" * 90, quota=100, ttl_ms=HOUR_MS)
        await put(store, "live", b"x" * 10, quota=100)
        clock.move(HOUR_MS)
        await put(store, "new", b"x" * 50, quota=100)
        assert await store.usage("task") == Usage(entries=2, bytes=60)
        with pytest.raises(QuotaExceededError, match="holds 60 of 100"):
            await put(store, "more", b"x" * 41, quota=100)


# Lists


async def test_pages_follow_one_another_in_byte_order_without_a_gap(open_store, put):
    keys = ["a", "a!", "a/1", "a/2", "ab", "b", "z", "é", "\uffff", "\U00010000"]
    async with open_store() as store:
        for key in reversed(keys):
            await put(store, key)
        for limit in (1, 2, 3, 9, 10, 11):
            found: list[str] = []
            cursor = None
            while True:
                page = await store.list("task", cursor=cursor, limit=limit)
                assert 0 < len(page.entries) <= limit
                found += [info.key for info in page.entries]
                cursor = page.next_cursor
                if cursor is None:
                    break
            assert found == keys
        assert [info.key for info in (await store.list("task", prefix="a/")).entries] == ["a/1", "a/2"]
        page = await store.list("task", prefix="a", limit=2)
        rest = await store.list("task", prefix="a", limit=3, cursor=page.next_cursor)
        assert [info.key for info in (*page.entries, *rest.entries)] == keys[:5]
        assert rest.next_cursor is None
        assert (await store.list("task", prefix="none")).entries == ()


async def test_a_full_page_followed_by_expired_entries_only_is_the_last(open_store, put, clock):
    async with open_store() as store:
        for key in ("a", "b"):
            await put(store, key)
        for n in range(5):
            await put(store, f"x{n}", ttl_ms=1)
        clock.move(1)
        page = await store.list("task", limit=2)
        assert ([info.key for info in page.entries], page.next_cursor) == (["a", "b"], None)
        await put(store, "z")
        page = await store.list("task", limit=2)
        assert page.next_cursor is not None
        assert [info.key for info in (await store.list("task", cursor=page.next_cursor)).entries] == ["z"]


async def test_the_latest_come_newest_first(open_store, put, clock):
    async with open_store() as store:
        for key in ("b", "a", "c"):
            await put(store, key)
        await put(store, "gone", ttl_ms=2)
        clock.move(1)
        await put(store, "b")
        clock.move(1)
        assert [info.key for info in await store.latest("task", 3)] == ["b", "a", "c"]
        assert [info.key for info in await store.latest("task", 1)] == ["b"]
        assert await store.latest("project", 5) == ()


@pytest.mark.parametrize(
    ("prefix", "without", "keys"),
    [
        ("", "", ["é/2", "e", "a%", "a_b", "a/1", "b"]),
        ("a", "", ["a%", "a_b", "a/1"]),
        ("", "a", ["é/2", "e", "b"]),
        ("a", "a_", ["a%", "a/1"]),
        ("é", "", ["é/2"]),
        ("", "é", ["e", "a%", "a_b", "a/1", "b"]),
        ("a", "a", []),
        ("A", "a%%", []),
    ],
)
async def test_the_latest_are_picked_by_how_their_keys_start(open_store, put, clock, prefix, without, keys):
    async with open_store() as store:
        for key in ("b", "a/1", "a_b", "a%", "e", "é/2"):
            await put(store, key)
            clock.move(1)
        await put(store, "a/gone", ttl_ms=1)
        clock.move(1)

        assert [info.key for info in await store.latest("task", 9, prefix=prefix, without=without)] == keys
        assert [info.key for info in await store.latest("task", 1, prefix=prefix, without=without)] == keys[:1]
        for wrong in ({"prefix": "\ud800"}, {"without": "\ud800"}):
            with pytest.raises(InvalidArgumentError, match="lone surrogate"):
                await store.latest("task", 1, **wrong)


# Deleting


async def test_a_deleted_entry_is_returned_and_gone(open_store, put):
    async with open_store() as store:
        info = await put(store, "k")
        assert await store.delete("task", "k") == info
        with pytest.raises(NotFoundError):
            await store.get("task", "k")
        assert await store.usage("task") == Usage(entries=0, bytes=0)
        assert (await put(store, "k")).version == 1


async def test_a_clear_empties_one_scope(open_store, put, clock):
    async with open_store() as store:
        await put(store, "a", b"123")
        await put(store, "b", b"4", ttl_ms=1)
        await put(store, "p", scope="project")
        clock.move(1)
        assert await store.clear("task") == Removed(entries=2, bytes=4)
        assert await store.clear("task") == Removed(entries=0, bytes=0)
        assert (await store.list("task", include_expired=True)).entries == ()
        assert await store.usage("project") == Usage(entries=1, bytes=5)


# Bookkeeping


async def test_a_sound_store_is_verified(open_store, put, clock):
    async with open_store() as store:
        await put(store, "a", b"123")
        await put(store, "b", b"4", scope="project", ttl_ms=1)
        clock.move(1)
        assert await store.verify() == Verification(entries=2, bytes=4, damaged=(), usage_matches=True)
        assert (await store.verify("project")).entries == 1


async def test_counters_add_up_by_name_and_day(open_store):
    async with open_store() as store:
        await store.count("2026-01-01", {"hit": 1, "miss": 2})
        await store.count("2026-01-02", {"hit": 5})
        await store.count("2026-01-02", {"hit": 1})
        await store.count("2026-01-03", {})
        assert await store.counts("2026-01-02") == {"hit": {"2026-01-02": 6}}
        assert await store.counts("2025") == {"hit": {"2026-01-01": 1, "2026-01-02": 6}, "miss": {"2026-01-01": 2}}


async def test_collection_keeps_the_counters_of_ninety_days(open_store, clock):
    async with open_store() as store:
        for day in ("2025-10-03", "2025-10-04", "2025-10-05", "2026-01-01"):
            await store.count(day, {"hit": 1})
        await store.collect("task")
        ninety_days = await store.counts("")
        clock.move(24 * HOUR_MS)
        await store.collect()

        assert sorted(ninety_days["hit"]) == ["2025-10-04", "2025-10-05", "2026-01-01"]
        assert sorted((await store.counts(""))["hit"]) == ["2025-10-05", "2026-01-01"]


async def test_collection_keeps_a_bounded_number_of_counters_of_the_newest_days_the_highest(open_store, clock):
    half = MAX_COUNTERS // 2
    async with open_store() as store:
        await store.count("2025-12-30", {f"old {n:06}": 1 for n in range(half)})
        await store.count("2026-01-01", {f"new {n:06}": 1 for n in range(half + 2)})
        await store.count("2025-12-30", {"old and often": 2})
        await store.collect()
        kept = await store.counts("")

        assert len(kept) == MAX_COUNTERS
        assert "old and often" in kept
        assert sum(name.startswith("new") for name in kept) == half + 2
        assert f"old {half - 4:06}" in kept
        assert f"old {half - 3:06}" not in kept


async def test_the_workspace_id_is_32_hex_digits_and_the_feeds(open_store):
    async with open_store() as store:
        found = await store.workspace_id()

        assert len(bytes.fromhex(found)) == 16
        assert (await store.changes(None)).next.startswith(f"{found}:")


async def test_activity_tells_the_last_write_and_the_last_read(open_store, put, clock):
    async with open_store() as store:
        assert await store.activity("task") == (None, None)
        await put(store, "k")
        first_ms = clock.at_ms
        clock.move(5)
        await store.get("task", "k")
        written, read = await store.activity("task")
        assert written is not None
        assert read == Activity(at=clock.at_ms, by=written.by)
        assert written.at == first_ms
        clock.move(5)
        await store.delete("task", "k")
        assert (await store.activity("task"))[0] == Activity(at=clock.at_ms, by=written.by)


# Changes


async def test_every_change_is_told_in_order(open_store, put, clock):
    async with open_store() as store:
        start = await store.changes(None)
        assert (start.events, start.reset) == ((), False)
        await put(store, "a")
        await put(store, "a", scope="project", ttl_ms=1)
        await store.delete("task", "a")
        clock.move(1)
        await store.collect()
        await store.clear("task")
        made = [
            ("task", "a", "create"),
            ("project", "a", "create"),
            ("task", "a", "delete"),
            ("project", "a", "expire"),
        ]
        expected = tuple(
            Change(scope=scope, key=key, op=op, origin=store.origin)
            for scope, key, op in [*made, ("task", "", "clear")]
        )
        changes = await store.changes(start.next)
        assert (changes.events, changes.reset) == (expected, False)
        first = await store.changes(start.next, limit=2)
        assert first.events == expected[:2]
        rest = await store.changes(first.next)
        assert (rest.events, rest.next) == (expected[2:], changes.next)
        assert (await store.changes(rest.next)).events == ()


@pytest.mark.parametrize("position", ["", "x", ":", "other:1", "::", ":-1", "other:" + "9" * 30, "٣"])
async def test_a_position_of_another_feed_is_reset(open_store, put, position):
    async with open_store() as store:
        await put(store, "k")
        changes = await store.changes(position)
        assert (changes.events, changes.reset) == ((), True)
        assert changes.next == (await store.changes(None)).next
        with anyio.fail_after(5):
            await store.wait_for_change(position)


async def test_a_position_ahead_of_the_feed_is_reset(open_store):
    async with open_store() as store:
        feed = (await store.changes(None)).next.rpartition(":")[0]
        for number in ("999", "9" * 18, "9" * 40, "-1", "x", "٣"):
            assert (await store.changes(f"{feed}:{number}")).reset


async def test_a_trimmed_position_is_reset(open_store):
    async with open_store() as store:
        old = (await store.changes(None)).next
        await store.clear("task")
        kept = (await store.changes(None)).next
        for _ in range(MAX_CHANGES):
            await store.clear("task")
        await store.collect()
        assert (await store.changes(old)).reset
        changes = await store.changes(kept, limit=MAX_CHANGES + 5)
        assert (changes.reset, len(changes.events)) == (False, MAX_CHANGES)


async def test_a_waiter_wakes_at_the_next_change(open_store, put):
    async with open_store() as store:
        position = (await store.changes(None)).next
        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(store.wait_for_change, position)
                await anyio.lowlevel.checkpoint()
                await put(store, "k")
            await store.wait_for_change(position)
        changes = await store.changes(position)
        assert [change.key for change in changes.events] == ["k"]


async def test_a_waiter_waits_while_nothing_changes(open_store, put):
    async with open_store() as store:
        await put(store, "k")
        position = (await store.changes(None)).next
        await store.get("task", "k")
        with anyio.move_on_after(0.01) as scope:
            await store.wait_for_change(position)
        assert scope.cancelled_caught


async def test_twenty_puts_at_once_all_arrive(open_store, put):
    async with open_store() as store:
        async with anyio.create_task_group() as tasks:
            for n in range(20):
                tasks.start_soon(lambda n=n: put(store, f"k{n}", b"x" * n))
        assert await store.usage("task") == Usage(entries=20, bytes=sum(range(20)))
        assert await store.verify() == Verification(entries=20, bytes=190, damaged=(), usage_matches=True)


async def test_one_of_many_creators_wins(open_store, put):
    won: list[bytes] = []

    async def create(store: Store, value: bytes) -> None:
        try:
            await put(store, "k", value, if_digest="")
        except ConflictError:
            return
        won.append(value)

    async with open_store() as store:
        async with anyio.create_task_group() as tasks:
            for n in range(10):
                tasks.start_soon(create, store, str(n).encode())
        assert won == [(await store.get("task", "k")).value]


async def test_provenance_is_kept(open_store):
    async with open_store() as store:
        limits = Limits(quota_bytes=10, max_value_bytes=10, ttl_ms=None, renew=False)
        by = Provenance(author="canonical", face="seeder")
        await store.put("system", "k", b"v", content_type="text/plain", limits=limits, provenance=by)
        assert (await store.head("system", "k")).provenance == by


# Patterns


async def test_a_pattern_picks_keys_and_pages_follow_one_another(open_store, put):
    keys = ["a.md", "b.txt", "c.md", "d.md", "notes/a.md", "é.md"]
    async with open_store() as store:
        for key in keys:
            await put(store, key)
        for pattern, wanted in (("*.md", keys[:1] + keys[2:]), ("notes/*", ["notes/a.md"]), ("[ab].*", keys[:2])):
            for limit in (1, 2, 9):
                found: list[str] = []
                cursor = None
                while True:
                    page = await store.list("task", cursor=cursor, limit=limit, pattern=pattern)
                    found += [info.key for info in page.entries]
                    cursor = page.next_cursor
                    if cursor is None:
                        break
                assert found == wanted
        assert [info.key for info in (await store.list("task", prefix="no", pattern="*.md")).entries] == ["notes/a.md"]
        assert (await store.list("task", prefix="x", pattern="a*")).entries == ()
        assert (await store.list("task", pattern="")).entries == ()


async def test_a_page_with_a_pattern_compares_a_bounded_number_of_keys(open_store, put):
    async with open_store() as store:
        for n in range(MAX_COMPARED):
            await put(store, f"k{n:05}", b"")
        await put(store, "z.md", b"")
        first = await store.list("task", pattern="*.md")
        assert first.entries == ()
        assert first.next_cursor is not None
        rest = await store.list("task", pattern="*.md", cursor=first.next_cursor)
        assert [info.key for info in rest.entries] == ["z.md"]
        assert rest.next_cursor is None
        assert [info.key for info in (await store.list("task", pattern="z*")).entries] == ["z.md"]


# History and undo

KEPT = Keep(versions=3, deleted_ms=24 * HOUR_MS)


def limits_of(*, quota: int = 10_000_000, max_value: int = 1_000_000, ttl_ms: int | None = None) -> Limits:
    return Limits(quota_bytes=quota, max_value_bytes=max_value, ttl_ms=ttl_ms, renew=False, keep=KEPT)


async def versions_of(store: Store, key: str, scope: Scope = "task") -> list[int]:
    return [each.version for each in (await store.history(scope, key)).kept]


async def test_a_replaced_value_is_kept_with_all_that_was_said_of_it(open_store, put, clock):
    async with open_store() as store:
        first = await put(store, "k", b"one", metadata={"a": "1"}, content_type="text/markdown", ttl_ms=HOUR_MS)
        clock.move(5)
        second = await put(store, "k", b"two!", keep=KEPT)

        history = await store.history("task", "k")

        kept = KeptVersion(**dict(first), replaced_at=clock.at_ms, replaced_by="update", kept_until=None)
        assert history == History(live=second, kept=(kept,))
        assert await store.usage("task") == Usage(entries=1, bytes=4, kept=1, kept_bytes=3)


async def test_the_newest_versions_are_kept_as_many_as_asked_for(open_store, put):
    async with open_store() as store:
        for n in range(6):
            await put(store, "k", b"x" * n, keep=KEPT)
        assert await versions_of(store, "k") == [5, 4, 3]
        await put(store, "k", b"", keep=Keep(versions=1))
        assert await versions_of(store, "k") == [6]
        await put(store, "k", b"")
        assert await store.history("task", "k") == History(live=await store.head("task", "k"), kept=())
        assert await store.usage("task") == Usage(entries=1, bytes=0)


async def test_a_restored_version_is_what_it_was_but_its_times_and_number(open_store, put, clock):
    async with open_store() as store:
        first = await put(store, "k", b"one", metadata={"a": "1"}, content_type="text/markdown", ttl_ms=HOUR_MS)
        clock.move(HOUR_MS + 5)
        assert await versions_of_nothing(store, "k") == "expired"
        first = await put(store, "k", b"one", metadata={"a": "1"}, content_type="text/markdown", ttl_ms=HOUR_MS)
        clock.move(5)
        await put(store, "k", b"two!", keep=KEPT)
        clock.move(2 * HOUR_MS)

        restored = await store.restore_entry("task", "k", 1, limits=limits_of())

        times = {"updated_at": clock.at_ms, "expires_at": clock.at_ms + HOUR_MS, "version": 3}
        assert restored == first.model_copy(update=times)
        assert await store.get("task", "k") == Entry(info=restored, value=b"one")
        assert await versions_of(store, "k") == [2]
        assert await store.usage("task") == Usage(entries=1, bytes=3, kept=1, kept_bytes=4)
        back = await store.restore_entry("task", "k", limits=limits_of())
        assert ((await store.get("task", "k")).value, back.version) == (b"two!", 4)
        assert await versions_of(store, "k") == [3]


async def versions_of_nothing(store: Store, key: str) -> str:
    with pytest.raises((NotFoundError, ExpiredError)) as caught:
        await store.history("task", key)
    return caught.value.code


async def test_a_deleted_entry_can_be_restored_until_its_time_is_over(open_store, put, clock):
    async with open_store() as store:
        await put(store, "k", b"one", keep=KEPT)
        live = await put(store, "k", b"two!", keep=KEPT)
        await store.delete("task", "k", keep=KEPT)
        until = clock.at_ms + 24 * HOUR_MS
        deleted = KeptVersion(**dict(live), replaced_at=clock.at_ms, replaced_by="delete", kept_until=until)

        assert await store.usage("task") == Usage(entries=0, bytes=0, kept=2, kept_bytes=7)
        assert (await store.deleted("task")).entries == (deleted,)
        history = await store.history("task", "k")
        assert (history.live, history.kept[0], history.kept[1].kept_until) == (None, deleted, until)
        clock.move(24 * HOUR_MS - 1)
        await store.collect()
        restored = await store.restore_entry("task", "k", limits=limits_of())
        assert (restored.version, restored.created_at) == (3, live.created_at)
        assert (await store.get("task", "k")).value == b"two!"
        history = await store.history("task", "k")
        assert [(each.version, each.kept_until) for each in history.kept] == [(1, None)]
        assert (await store.deleted("task")).entries == ()

        await store.delete("task", "k", keep=KEPT)
        clock.move(24 * HOUR_MS)
        assert (await store.deleted("task")).entries == ()
        with pytest.raises(
            NotFoundError, match=r"not_found: no version of 'k' in task is kept; nothing is kept of it; "
        ):
            await store.restore_entry("task", "k", limits=limits_of())
        assert await versions_of_nothing(store, "k") == "not_found"
        await store.collect()
        assert await store.usage("task") == Usage(entries=0, bytes=0)
        assert (await put(store, "k")).version == 1


async def test_versions_count_on_behind_what_is_kept_of_a_deleted_entry(open_store, put):
    async with open_store() as store:
        await put(store, "k", b"one")
        await store.delete("task", "k", keep=KEPT)
        again = await put(store, "k", b"two", keep=KEPT)
        assert again.version == 2
        await put(store, "k", b"three", keep=KEPT)
        assert await versions_of(store, "k") == [2, 1]
        await store.restore_entry("task", "k", 1, limits=limits_of())
        assert (await store.get("task", "k")).value == b"one"
        for n in range(9):
            await put(store, "k", bytes(n), keep=KEPT)
        await store.delete("task", "k", keep=KEPT)
        await put(store, "k", b"new", keep=KEPT)
        for n in range(9):
            await put(store, "k", bytes(n), keep=KEPT)
        assert sum(each.replaced_by == "delete" for each in (await store.history("task", "k")).kept) == 1


async def test_a_key_that_is_deleted_again_and_again_keeps_a_bounded_number(open_store, put):
    async with open_store() as store:
        for _ in range(MAX_DELETED + 5):
            await put(store, "k", b"x", keep=KEPT)
            await store.delete("task", "k", keep=KEPT)
        assert (await store.usage("task")).kept == MAX_DELETED
        for _ in range(MAX_DELETED + 5):
            await put(store, "k", b"x", keep=KEPT)
            await store.clear("task", keep=KEPT)
        assert (await store.usage("task")).kept == MAX_DELETED


async def test_a_clear_can_be_undone_entry_by_entry_but_not_for_what_was_expired(open_store, put, clock):
    async with open_store() as store:
        for key in ("a", "b", "c"):
            await put(store, key, key.encode(), keep=KEPT)
        await put(store, "a", b"a2", keep=KEPT)
        await put(store, "gone", b"expired", ttl_ms=1)
        await put(store, "renewed", b"r", renew=True, ttl_ms=2, keep=KEPT)
        clock.move(1)
        await store.get("task", "renewed")
        clock.move(1)
        assert await store.clear("task", keep=KEPT) == Removed(entries=5, bytes=12)

        page = await store.deleted("task", limit=3)
        rest = await store.deleted("task", limit=3, cursor=page.next_cursor)
        assert [(each.key, each.replaced_by) for each in (*page.entries, *rest.entries)] == [
            (key, "clear") for key in ("a", "b", "c", "renewed")
        ]
        assert rest.next_cursor is None
        assert await versions_of_nothing(store, "gone") == "not_found"
        for key in ("a", "b", "c"):
            await store.restore_entry("task", key, limits=limits_of())
        assert [(await store.get("task", key)).value for key in ("a", "b", "c")] == [b"a2", b"b", b"c"]
        assert await versions_of(store, "a") == [1]


async def test_what_expired_is_not_kept(open_store, put, clock):
    async with open_store() as store:
        await put(store, "k", b"one", keep=KEPT)
        await put(store, "k", b"two", ttl_ms=HOUR_MS, keep=KEPT)
        await put(store, "over", b"one", ttl_ms=HOUR_MS, keep=KEPT)
        clock.move(HOUR_MS + 1)
        assert await versions_of_nothing(store, "k") == "expired"
        with pytest.raises(NotFoundError, match="nothing is kept"):
            await store.restore_entry("task", "k", 1, limits=limits_of())
        over = await put(store, "over", b"two", keep=KEPT)
        assert (await store.history("task", "over"), over.version) == (History(live=over, kept=()), 1)
        assert await store.collect() == Removed(entries=1, bytes=3)
        assert await store.usage("task") == Usage(entries=1, bytes=3)


async def test_nothing_is_kept_where_that_is_turned_off(open_store, put):
    async with open_store() as store:
        for key in ("a", "b"):
            await put(store, key, b"one", keep=KEPT)
            await put(store, key, b"two", keep=KEPT)
        await store.delete("task", "a", keep=KEPT)
        await put(store, "a", b"three", keep=KEPT)
        await store.delete("task", "a")
        assert await versions_of_nothing(store, "a") == "not_found"
        await put(store, "c", b"one", keep=KEPT)
        await store.delete("task", "c", keep=KEPT)
        await store.clear("task")
        assert await versions_of_nothing(store, "c") == "not_found"
        assert await versions_of_nothing(store, "b") == "not_found"
        assert await store.usage("task") == Usage(entries=0, bytes=0)


async def test_kept_versions_count_in_the_quota_and_make_room_the_oldest_first(open_store, put, clock):
    async with open_store() as store:
        await put(store, "a", b"x" * 30, quota=100, keep=KEPT)
        await put(store, "b", b"x" * 30, quota=100, keep=KEPT)
        await store.delete("task", "a", keep=KEPT)
        await put(store, "b", b"y" * 30, quota=100, keep=KEPT)
        assert await store.usage("task") == Usage(entries=1, bytes=30, kept=2, kept_bytes=60)
        await put(store, "expiring", b"", quota=100, ttl_ms=1)
        clock.move(1)
        await put(store, "c", b"x" * 20, quota=100, keep=KEPT)
        assert await versions_of_nothing(store, "a") == "not_found"
        assert await versions_of(store, "b") == [1]
        assert await store.usage("task") == Usage(entries=3, bytes=50, kept=1, kept_bytes=30)
        before = await everything(store)
        with pytest.raises(QuotaExceededError):
            await put(store, "d", b"x" * 51, quota=100, keep=KEPT)
        after = await everything(store)
        assert [each for each in after if isinstance(each, Usage)][3].kept == 1
        assert before[-1] != after[-1], "the expired entry went"
        await put(store, "d", b"x" * 50, quota=100, keep=KEPT)
        assert await store.usage("task") == Usage(entries=3, bytes=100)
        await put(store, "d", b"y" * 50, quota=100, keep=KEPT)
        assert await store.usage("task") == Usage(entries=3, bytes=100)


async def test_a_restore_is_checked_as_a_put_is_and_a_refused_one_changes_nothing(open_store, put):
    async with open_store() as store:
        await put(store, "k", b"one", keep=KEPT)
        await put(store, "k", b"two!", keep=KEPT)
        await put(store, "other", b"x" * 50, keep=KEPT)
        before = [*await everything(store), await store.history("task", "k")]
        for error, arguments in (
            (ConflictError, {"if_digest": digest_of(b"one")}),
            (ConflictError, {"if_digest": ""}),
            (InvalidArgumentError, {"if_digest": "x"}),
            (TooLargeError, {"limits": limits_of(max_value=2)}),
            (QuotaExceededError, {"limits": limits_of(quota=52)}),
            (NotFoundError, {"version": 2}),
            (NotFoundError, {"version": 9}),
            (NotFoundError, {"version": -1}),
        ):
            with pytest.raises(error):
                await store.restore_entry("task", "k", **{"limits": limits_of(), **arguments})
        with pytest.raises(NotFoundError, match=r"no version 9 of 'k' in task is kept; kept are 1; take one of them"):
            await store.restore_entry("task", "k", 9, limits=limits_of())
        assert [*await everything(store), await store.history("task", "k")] == before
        restored = await store.restore_entry("task", "k", limits=limits_of(quota=57), if_digest=digest_of(b"two!")[:23])
        assert restored.digest == digest_of(b"one")
        await store.delete("task", "k", keep=KEPT)
        await store.restore_entry("task", "k", limits=limits_of(), if_digest="")


@pytest.mark.parametrize("key", ["", "k" * 513, "\ud800", "a\0b"])
async def test_refused_keys_have_no_history(open_store, key):
    async with open_store() as store:
        for call in (store.history("task", key), store.restore_entry("task", key, limits=limits_of())):
            with pytest.raises(InvalidArgumentError, match="the key "):
                await call
        for wrong in ({"limit": 0}, {"cursor": "\ud800"}):
            with pytest.raises(InvalidArgumentError):
                await store.deleted("task", **wrong)


async def test_a_restore_is_told_as_a_write(open_store, put):
    async with open_store() as store:
        await put(store, "k", b"one", keep=KEPT)
        await put(store, "k", b"two", keep=KEPT)
        start = (await store.changes(None)).next
        await store.restore_entry("task", "k", limits=limits_of())
        await store.delete("task", "k", keep=KEPT)
        await store.restore_entry("task", "k", limits=limits_of())
        assert [change.op for change in (await store.changes(start)).events] == ["update", "delete", "create"]


async def test_kept_versions_are_verified_and_survive_collection(open_store, put):
    async with open_store() as store:
        await put(store, "a", b"one", keep=KEPT)
        await put(store, "a", b"two", keep=KEPT)
        await put(store, "b", b"1", keep=KEPT)
        await store.delete("task", "b", keep=KEPT)
        await store.collect()
        assert await store.verify() == Verification(entries=1, bytes=3, kept=2, damaged=(), usage_matches=True)
        await store.restore_entry("task", "b", limits=limits_of())
        await store.restore_entry("task", "a", limits=limits_of())
        assert [(await store.get("task", key)).value for key in ("a", "b")] == [b"one", b"1"]
