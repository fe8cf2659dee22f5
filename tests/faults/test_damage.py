"""Bytes of a closed store are flipped, cut off or overwritten: nothing wrong is served, and what is whole is not lost."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import aclosing, closing, suppress
from functools import partial
from pathlib import Path

import anyio
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.faults.breaking import CACHE
from tests.faults.program import BY, LIMITS, RealClock

from iris_kv.errors import CorruptError, ExpiredError, NotFoundError
from iris_kv.model import KEEP_NOTHING, EntryInfo, digest_of
from iris_kv.store.files import FileStore

KEYS = [*(f"k{n}" for n in range(40)), "a/b", "é", "../../x"]
PLACES = {
    "index.db": [".store/index.db"],
    "index.db that holds everything": [".store/index.db"],
    "index.db-wal": [".store/index.db-wal"],
    "recovery.jsonl": [".store/recovery.jsonl"],
    "manifest": ["task/.index.json"],
    "index and recovery.jsonl": [".store/index.db", ".store/recovery.jsonl"],
    "index, recovery.jsonl and manifest": [".store/index.db", ".store/recovery.jsonl", "task/.index.json"],
}
LIMITS_KEEPING_NOTHING = LIMITS.model_copy(update={"keep": KEEP_NOTHING})
DAMAGES = st.tuples(
    st.sampled_from(["flip", "truncate", "zero", "noise"]), st.floats(0, 1, exclude_max=True), st.integers(0, 255)
)


def value_of(key: str, number: int) -> bytes:
    return f"{key} is {number} ".encode() * (20 + len(key) * 7)


def latest(key: str) -> bytes:
    return value_of(key, 1 if key in KEYS[:20] else 0)


async def put(store: FileStore, key: str, value: bytes) -> None:
    await store.put("task", key, value, content_type="text/plain", limits=LIMITS, provenance=BY, metadata={"for": key})


@pytest.fixture(scope="module")
def intact(memory_folder: Path) -> tuple[Path, dict[str, EntryInfo]]:
    """A store with values that were overwritten and deleted, copied while it was open, so that its log is not empty."""
    work, copy = memory_folder / "intact", memory_folder / "copy"

    async def fill() -> dict[str, EntryInfo]:
        async with aclosing(await FileStore.open(work, clock=RealClock(), durable=False)) as store:
            for key in KEYS:
                await put(store, key, value_of(key, 0))
        async with aclosing(await FileStore.open(work, clock=RealClock(), durable=False)) as store:
            for key in KEYS[:20]:
                await put(store, key, value_of(key, 1))
            for key in KEYS[:5]:
                await store.delete("task", key)
            shutil.copytree(work, copy)
            return {info.key: info for info in (await store.list("task", limit=500)).entries}

    work.mkdir()
    return copy, anyio.run(fill)


def damage(path: Path, kind: str, where: float, byte: int) -> None:
    data = bytearray(path.read_bytes())
    at = int(len(data) * where)
    match kind:
        case "truncate":
            del data[at:]
        case "zero":
            data[at : at + 512] = bytes(len(data[at : at + 512]))
        case "noise":
            data[at : at + 64] = bytes((byte * n + 7) % 256 for n in range(len(data[at : at + 64])))
        case _ if data:
            data[at] ^= byte or 1
    path.write_bytes(data)


async def read_all(store: FileStore, expected: dict[str, EntryInfo]) -> dict[str, str]:
    """Read every key; return what each answered: `whole`, `missing` or `corrupt`."""
    answers: dict[str, str] = {}
    for key in KEYS:
        try:
            found = await store.get("task", key)
        except (NotFoundError, ExpiredError):
            answers[key] = "missing"
        except CorruptError:
            answers[key] = "corrupt"
        else:
            assert key in expected, f"{key!r} was deleted"
            assert found.value == latest(key), key
            assert found.info.metadata == {"for": key}
            answers[key] = "whole"
    return answers


async def serve_all(work: Path, expected: dict[str, EntryInfo], *, keeps_all: bool = True) -> dict[str, str]:
    """Read every key, collect, and write again; return what each answered once the damage must have been seen."""
    with anyio.fail_after(60):
        async with aclosing(await FileStore.open(work, clock=RealClock(), durable=False)) as store:
            await read_all(store, expected)
            await store.verify()
            await store.collect()
            answers = await read_all(store, expected)
            await put(store, "later", b"later")
            assert (await store.get("task", "later")).value == b"later"
    async with aclosing(await FileStore.open(work, clock=RealClock(), durable=False)) as store:
        assert (await store.get("task", "later")).value == b"later"
        for key, answer in answers.items():
            # Where all copies of the index are damaged, looking at it whole finds less than its rows told.
            with suppress(*([] if keeps_all else [NotFoundError])):
                assert answer != "whole" or (await store.get("task", key)).value == latest(key)
    return answers


def fresh_copy(intact: Path) -> Path:
    work = intact.with_name("damaged")
    shutil.rmtree(work, ignore_errors=True)
    return Path(shutil.copytree(intact, work))


@pytest.mark.parametrize("place", PLACES)
def test_a_damaged_index_log_or_manifest_loses_no_value_whose_file_is_whole(
    intact: tuple[Path, dict[str, EntryInfo]], pytestconfig: pytest.Config, place: str
) -> None:
    origin, expected = intact
    if place == "index.db that holds everything":
        origin = Path(shutil.copytree(origin, origin.with_name("checkpointed"), dirs_exist_ok=True))
        with closing(sqlite3.connect(origin / CACHE / ".store/index.db")) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    @settings(max_examples=400 if pytestconfig.getoption("soak") else 25, suppress_health_check=list(HealthCheck))
    @given(st.lists(DAMAGES, min_size=1, max_size=3))
    @example([("truncate", 0.0, 0)])
    @example([("truncate", 0.125, 0)])
    @example([("zero", 0.155, 0)])
    def check(damages: list[tuple[str, float, int]]) -> None:
        work = fresh_copy(origin)
        for name in PLACES[place]:
            for each in damages:
                damage(work / CACHE / name, *each)
        answers = anyio.run(partial(serve_all, work, expected, keeps_all=" and " not in place))
        # A manifest is older than the last writes, and says nothing of them.
        named = {"index and recovery.jsonl": KEYS[20:], "index, recovery.jsonl and manifest": []}.get(place, expected)
        assert {key for key, answer in answers.items() if answer == "whole"} >= set(named), damages

    check()


def test_a_damaged_value_is_never_served_and_costs_no_other(
    intact: tuple[Path, dict[str, EntryInfo]], pytestconfig: pytest.Config
) -> None:
    origin, expected = intact
    files = sorted(path.name for path in (origin / CACHE / "task").iterdir() if path.name[0] != ".")

    @settings(max_examples=400 if pytestconfig.getoption("soak") else 25, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(files), DAMAGES, st.booleans())
    def check(file: str, how: tuple[str, float, int], loses_index: bool) -> None:
        work = fresh_copy(origin)
        before = (work / CACHE / "task" / file).read_bytes()
        damage(work / CACHE / "task" / file, *how)
        if loses_index:
            (work / CACHE / ".store/index.db").unlink()
        is_changed = (work / CACHE / "task" / file).read_bytes() != before
        answers = anyio.run(serve_all, work, expected)
        whole = {key for key, answer in answers.items() if answer == "whole"}
        assert len(set(expected) - whole) <= is_changed
        assert all(answers[key] == "corrupt" for key in set(expected) - whole)

    check()


@pytest.mark.parametrize("write", ["put", "delete", "clear"])
async def test_what_a_kill_behind_a_commit_leaves_is_no_sign_of_a_lost_row(tmp_path: Path, write: str) -> None:
    task, log = tmp_path / CACHE / "task", tmp_path / CACHE / ".store/recovery.jsonl"
    async with aclosing(await FileStore.open(tmp_path, clock=RealClock(), durable=False)) as store:
        await store.put("task", "k", b"old", content_type="text/plain", limits=LIMITS_KEEPING_NOTHING, provenance=BY)
        (file,) = task.glob("k__*")
        logged = log.read_bytes()
        match write:
            case "put":
                limits = LIMITS_KEEPING_NOTHING
                await store.put("task", "k", b"new", content_type="text/plain", limits=limits, provenance=BY)
            case "delete":
                await store.delete("task", "k")
            case _:
                await store.clear("task")
        # The line in the log and the removal of the old file come behind the commit.
        log.write_bytes(logged)
        file.write_bytes(b"old")

        await store.collect()

        assert not file.exists()
        assert (await store.repair()).problem is None
        keys = {info.key: info.digest for info in (await store.list("task")).entries}
        assert keys == ({"k": digest_of(b"new")} if write == "put" else {})
