"""The verb rollout status, and the exposures that server processes count."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from anyio import to_thread
from test_cli_verbs import Cli, isolated_cli

from iris_kv.errors import BusyError
from iris_kv.location import Location
from iris_kv.model import DAY_MS, digest_of, short_digest
from iris_kv.prompts import Prompt
from iris_kv.rollout import bucket, subject_hash
from iris_kv.settings import Settings
from iris_kv.store.lock import WriteLock
from iris_kv.store.memory import MemoryStore
from iris_kv.tally import Tally
from iris_kv.workspace import Workspace

if TYPE_CHECKING:
    from tests.conftest import Clock, OpenFileStore
    from tests.surfaces.conftest import Era, Open, Serve, Session

cli = pytest.fixture(isolated_cli)

Start = Callable[..., AbstractAsyncContextManager["Session"]]


def write_rollout(cli: Cli, text: str) -> Path:
    file = cli.home / ".config" / "iris-kv" / "rollout.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


@pytest.fixture
def start(cli: Cli, serve: Serve) -> Start:
    """Starts a server process for the workspace and the user of the command line."""

    def starter(era: Era, *arguments: str, **variables: str) -> AbstractAsyncContextManager[Session]:
        env = {"HOME": str(cli.home), "XDG_CONFIG_HOME": str(cli.home / ".config"), **variables}
        return serve(era, *arguments, root=cli.workspace, env=env)

    return starter


async def fetch(session: Session, **arguments: str) -> str:
    """Fetch the system prompt, and return its digest as it is shown."""
    text = (await session.client.get_prompt("system", arguments)).messages[0].content.text
    return short_digest(digest_of(text.encode()))


async def status(cli: Cli, *arguments: str) -> Any:
    # In a thread: a test's loop may not start another one.
    return (await to_thread.run_sync(lambda: cli("rollout", "status", "--json", *arguments))).json


def counted(exposures: list[dict[str, Any]]) -> list[tuple[str, str, int, int, tuple[str, ...]]]:
    """Return exposures without their day, so that a test may run at midnight."""
    return sorted(
        (each["variant"], each["reason"], each["times"], each["subjects"], tuple(each["prompts"])) for each in exposures
    )


async def test_two_server_processes_and_a_third_after_them_add_up_and_no_subject_is_stored(
    era: Era, cli: Cli, start: Start
) -> None:
    write_rollout(cli, 'phase = "percent"\npercent = 50\n')
    early, late = "ann-4711@example.org", "bob-0815@example.org"
    if bucket(early) > bucket(late):
        early, late = late, early
    async with start(era) as one, start(era) as other:
        compact = await fetch(one, subject=early)
        full = await fetch(other, subject=late)
        for session in (one, other):
            await fetch(session, subject=early)
            await fetch(session, variant="full", subject=early)
    after_two = (await status(cli))["exposures"]
    async with start(era) as third:
        await fetch(third, subject=early)
        await fetch(third)
    found = await status(cli, "--days", "2")

    assert bucket(early) < 500_000 <= bucket(late)
    assert counted(after_two) == [
        ("compact", "phase_percent", 3, 1, (compact,)),
        ("full", "argument", 2, 1, (full,)),
        ("full", "phase_percent", 1, 1, (full,)),
    ]
    own = "compact" if bucket(found["subject"]) < 500_000 else "full"
    assert found["subject_source"] == "workspace"
    totals = {(each["variant"], each["reason"]): (each["times"], each["subjects"]) for each in found["exposures"]}
    assert totals == {
        ("compact", "phase_percent"): (4 + (own == "compact"), 1 + (own == "compact")),
        ("full", "argument"): (2, 1),
        ("full", "phase_percent"): (1 + (own == "full"), 1 + (own == "full")),
    }
    held = b"".join(path.read_bytes() for path in sorted(cli.workspace.rglob("*")) if path.is_file())
    assert subject_hash(early).encode() in held
    assert early.encode() not in held
    assert late.encode() not in held


async def test_exposures_are_shown_for_as_many_days_as_asked(cli: Cli, open_server: Open, clock: Clock) -> None:
    async with open_server(clock=clock) as session:
        for _ in range(8):
            await fetch(session)
            clock.move(DAY_MS)
        await session.workspace.aclose()
        week, today = await session.workspace.exposures(8), await session.workspace.exposures(1)

    assert [each.day for each in week] == [f"2026-01-0{n}" for n in (8, 7, 6, 5, 4, 3, 2)]
    assert today == ()


async def test_what_a_busy_store_cannot_take_is_counted_later(
    open_file_store: OpenFileStore, workspace: Path, clock: Clock
) -> None:
    tally = Tally(clock)
    tally.note_instruction("research")
    async with open_file_store(lock_timeout_s=0.01) as store:
        folder = os.open(workspace / ".iris/kv-cache/.store", os.O_RDONLY)
        lock = WriteLock(folder, 1)
        with lock.held(), pytest.raises(BusyError):
            await tally.write(store)
        lock.close()
        os.close(folder)
        tally.note_instruction("research")
        await tally.write(store)

        assert await tally.instruction_calls(store) == {"research": 2}


async def test_a_flood_of_subjects_that_cannot_be_written_down_is_bounded(clock: Clock) -> None:
    tally, store = Tally(clock), MemoryStore(clock)
    prompt = Prompt(variant="full", reason="flag", origin="", note="", text="", digest=digest_of(b""))
    for n in range(10_500):
        tally.note_exposure(prompt, f"subject {n}")
    await tally.write(store)

    (exposures,) = await tally.exposures(store, 1)
    assert (exposures.times, exposures.subjects) == (10_500, 10_001)


async def test_what_others_wrote_into_the_counters_is_passed_over(cli: Cli, open_server: Open, clock: Clock) -> None:
    async with open_server(clock=clock) as session:
        store = await session.workspace.store()
        names = ("exposure:", "exposure:huge:flag:0:0", "exposure:full:whim:0:0", "exposure:full:flag:0", "other")
        await store.count("2026-01-01", dict.fromkeys(names, 1))

        assert await session.workspace.exposures(1) == ()


def test_a_fresh_workspace_is_told_of_and_nothing_is_written(cli: Cli) -> None:
    assert cli("rollout", "status").text.splitlines() == [
        "phase: on (from prompts/rollout.toml)",
        "percent: 0 (from the defaults)",
        "allow list: 0 subjects (from the defaults)",
        "kill switch: off (from the defaults)",
        "flag: on (from the defaults)",
        "subject: unknown (unknown)",
        "it gets: compact (chosen by: phase_on)",
        "fetched in the last 7 days: nothing",
    ]
    assert list(cli.workspace.iterdir()) == []


def test_all_that_decides_is_told_with_where_it_comes_from(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rollout(cli, 'phase = "percent"\npercent = 12.25\nallow = ["ann", "eve"]\n')
    monkeypatch.setenv("IRIS_KV_PROMPT__PERCENT", "5.8748")
    monkeypatch.setenv("USE_KV_CACHE_PROMPT", "1")

    lines = cli("rollout", "status", "--subject", "alice").text.splitlines()
    monkeypatch.setenv("IRIS_KV_PROMPT__SUBJECT", "eve")
    data = cli("rollout", "status", "--subject", "alice", "--json").json

    assert lines == [
        "phase: percent (from iris-kv/rollout.toml)",
        "percent: 5.8748 (from environment)",
        "allow list: 2 subjects (from iris-kv/rollout.toml)",
        "kill switch: off (from the defaults)",
        "flag: on (from environment USE_KV_CACHE_PROMPT)",
        "subject: alice (argument), bucket 5.8748",
        "it gets: full (chosen by: phase_percent)",
        "fetched in the last 7 days: nothing",
    ]
    assert (data["subject"], data["subject_source"], data["variant"], data["reason"]) == (
        *("eve", "configured", "compact", "allow_list"),
    )


def test_exposures_are_told_in_lines(cli: Cli) -> None:
    async def fetched() -> str:
        found = Workspace(Location(root=cli.workspace, reason="test"), Settings(), face="mcp")
        digests = {(await found.prompt(subject=who)).digest for who in ("ann", "bob", "ann")}
        await found.aclose()
        return short_digest(digests.pop())

    digest = anyio.run(fetched)
    last = cli("rollout", "status", "--days", "2").text.splitlines()[-1]

    assert last.split("  ", 1)[1] == f"compact  phase_on       3 times for 2 subjects: {digest}"


async def test_a_broken_rollout_is_told_by_status_doctor_and_the_servers_log(
    era: Era, cli: Cli, serve: Serve, tmp_path: Path
) -> None:
    file = write_rollout(cli, 'phase = "on"\n')
    env = {"HOME": str(cli.home), "XDG_CONFIG_HOME": str(cli.home / ".config")}
    async with serve(era, root=cli.workspace, env=env, stderr=tmp_path / "log") as session:
        await fetch(session)
        file.write_text("phase = 'half'\n")
        await fetch(session)
        error = (
            "invalid_argument: phase in iris-kv/rollout.toml is 'half'; it is 'off', 'percent' or 'on'; mend the file"
        )
    told = await status(cli)
    doctor = (await to_thread.run_sync(lambda: cli("doctor", "--json", code=1))).json

    assert f"the rollout is broken: {error}; until then the last good one holds" in (tmp_path / "log").read_text()
    # A process that starts now has no last good one.
    assert told["errors"] == [f"{error}; until then full is served, as it may mean kill"]
    assert (told["variant"], told["reason"]) == ("full", "kill_switch")
    assert told["errors"][0] in doctor["problems"]
    assert doctor["prompt"] == "full (kill_switch in iris-kv/rollout.toml)"


def test_status_is_told_where_the_cache_cannot_be_opened(cli: Cli) -> None:
    os.symlink(cli.home, cli.workspace / ".iris")

    assert (
        cli("rollout", "status").text.splitlines()[-1].startswith("error: what was fetched cannot be read: forbidden")
    )
