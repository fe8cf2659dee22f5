"""The power is cut under two writers: an ext4 of our own is shut down without its journal, and mounted again."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from tests.faults.breaking import Ledger, Mother, moments, mounted
from tests.faults.conftest import Rounds

SHUTDOWN = 0x8004587D  # EXT4_IOC_SHUTDOWN
WITHOUT_JOURNAL = 2  # EXT4_GOING_FLAGS_NOLOGFLUSH

Disk = Callable[[], AbstractContextManager[None]]


@pytest.fixture
def disk(tmp_path: Path, memory_folder: Path) -> Disk:
    """Return what mounts the same ext4 again and again, at `disk` of the test's folder."""
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("mkfs.ext4 is not installed")
    image, where = memory_folder / "image", tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    where.mkdir()
    return lambda: mounted(where, "-o", "loop", str(image))


def cut_power(where: Path) -> None:
    handle = os.open(where, os.O_RDONLY)
    try:
        fcntl.ioctl(handle, SHUTDOWN, WITHOUT_JOURNAL.to_bytes(4, "little"))
    finally:
        os.close(handle)


def write_until_power_cut(
    mother: Mother, where: Path, ledger: Ledger, seed: str, moment: float, durability: str
) -> None:
    for name in "ab":
        mother.start("write_for_ever", where, name, seed, durability)
    mother.until("ack", ledger)
    mother.listen(ledger, moment)
    mother.signal(signal.SIGSTOP)
    cut_power(where)
    mother.kill()
    assert mother.wait(ledger) == [-9, -9]


async def test_a_power_cut_loses_nothing_acknowledged(
    mother: Mother, tmp_path: Path, disk: Disk, rounds: Rounds
) -> None:
    ledger, where = Ledger(), tmp_path / "disk"
    for number, moment in enumerate(moments(rounds.seed, rounds.power_cuts)):
        with disk():
            write_until_power_cut(mother, where, ledger, f"{rounds.seed} {number}", moment, "full")
        with disk():
            await ledger.check(where)
    assert ledger.acknowledged > rounds.power_cuts


async def test_a_power_cut_costs_a_fast_store_recent_writes_only_and_serves_nothing_wrong(
    mother: Mother, tmp_path: Path, disk: Disk, rounds: Rounds
) -> None:
    ledger, where = Ledger(), tmp_path / "disk"
    with disk():
        mother.start("put_old", where)
        mother.wait(ledger)
        os.sync()
    for number, moment in enumerate(moments(rounds.seed, max(2, rounds.power_cuts // 2))):
        with disk():
            write_until_power_cut(mother, where, ledger, f"{rounds.seed} {number}", moment, "fast")
        with disk():
            await ledger.check_nothing_wrong(where)
            await ledger.check_old(where)
