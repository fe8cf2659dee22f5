"""Caches in odd places: written from another kernel, or on a disk whose locks SQLite cannot trust."""

from __future__ import annotations

import json
import os
import time
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from iris_kv.errors import BusyError, UnavailableError
from iris_kv.store.files import FileStore
from iris_kv.store.lock import WriteLock

STORE = Path(".iris/kv-cache/.store")


def sign(workspace: Path, age_s: float = 0, **changes: object) -> None:
    """Write into the lock file what another holder would, some seconds ago."""
    lock = workspace / STORE / "lock"
    record = json.dumps({"pid": 4711, "host": "devcontainer", "boot": "another", **changes})
    lock.write_text(record.ljust(255) + "\n")
    os.utime(lock, (time.time() - age_s,) * 2)


async def test_while_another_kernel_writes_this_side_only_reads(workspace, open_file_store, put):
    async with open_file_store() as store:
        await put(store, "k", b"value")
        sign(workspace)
        text = r"another machine or container, devcontainer, writes to this cache .*; run the server on one side only"
        with pytest.raises(UnavailableError, match=text):
            await put(store, "k", b"other")
        with pytest.raises(UnavailableError, match=text):
            await store.delete("task", "k")
        assert (await store.get("task", "k")).value == b"value"
        sign(workspace, age_s=1000)
        await put(store, "k", b"other")


@pytest.mark.parametrize("same", ["host", "boot"])
async def test_a_restarted_machine_and_another_container_of_this_kernel_are_no_other_kernel(
    workspace, open_file_store, put, same
):
    async with open_file_store() as store:
        await put(store, "k")
        own = json.loads((workspace / STORE / "lock").read_text())
        sign(workspace, **{same: own[same]})
        await put(store, "k", b"other")


async def test_who_closed_its_store_does_not_keep_another_kernel_out(workspace, open_file_store, put):
    async with open_file_store() as store:
        await put(store, "k")
        assert json.loads((workspace / STORE / "lock").read_text())["pid"] == os.getpid()
    assert json.loads((workspace / STORE / "lock").read_text()) == {}


# A disk that other machines may use


@pytest.fixture
def open_shared(workspace, clock):
    @asynccontextmanager
    async def opener(**options):
        store = await FileStore.open(workspace, clock=clock, durable=False, shared_disk=True, **options)
        async with aclosing(store):
            yield store

    return opener


def journals(workspace: Path) -> set[str]:
    return {path.name for path in (workspace / STORE).glob("index.db-*")}


async def test_on_a_shared_disk_no_memory_is_shared_and_everything_works(workspace, open_shared, put):
    async with open_shared() as store, open_shared() as other:
        for n in range(20):
            await put(store if n % 2 else other, f"k{n}", b"%d" % n)
        for n in range(20):
            assert (await (other if n % 2 else store).get("task", f"k{n}")).value == b"%d" % n
        await store.delete("task", "k0")
        await other.collect()
        assert (await store.repair()).problem is None
        verified = await other.verify()
        assert (verified.entries, verified.damaged, verified.usage_matches) == (19, (), True)
        assert journals(workspace) <= {"index.db-journal"}


async def test_a_cache_that_moves_to_a_shared_disk_and_back_stays_whole(workspace, open_file_store, open_shared, put):
    async with open_file_store() as store:
        await put(store, "k", b"one")
    async with open_shared() as store:
        assert (await store.get("task", "k")).value == b"one"
        await put(store, "k", b"two")
        assert journals(workspace) <= {"index.db-journal"}
    async with open_file_store() as store:
        assert (await store.get("task", "k")).value == b"two"
        await put(store, "k", b"three")
        assert "index.db-wal" in journals(workspace)


async def test_on_a_shared_disk_a_reader_waits_for_the_writer_and_says_for_whom(workspace, open_shared, put):
    async with open_shared(lock_timeout_s=0.1) as store:
        await put(store, "k", b"value")
        folder = os.open(workspace / STORE, os.O_RDONLY)
        with WriteLock(folder, 1).held(), pytest.raises(BusyError, match=f"process {os.getpid()} "):
            await store.get("task", "k")
        os.close(folder)
        assert (await store.get("task", "k")).value == b"value"
