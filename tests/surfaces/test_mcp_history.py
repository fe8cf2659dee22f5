"""History and undo over MCP: what an entry was, what was deleted, and bringing it back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from iris_kv.model import digest_of, short_digest
from iris_kv.settings import HistorySettings, Settings
from iris_kv.tokens import TokenCounter

if TYPE_CHECKING:
    from tests.conftest import Clock
    from tests.surfaces.conftest import Era, LocalSession, Open

HOUR_MS = 3_600_000
AT = "2026-01-01T00:00:00.000Z"
OVER = "2026-01-01T00:00:00.001Z"
"""When something is written over what was written then; never in the same millisecond."""
LATER = "2026-01-02T00:00:00.000Z"
OFF = Settings(durability="fast", history=HistorySettings(versions=0, deleted_hours=0))


async def value_of(session: LocalSession, key: str) -> bytes:
    return (await session.workspace.get("task", key)).value


def told(number: int, value: bytes, how: str, at: str = AT) -> str:
    digest = short_digest(digest_of(value))
    facts = f"{len(value)} bytes text/plain digest={digest} written {at} by agent via mcp"
    return f"version {number}: {facts}, {how}"


async def test_a_write_is_undone(era: Era, open_server: Open, clock: Clock) -> None:
    async with open_server(era, clock=clock) as session:
        for value in ("one", "two!"):
            await session.call("cache_put", scope="task", key="k", value=value, metadata={"n": value})
        before = await session.call("cache_history", scope="task", key="k")
        restored = await session.call("cache_restore", scope="task", key="k")
        after = await session.call("cache_history", scope="task", key="k")

        assert before.splitlines() == [
            '"k" in task, newest first:',
            told(2, b"two!", "live", OVER),
            told(1, b"one", f"replaced {AT}"),
        ]
        assert restored.startswith(f'stored "k" 3 bytes text/plain digest={short_digest(digest_of(b"one"))} expires=')
        assert await value_of(session, "k") == b"one"
        assert (await session.workspace.head("task", "k")).metadata == {"n": "one"}
        assert after.splitlines()[1:] == [
            told(3, b"one", "live", OVER),
            told(2, b"two!", f"replaced {AT}", OVER),
        ]


async def test_a_deletion_is_undone_within_its_time(era: Era, open_server: Open, clock: Clock) -> None:
    async with open_server(era, clock=clock) as session:
        await session.call("cache_put", scope="task", key="k", value="one")
        await session.call("cache_put", scope="task", key="other", value="x")
        deleted = await session.call("cache_delete", scope="task", key="k")
        listed = await session.call("cache_history", scope="task")
        clock.move(24 * HOUR_MS - 1)
        await session.call("cache_restore", scope="task", key="k", if_digest="")
        assert await value_of(session, "k") == b"one"
        assert await session.call("cache_history", scope="task") == "nothing that was deleted from task is kept"
        await session.call("cache_delete", scope="task", key="k")
        clock.move(24 * HOUR_MS)
        refusal = await session.refusal("cache_restore", scope="task", key="k")

    assert "; for 24 hours cache_restore (profile full) or `iris-kv restore-entry` brings it back" in deleted
    assert listed == '"k" ' + told(1, b"one", f"deleted {AT}, kept until {LATER}")
    assert refusal == (
        "not_found: no version of 'k' in task is kept; nothing is kept of it; make the value again and put it"
    )


async def test_a_clear_is_undone_entry_by_entry(era: Era, open_server: Open) -> None:
    async with open_server(era) as session:
        for key in ("a", "b"):
            await session.call("cache_put", scope="task", key=key, value=key)
        cleared = await session.call("cache_clear", scope="task", confirm=True)
        listed = (await session.call("cache_history", scope="task")).splitlines()
        for key in ("a", "b"):
            await session.call("cache_restore", scope="task", key=key)

        assert cleared.startswith("cleared task: 2 entries (2 bytes); for 24 hours cache_history (profile full) or ")
        assert [line[:4] for line in listed] == ['"a" ', '"b" ']
        assert [await value_of(session, key) for key in ("a", "b")] == [b"a", b"b"]


async def test_kept_versions_are_shown_beside_what_is_live(open_server: Open) -> None:
    async with open_server() as session:
        for value in ("one", "two!"):
            await session.call("cache_put", scope="task", key="k", value=value)
        text = await session.call("cache_stats", scope="task")
        data = await session.data("cache_stats", scope="task")

    assert text == "task: 1 entries, 4 of 100000000 bytes, and 1 kept versions of 3 bytes"
    assert {key: data["scopes"][0][key] for key in ("entries", "bytes", "kept", "kept_bytes")} == {
        "entries": 1,
        "bytes": 4,
        "kept": 1,
        "kept_bytes": 3,
    }


async def test_where_nothing_is_kept_no_answer_promises_it(open_server: Open) -> None:
    async with open_server(settings=OFF) as session:
        for value in ("one", "two!"):
            await session.call("cache_put", scope="task", key="k", value=value)
        history = await session.call("cache_history", scope="task", key="k")
        deleted = await session.call("cache_delete", scope="task", key="k")
        await session.call("cache_put", scope="task", key="k", value="x")
        cleared = await session.call("cache_clear", scope="task", confirm=True)
        refusal = await session.refusal("cache_restore", scope="task", key="k")

    assert len(history.splitlines()) == 2
    assert deleted == f'deleted "k" from task (4 bytes, digest {short_digest(digest_of(b"two!"))})'
    assert cleared == "cleared task: 1 entries (1 bytes)"
    assert refusal.startswith("not_found: ")


@pytest.mark.parametrize("scope", ["system", "instructions"])
async def test_seeded_scopes_have_no_history_and_restore_nothing(open_server: Open, scope: str) -> None:
    async with open_server() as session:
        await session.call("cache_seed")
        await session.call("cache_seed", force=True)
        deleted = await session.call("cache_history", scope=scope)
        refusal = await session.refusal("cache_restore", scope=scope, key="research")

    assert deleted == f"nothing that was deleted from {scope} is kept"
    assert refusal.startswith("read_only: ")


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        ({"version": 7}, "not_found: no version 7 of 'k' in task is kept; kept are 1; take one of them"),
        ({"version": "x"}, "invalid_argument: cache_restore: 'version' is 'x'"),
        ({"if_digest": ""}, "conflict: 'k' in task has the digest "),
        ({"if_digest": "x"}, "invalid_argument: "),
        ({"digest": "x"}, "invalid_argument: cache_restore: 'digest' is unknown (did you mean 'if_digest'?)"),
    ],
    ids=str,
)
async def test_a_restore_that_cannot_be_says_what_to_do(
    open_server: Open, arguments: dict[str, object], wrong: str
) -> None:
    async with open_server() as session:
        for value in ("one", "two!"):
            await session.call("cache_put", scope="task", key="k", value=value)
        refusal = await session.refusal("cache_restore", scope="task", key="k", **arguments)

        assert refusal.startswith(wrong)
        assert await value_of(session, "k") == b"two!"


async def test_a_history_of_long_keys_stays_within_the_budget(open_server: Open) -> None:
    async with open_server() as session:
        for n in range(60):
            await session.call("cache_put", scope="task", key="\U0001f600" * 127 + f"{n:03}", value="v")
        await session.call("cache_clear", scope="task", confirm=True)
        listed = await session.call("cache_history", scope="task")

    assert 1_000 < TokenCounter().count(listed) <= 8_000
    assert listed.endswith("they show once these are restored]")
