"""How often and at which moments fault tests break something."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.faults.breaking import Mother


class Rounds(NamedTuple):
    """How often each fault is tried."""

    kills: int
    kills_of_servers: int
    power_cuts: int
    of_each_call: int | None
    """How many calls of a kind; None: all."""
    seed: int


@pytest.fixture(scope="session")
def rounds(pytestconfig: pytest.Config) -> Rounds:
    seed = pytestconfig.getoption("seed")
    return Rounds(100, 100, 20, None, seed) if pytestconfig.getoption("soak") else Rounds(100, 10, 5, 6, seed)


@pytest.fixture
def mother(tmp_path: Path) -> Iterator[Mother]:
    with Mother(tmp_path / "errors") as running:
        yield running


@pytest.fixture(scope="session")
def memory_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Make a folder in memory where there is such: a kill leaves the page cache whole, so the disk proves nothing."""
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK):
        yield tmp_path_factory.mktemp("faults")
        return
    with tempfile.TemporaryDirectory(dir=shared, prefix="iris-kv-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture
def workspace(memory_folder: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=memory_folder))
