"""kill -9 at any moment: what was acknowledged is there, or what was begun after it, and nothing else."""

from __future__ import annotations

from contextlib import aclosing
from pathlib import Path

import pytest
from tests.faults.breaking import CACHE, Ledger, Mother, moments
from tests.faults.conftest import Rounds
from tests.faults.program import BY, LIMITS, RealClock

from iris_kv.store.files import FileStore
from iris_kv.store.names import value_file


@pytest.mark.parametrize("manner", ["collected", "verified", "repaired"])
async def test_what_puts_of_one_key_left_that_failed_again_and_again_costs_the_value_before_them_nothing(
    workspace: Path, manner: str
) -> None:
    async with aclosing(await FileStore.open(workspace, clock=RealClock())) as store:
        await store.put("task", "k", b"acknowledged", content_type="text/plain", limits=LIMITS, provenance=BY)
        for number in (2, 3, 4):
            left = workspace / CACHE / "task" / value_file("task", "k", number, "text/plain")
            left.write_bytes(b"its commit failed")
            left.chmod(0o600)
        await {"collected": store.collect, "verified": store.verify, "repaired": store.repair}[manner]()
        assert (await store.get("task", "k")).value == b"acknowledged"
        await store.collect()
        files = [path.name for path in (workspace / CACHE / "task").iterdir() if path.name[0] != "."]
        assert files == [value_file("task", "k", 1, "text/plain")]


async def test_two_writers_killed_at_any_moment_lose_nothing_acknowledged(
    mother: Mother, workspace: Path, rounds: Rounds
) -> None:
    ledger = Ledger()
    for number, moment in enumerate(moments(rounds.seed, rounds.kills)):
        for name, durability in (("a", "full"), ("b", "fast")):
            mother.start("write_for_ever", workspace, name, f"{rounds.seed} {number}", durability)
        mother.until("ack", ledger)
        mother.listen(ledger, moment)
        mother.kill()
        assert mother.wait(ledger) == [-9, -9]
        await ledger.check(workspace)
    assert ledger.acknowledged > 5 * rounds.kills
