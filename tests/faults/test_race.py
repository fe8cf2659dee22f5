"""Four processes at the quota, and one that is stopped while it holds the lock."""

from __future__ import annotations

import signal
from contextlib import aclosing
from pathlib import Path

import anyio
import pytest
from tests.faults.breaking import CACHE, Ledger, Mother, state_of
from tests.faults.program import BY, LIMITS, RACE_QUOTA, RealClock

from iris_kv.errors import BusyError
from iris_kv.store.files import FileStore


async def test_four_processes_never_pass_the_quota(mother: Mother, workspace: Path) -> None:
    for name in "abcd":
        mother.start("race", workspace, name)
    assert mother.wait() == [0, 0, 0, 0]
    async with aclosing(await FileStore.open(workspace, clock=RealClock())) as store:
        used = await store.usage("task")
        files = [path.stat().st_size for path in (workspace / CACHE / "task").iterdir() if path.name[0] != "."]
        assert (used.entries + used.kept, used.bytes + used.kept_bytes) == (len(files), sum(files))
        assert RACE_QUOTA // 2 < sum(files) <= RACE_QUOTA
        assert (await store.verify("task")).usage_matches


async def test_a_process_stopped_in_the_middle_of_a_write_stops_no_reader_and_is_named(
    mother: Mother, workspace: Path
) -> None:
    ledger = Ledger()
    mother.start("stop_in_lock", workspace)
    mother.until("ready", ledger)
    (stopped,) = mother.children(1)
    async with aclosing(await FileStore.open(workspace, clock=RealClock(), lock_timeout_s=0.1)) as store:
        assert await state_of(store, "task", "k") != "absent"
        for _ in range(3):
            with anyio.fail_after(10), pytest.raises(BusyError, match=f"process {stopped} "):
                await store.put("task", "k", b"new", content_type="text/plain", limits=LIMITS, provenance=BY)
    mother.signal(signal.SIGCONT)
    assert mother.wait(ledger) == [0]
    await ledger.check(workspace)
