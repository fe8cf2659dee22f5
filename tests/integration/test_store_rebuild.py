"""A lost or damaged index is made anew: what whole files hold is readable, and nothing wrong is served."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from iris_kv.errors import CorruptError, IrisError, NotFoundError
from iris_kv.model import SCOPES

CACHE = Path(".iris/kv-cache")
INDEX = CACHE / ".store/index.db"
LOG = CACHE / ".store/recovery.jsonl"
HOUR_MS = 3_600_000


def another_database(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE t(x)")
    other.close()
    path.chmod(0o600)


def flip_header(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "deleted": Path.unlink,
    "garbage": lambda path: path.write_bytes(b"garbage " * 2000),
    "halved": lambda path: os.truncate(path, path.stat().st_size // 2),
    "one page": lambda path: os.truncate(path, 4096),
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "flipped header": flip_header,
    "another": another_database,
}


def drop_hints(workspace: Path, hints: str) -> None:
    if "log" not in hints:
        (workspace / LOG).unlink()
    if "manifests" not in hints:
        for scope in SCOPES:
            (workspace / CACHE / scope / ".index.json").unlink(missing_ok=True)


def kept(workspace: Path) -> list[tuple[str, str, bytes]]:
    """Return the versions that the index has beside its entries: scope, key and the bytes of the file."""
    with sqlite3.connect(workspace / INDEX) as index:
        rows = index.execute("SELECT scope, key, file FROM version ORDER BY scope, key, seq").fetchall()
    index.close()
    return [(scope, key, (workspace / CACHE / scope / file).read_bytes()) for scope, key, file in rows]


def quarantined(workspace: Path) -> list[str]:
    return sorted(path.name for path in (workspace / CACHE / ".store/quarantine").iterdir())


@pytest.fixture
def filled(workspace, open_file_store, put):
    """Return a function that makes a closed store with two entries, one written twice, and a deleted one."""

    async def fill() -> Path:
        async with open_file_store() as store:
            await put(store, "k", b"old")
            await put(store, "k", b"the value of k", metadata={"ü": "1"}, content_type="text/markdown")
            await put(store, "a/b", b"the value of a/b", scope="project", ttl_ms=10 * HOUR_MS)
            await put(store, "gone", b"was deleted")
            await store.delete("task", "gone")
        return workspace

    return fill


# The whole index


@pytest.mark.parametrize("hints", ["log", "manifests", "log and manifests"])
@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_lost_or_damaged_index_is_made_anew_at_open(filled, open_file_store, put, damage, hints):
    workspace = await filled()
    async with open_file_store() as store:
        before = [await store.head("task", "k"), await store.head("project", "a/b")]
        workspace_id = await store.workspace_id()
    DAMAGES[damage](workspace / INDEX)
    drop_hints(workspace, hints)

    async with open_file_store() as store:
        assert [await store.head("task", "k"), await store.head("project", "a/b")] == before
        assert (await store.get("task", "k")).value == b"the value of k"
        with pytest.raises(NotFoundError):
            await store.get("task", "gone")
        verified = await store.verify()
        assert (verified.entries, verified.damaged, verified.usage_matches) == (2, (), True)
        if "manifests" in hints:
            assert await store.workspace_id() == workspace_id
        await put(store, "k", b"newer")
        assert (await store.get("task", "k")).value == b"newer"
    assert len([name for name in quarantined(workspace) if name.startswith("index.db-")]) == (damage != "deleted")


async def test_without_any_hint_values_come_back_as_deleted_versions_and_never_live(filled, open_file_store):
    workspace = await filled()
    (workspace / INDEX).unlink()
    drop_hints(workspace, "")

    async with open_file_store() as store:
        for scope in SCOPES:
            assert (await store.list(scope)).entries == ()
        await store.collect()

    assert kept(workspace) == [
        ("project", "recovered/a-b", b"the value of a/b"),
        ("task", "recovered/k", b"the value of k"),
    ]


async def test_a_rebuilt_index_is_not_made_anew_again(filled, open_file_store, caplog):
    workspace = await filled()
    (workspace / INDEX).unlink()
    async with open_file_store():
        pass
    assert any("made the index anew: 2 entries" in record.message for record in caplog.records)
    caplog.clear()
    async with open_file_store() as store:
        await store.get("task", "k")
    assert [record.message for record in caplog.records] == []


async def test_a_second_loss_finds_what_the_first_one_kept(filled, open_file_store):
    workspace = await filled()
    drop_hints(workspace, "manifests")
    for _ in range(2):
        (workspace / INDEX).unlink()
        async with open_file_store() as store:
            assert (await store.get("task", "k")).value == b"the value of k"
        assert [key for _, key, _ in kept(workspace)] == []
        drop_hints(workspace, "log")


async def test_an_index_damaged_under_a_running_server_is_made_anew_by_the_next_call(filled, open_file_store, put):
    workspace = await filled()
    async with open_file_store() as store, open_file_store() as other:
        await other.get("task", "k")
        await put(store, "fresh", b"just written")
        for path in (INDEX, Path(f"{INDEX}-wal")):
            if (workspace / path).exists():
                (workspace / path).write_bytes(b"garbage " * 2000)
        for each in (store, other):
            assert (await each.get("task", "fresh")).value == b"just written"
            assert {info.key for info in (await each.list("task")).entries} == {"k", "fresh"}
        await put(other, "k", b"newer")
        assert (await store.get("task", "k")).value == b"newer"
        assert (await store.verify()).damaged == ()


async def test_an_index_deleted_under_a_running_server_is_made_anew_and_listeners_are_told(
    filled, open_file_store, put
):
    workspace = await filled()
    async with open_file_store() as store:
        position = (await store.changes(None)).next
        (workspace / INDEX).unlink()
        assert {info.key for info in (await store.list("task")).entries} == {"k"}
        assert (await store.changes(position)).reset
        await put(store, "more")
        assert (await store.usage("task")).entries == 2


async def test_a_chunked_upload_over_a_damaged_index_arrives(filled, open_file_store, put):
    workspace = await filled()

    async def chunks():
        yield b"one "
        (workspace / INDEX).unlink()
        yield b"two"

    async with open_file_store() as store:
        await put(store, "chunked", chunks())
        assert (await store.get("task", "chunked")).value == b"one two"
        assert (await store.get("task", "k")).value == b"the value of k"


# The write-ahead log


@pytest.fixture
def cut_off(workspace, open_file_store, put, tmp_path_factory):
    """Return a function that makes a copy of a store as a kill would leave it, with its last puts in the log alone."""

    async def cut() -> Path:
        copy = tmp_path_factory.mktemp("copy")
        async with open_file_store() as store:
            await put(store, "k", b"first")
        async with open_file_store() as store:
            await put(store, "k", b"second")
            await put(store, "l", b"only in the log")
            shutil.copytree(workspace / ".iris", copy / ".iris")
        assert (copy / f"{INDEX}-wal").stat().st_size > 0
        return copy

    return cut


@pytest.mark.parametrize("damage", ["deleted", "empty", "flipped header", "zeros"])
async def test_what_a_lost_write_ahead_log_held_is_found(cut_off, open_file_store, damage):
    copy = await cut_off()
    DAMAGES[damage](copy / f"{INDEX}-wal")
    async with open_file_store(copy) as store:
        assert (await store.get("task", "k")).value == b"second"
        assert (await store.get("task", "l")).value == b"only in the log"
        assert (await store.verify()).damaged == ()


async def test_the_write_ahead_log_of_a_lost_index_is_not_replayed_into_a_new_one(cut_off, open_file_store):
    copy = await cut_off()
    log = (copy / f"{INDEX}-wal").read_bytes()
    (copy / INDEX).unlink()
    async with open_file_store(copy) as store:
        assert (await store.get("task", "k")).value == b"second"
    assert log in [(copy / CACHE / ".store/quarantine" / name).read_bytes() for name in quarantined(copy)]


# Values


async def test_a_value_that_was_damaged_too_is_corrupt_and_its_file_quarantined(filled, open_file_store, put):
    workspace = await filled()
    (file,) = (workspace / CACHE / "task").glob("k__*")
    file.write_bytes(b"The value of k")
    (workspace / INDEX).unlink()
    async with open_file_store() as store:
        for _ in range(2):
            with pytest.raises(CorruptError, match="the stored bytes of 'k' in task do not match"):
                await store.get("task", "k")
        assert (await store.get("project", "a/b")).value == b"the value of a/b"
        await put(store, "k", b"mended")
        assert (await store.verify()).damaged == ()
    assert file.name in quarantined(workspace)


async def test_a_file_of_a_deleted_key_stays_deleted(filled, open_file_store):
    workspace = await filled()
    drop_hints(workspace, "log")
    lines = [json.loads(line[9:]) for line in (workspace / LOG).read_text().splitlines()]
    (deleted,) = [line for line in lines if line["op"] == "put" and line["key"] == "gone"]
    path = workspace / CACHE / "task" / deleted["file"]
    path.write_bytes(b"was deleted")
    path.chmod(0o600)
    for _ in range(2):
        (workspace / INDEX).unlink()
        async with open_file_store() as store:
            assert [info.key for info in (await store.list("task")).entries] == ["k"]
        assert kept(workspace) == [("task", "gone", b"was deleted")]


async def test_a_cleared_scope_stays_cleared(filled, open_file_store, put):
    workspace = await filled()
    async with open_file_store() as store:
        copies = {path.name: path.read_bytes() for path in (workspace / CACHE / "task").glob("k__*")}
        await store.clear("task")
        await put(store, "after", b"written after")
    for name, value in copies.items():
        (workspace / CACHE / "task" / name).write_bytes(value)
    (workspace / INDEX).unlink()
    drop_hints(workspace, "log")
    async with open_file_store() as store:
        assert [info.key for info in (await store.list("task")).entries] == ["after"]


async def test_what_a_key_held_before_a_value_that_nothing_names_is_not_served(filled, open_file_store):
    workspace = await filled()
    drop_hints(workspace, "log")
    folder = workspace / CACHE / "task"
    lines = (workspace / LOG).read_bytes().splitlines(keepends=True)
    old = json.loads(lines[0][9:])
    (folder / old["file"]).write_bytes(b"old")
    (workspace / LOG).write_bytes(lines[0])
    (workspace / INDEX).unlink()
    async with open_file_store() as store:
        with pytest.raises(NotFoundError):
            await store.get("task", "k")
    assert ("task", "recovered/k", b"the value of k") in kept(workspace)
    assert ("task", "k", b"old") in kept(workspace)


async def test_reads_that_renewed_an_entry_and_are_lost_do_not_let_it_expire(workspace, open_file_store, put, clock):
    async with open_file_store() as store:
        await put(store, "k", b"value", renew=True, ttl_ms=10 * HOUR_MS)
        clock.move(9 * HOUR_MS)
        await store.get("task", "k")
    clock.move(5 * HOUR_MS)
    (workspace / INDEX).unlink()
    drop_hints(workspace, "log")
    async with open_file_store() as store:
        assert (await store.get("task", "k")).value == b"value"


async def test_half_a_line_in_the_log_spoils_no_other(filled, open_file_store):
    workspace = await filled()
    lines = (workspace / LOG).read_bytes().splitlines(keepends=True)
    (workspace / LOG).write_bytes(b"".join([line[: len(line) // 2] + line for line in lines]))
    drop_hints(workspace, "log")
    (workspace / INDEX).unlink()
    async with open_file_store() as store:
        assert (await store.get("task", "k")).value == b"the value of k"
        assert (await store.get("project", "a/b")).value == b"the value of a/b"


@pytest.mark.parametrize("file", ["../../../victim", "/etc/hostname", "k__00000000-1.txt", "a\0b"])
async def test_a_planted_line_that_names_another_file_is_ignored(filled, open_file_store, file):
    workspace = await filled()
    record = json.loads((workspace / LOG).read_bytes().splitlines()[1][9:]) | {"file": file, "seq": 1 << 60}
    text = json.dumps(record).encode()
    with (workspace / LOG).open("ab") as log:
        log.write(b"%08x %s\n" % (zlib.crc32(text), text))
    (workspace / INDEX).unlink()
    async with open_file_store() as store:
        assert (await store.get("task", "k")).value == b"the value of k"
        assert (await store.verify()).damaged == ()


# Any byte


@pytest.mark.parametrize("seed", range(12))
async def test_any_flipped_byte_of_the_index_leaves_every_value_readable_and_none_wrong(
    workspace, open_file_store, put, seed
):
    values = {f"key {n}": f"value {n} ".encode() * (n + 1) for n in range(20)}
    async with open_file_store() as store:
        for key, value in values.items():
            await put(store, key, b"old " + value)
            await put(store, key, value)
    chance = random.Random(seed)
    content = bytearray((workspace / INDEX).read_bytes())
    for _ in range(1 + seed % 4):
        content[chance.randrange(100, len(content))] ^= 1 << chance.randrange(8)
    (workspace / INDEX).write_bytes(content)

    async with open_file_store() as store:
        missing: list[str] = []
        for key, value in values.items():
            try:
                assert (await store.get("task", key)).value == value
            except IrisError:
                missing.append(key)
        await store.repair()
        for key in missing:
            assert (await store.get("task", key)).value == values[key]
        found = await store.verify()
        assert (found.entries, found.damaged, found.usage_matches) == (20, (), True)


# What is more than one loss


async def test_values_whose_write_ahead_log_and_recovery_log_are_lost_are_found_by_collection(cut_off, open_file_store):
    copy = await cut_off()
    (copy / f"{INDEX}-wal").unlink()
    (copy / LOG).unlink()
    async with open_file_store(copy) as store:
        await store.collect()
    assert ("task", "recovered/l", b"only in the log") in kept(copy)


async def test_a_digest_that_was_damaged_in_the_index_does_not_cost_the_value(filled, open_file_store):
    workspace = await filled()
    with sqlite3.connect(workspace / INDEX) as index:
        index.execute("UPDATE entry SET sha256=zeroblob(32) WHERE key='k'")
    index.close()
    async with open_file_store() as store:
        assert (await store.get("task", "k")).value == b"the value of k"


async def test_a_row_under_another_key_is_not_served(filled, open_file_store, put):
    workspace = await filled()
    with sqlite3.connect(workspace / INDEX) as index:
        index.execute("UPDATE entry SET key='j' WHERE key='k'")
    index.close()
    async with open_file_store() as store:
        with pytest.raises(NotFoundError):
            await store.get("task", "j")
        assert (await store.get("task", "k")).value == b"the value of k"


async def test_repair_finds_a_row_that_is_not_what_was_written(filled, open_file_store):
    workspace = await filled()
    async with open_file_store() as store:
        assert (await store.repair()).problem is None
    with sqlite3.connect(workspace / INDEX) as index:
        index.execute("UPDATE entry SET content_type='text/html', metadata='{}' WHERE key='k'")
    index.close()
    async with open_file_store() as store:
        repair = await store.repair()
        assert repair.problem == "a row of it is not what was written"
        assert (await store.head("task", "k")).content_type == "text/markdown"


@pytest.mark.parametrize(
    "flip", ["metadata='{}'", "version=77", "created_at=0", "expires_at=1, ttl=60000", "author=''"]
)
async def test_what_a_row_says_wrongly_is_not_served(filled, open_file_store, flip):
    workspace = await filled()
    async with open_file_store() as store:
        before = await store.head("task", "k")
    with sqlite3.connect(workspace / INDEX) as index:
        index.execute(f"UPDATE entry SET {flip} WHERE key='k'")
    index.close()
    async with open_file_store() as store:
        found = await store.get("task", "k")
        assert (found.info, found.value) == (before, b"the value of k")


async def test_repair_mends_a_wrong_sum(filled, open_file_store):
    workspace = await filled()
    with sqlite3.connect(workspace / INDEX) as index:
        index.execute("UPDATE usage SET n=7, bytes=1 WHERE scope='task'")
    index.close()
    async with open_file_store() as store:
        assert not (await store.verify()).usage_matches
        await store.repair()
        assert (await store.verify()).usage_matches


async def test_quarantine_is_bounded(filled, open_file_store):
    workspace = await filled()
    folder = workspace / CACHE / ".store/quarantine"
    for n in range(1_100):
        (folder / f"junk-{n}").write_bytes(b"x")
    with (folder / "huge").open("wb") as huge:
        huge.truncate(300_000_000)
    async with open_file_store() as store:
        await store.collect()
    left = quarantined(workspace)
    assert len(left) <= 1_000
    assert "huge" not in left
