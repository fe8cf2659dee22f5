"""kill -9 at any moment: what was acknowledged is there, or what was begun after it, and nothing else."""

from __future__ import annotations

from pathlib import Path

from tests.faults.breaking import Ledger, Mother, moments
from tests.faults.conftest import Rounds


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
