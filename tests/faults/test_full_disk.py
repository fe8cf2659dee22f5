"""A disk with little room, and one with none: what was stored stays, and deleting and collecting make room."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import aclosing, suppress
from pathlib import Path

import pytest
from tests.faults.breaking import CACHE, mounted, state_of
from tests.faults.program import BY, LIMITS, RealClock

from iris_kv.errors import UnavailableError
from iris_kv.model import Removed, digest_of
from iris_kv.store.files import FileStore

ROOMY = LIMITS.model_copy(update={"keep": type(LIMITS.keep)()})


@pytest.fixture(params=["tmpfs 2m", "tmpfs 4m", "tmpfs 8m", "ext4 8m"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    kind, size = request.param.split()
    where = tmp_path / "disk"
    where.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={size}", "iris-kv-test"]
    if kind == "ext4":
        if shutil.which("mkfs.ext4") is None:
            pytest.skip("mkfs.ext4 is not installed")
        image = tmp_path / "image"
        subprocess.run(["mkfs.ext4", "-q", str(image), size], check=True)
        options = ["-o", "loop", str(image)]
    with mounted(where, *options):
        yield where


async def put(store: FileStore, key: str, value: bytes) -> None:
    await store.put("task", key, value, content_type="text/plain", limits=ROOMY, provenance=BY)


async def test_growing_values_fill_a_small_disk_and_cost_none_that_was_stored(disk: Path) -> None:
    kept: dict[str, str] = {}
    refused: set[str] = set()
    async with aclosing(await FileStore.open(disk, clock=RealClock())) as store:
        for number in range(90):
            key, value = f"k{number % 7}", bytes([number]) * (20_000 * number)
            try:
                await put(store, key, value)
                kept[key] = digest_of(value)
            except UnavailableError as error:
                refused.add(error.wrong)
            assert {name: await state_of(store, "task", name) for name in kept} == kept
        assert refused == {"the disk is full, so nothing was written"}
        assert (await store.verify()).usage_matches


async def test_a_disk_without_any_room_can_be_read_and_cleared(disk: Path) -> None:
    async with aclosing(await FileStore.open(disk, clock=RealClock())) as store:
        for number in range(20):
            await put(store, f"k{number}", bytes([number]) * 20_000)
        fill_up(disk)
        with pytest.raises(UnavailableError, match="the disk is full, so nothing was written"):
            await put(store, "big", b"x" * 300_000)
        for number in range(20):
            assert (await store.get("task", f"k{number}")).value == bytes([number]) * 20_000
        for number in range(10):
            await store.delete("task", f"k{number}")
        assert await store.collect() == Removed(entries=0, bytes=0)
        await put(store, "small", b"there is room again")
        assert (await store.verify()).usage_matches
    async with aclosing(await FileStore.open(disk, clock=RealClock())) as store:
        assert [info.key for info in (await store.list("task")).entries] == sorted(
            [*(f"k{n}" for n in range(10, 20)), "small"]
        )
        assert (await store.verify()).damaged == ()
    assert not list((disk / CACHE / "task").glob(".tmp-*"))


def fill_up(disk: Path) -> None:
    """Take the last byte."""
    for size in (1 << 16, 4096, 1):
        with (disk / f"filler{size}").open("wb", buffering=0) as file, suppress(OSError):
            while file.write(bytes(size)):
                pass
            os.fsync(file.fileno())
