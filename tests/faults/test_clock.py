"""A clock that goes backwards and forwards: numbers decide what is newest, never times."""

from __future__ import annotations

import random
from contextlib import aclosing
from pathlib import Path

from tests.faults.breaking import INDEX
from tests.faults.conftest import Rounds
from tests.faults.program import BY, LIMITS

from iris_kv.errors import ExpiredError
from iris_kv.store.files import FileStore

YEAR_MS = 366 * 86_400_000


class JumpingClock:
    at_ms = 1_767_225_600_000

    def now_ms(self) -> int:
        return self.at_ms


async def test_a_clock_that_jumps_costs_no_value_and_brings_none_back(workspace: Path, rounds: Rounds) -> None:
    chance, clock, newest = random.Random(rounds.seed), JumpingClock(), dict[str, bytes]()
    for turn in range(20):
        async with aclosing(await FileStore.open(workspace, clock=clock, durable=False)) as store:
            for number in range(10):
                clock.at_ms += chance.randrange(-2 * YEAR_MS, 2 * YEAR_MS)
                clock.at_ms = max(clock.at_ms, 0)
                key, value = f"k{chance.randrange(5)}", f"{turn} {number}".encode() * 50
                await store.put("task", key, value, content_type="text/plain", limits=LIMITS, provenance=BY)
                newest[key] = value
                await store.collect()
            assert {key: (await store.get("task", key)).value for key in newest} == newest
            assert (await store.verify()).usage_matches
        if turn % 4 == 0:
            (workspace / INDEX).unlink()


async def test_an_expired_entry_is_not_served_until_the_clock_is_before_its_expiry_again(workspace: Path) -> None:
    clock = JumpingClock()
    async with aclosing(await FileStore.open(workspace, clock=clock, durable=False)) as store:
        await store.put("task", "k", b"v", content_type="text/plain", limits=LIMITS, provenance=BY, ttl_ms=1000)
        clock.at_ms += 1000
        try:
            await store.get("task", "k")
        except ExpiredError:
            clock.at_ms -= 500
        assert (await store.get("task", "k")).value == b"v"
