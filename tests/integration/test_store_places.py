"""Caches in odd places: written from another kernel, or on a disk whose locks SQLite cannot trust."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from iris_kv.errors import UnavailableError

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
