"""Kept versions on the disk: no byte is copied, nothing is left behind, and a kill at any step loses nothing."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from iris_kv.errors import CorruptError, NotFoundError, UnavailableError
from iris_kv.model import Damage, Keep, Limits, Provenance, Verification, digest_of
from iris_kv.store.files import FileStore

HOUR_MS = 3_600_000
KEPT = Keep(versions=3, deleted_ms=24 * HOUR_MS)
CACHE = ".iris/kv-cache"
STEPS = {"execute", "executemany", "link", "rename", "unlink", "fsync", "flock", "write", "stat"}
Work = Callable[[FileStore], Coroutine[Any, Any, object]]


def limits_of(quota: int = 1_000_000) -> Limits:
    return Limits(quota_bytes=quota, max_value_bytes=quota, ttl_ms=None, renew=False, keep=KEPT)


async def put(store: FileStore, key: str, value: bytes, quota: int = 1_000_000) -> None:
    by = Provenance(author="agent", face="mcp")
    await store.put("task", key, value, content_type="text/plain", limits=limits_of(quota), provenance=by)


def values_in(workspace: Path) -> dict[str, Path]:
    return {path.name: path for path in (workspace / CACHE / "task").iterdir() if not path.name.startswith(".")}


def file_of(workspace: Path, value: bytes) -> Path:
    (path,) = [path for path in values_in(workspace).values() if path.read_bytes() == value]
    return path


async def test_a_restore_names_the_file_anew_and_copies_nothing(workspace, open_file_store):
    async with open_file_store() as store:
        await put(store, "k", b"one")
        await put(store, "k", b"two")
        before = file_of(workspace, b"one")
        inode = before.stat().st_ino

        await store.restore_entry("task", "k", limits=limits_of())

        after = file_of(workspace, b"one")
        assert (after.stat().st_ino, after.stat().st_nlink) == (inode, 1)
        assert after.name != before.name
        assert len(values_in(workspace)) == 2


@pytest.mark.parametrize("code", [errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP])
async def test_where_a_file_has_one_name_only_a_restore_copies(workspace, open_file_store, monkeypatch, code):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    async with open_file_store() as store:
        await put(store, "k", b"one" * 50_000)
        await put(store, "k", b"two")
        monkeypatch.setattr(os, "link", refuse)

        await store.restore_entry("task", "k", limits=limits_of())

        assert (await store.get("task", "k")).value == b"one" * 50_000
        assert len(values_in(workspace)) == 2
        assert (await store.verify()).damaged == ()


@pytest.mark.parametrize("harm", [lambda path: path.write_bytes(b"One"), Path.unlink])
async def test_a_damaged_version_is_never_restored_and_told_once(workspace, open_file_store, harm):
    async with open_file_store() as store:
        for value in (b"one", b"two", b"live"):
            await put(store, "k", value)
        harm(file_of(workspace, b"one"))

        with pytest.raises(
            CorruptError, match=r"corrupt: the stored bytes of version 1 of 'k' in task .*; restore anoth"
        ):
            await store.restore_entry("task", "k", 1, limits=limits_of())
        with pytest.raises(NotFoundError, match="kept are 2"):
            await store.restore_entry("task", "k", 1, limits=limits_of())
        assert (await store.get("task", "k")).value == b"live"
        assert (await store.usage("task")).kept == 1

        harm(file_of(workspace, b"two"))
        wrong = "the stored bytes of version 2 of 'k' in task do not match their digest"
        damaged = (Damage(scope="task", key="k", problem=wrong),)
        assert await store.verify() == Verification(entries=1, bytes=4, kept=1, damaged=damaged, usage_matches=True)
        assert await store.verify() == Verification(entries=1, bytes=4, damaged=(), usage_matches=True)


async def test_what_was_found_damaged_is_not_kept(workspace, open_file_store):
    async with open_file_store() as store:
        for end in (
            lambda: put(store, "k", b"new"),
            lambda: store.delete("task", "k", keep=KEPT),
            lambda: store.clear("task", keep=KEPT),
        ):
            await put(store, "k", b"gone")
            file_of(workspace, b"gone").unlink()
            await end()
            assert (await store.verify()).damaged == ()
            assert (await store.usage("task")).kept == 0
            await store.clear("task")


async def test_what_is_collected_is_gone_from_the_disk(workspace, open_file_store, clock):
    async with open_file_store() as store:
        for key in ("deleted", "cleared"):
            await put(store, key, b"one")
            await put(store, key, b"two")
        await store.delete("task", "deleted", keep=KEPT)
        clock.move(HOUR_MS)
        await store.clear("task", keep=KEPT)
        await store.collect()
        assert len(values_in(workspace)) == 4
        clock.move(23 * HOUR_MS)
        await store.collect("project")
        assert len(values_in(workspace)) == 4
        await store.collect("task")
        assert sorted(name.partition("_")[0] for name in values_in(workspace)) == ["cleared", "cleared"]
        clock.move(HOUR_MS)
        await store.collect()
        assert values_in(workspace) == {}


async def test_a_version_outlives_the_process_and_another_one_restores_it(workspace, open_file_store):
    async with open_file_store() as one, open_file_store() as two:
        await put(one, "k", b"one")
        await two.delete("task", "k", keep=KEPT)
        assert (await one.deleted("task")).entries[0].digest == digest_of(b"one")
        await one.restore_entry("task", "k", limits=limits_of())
        assert (await two.get("task", "k")).value == b"one"
    async with open_file_store() as store:
        await store.collect()
        assert (await store.get("task", "k")).value == b"one"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "iris-kv-test", str(tmp_path)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting is not allowed here")
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


@pytest.mark.parametrize("chunked", [False, True])
async def test_on_a_full_disk_kept_versions_make_room(small_disk, open_file_store, put, chunked):
    async def chunks(value: bytes) -> AsyncGenerator[bytes]:
        for start in range(0, len(value), 300_000):
            yield value[start : start + 300_000]

    async with open_file_store(small_disk) as store:
        for n in range(20):
            value = bytes([n]) * 700_000
            given = chunks(value) if chunked else value
            await put(store, "k", given, scope="project" if n % 2 else "task", quota=10**8, keep=KEPT)
        assert (await store.get("project", "k")).value == value
        await store.delete("project", "k", keep=KEPT)
        await put(store, "other", b"x" * 1_200_000, quota=10**8, max_value=10**8)
        assert (await store.verify()).damaged == ()
        with pytest.raises(UnavailableError, match="the disk is full"):
            await put(store, "more", b"x" * 2_000_000, quota=10**8, max_value=10**8)
        assert (await store.verify()).damaged == ()


# A kill at any step


async def prepare(store: FileStore) -> None:
    for key in ("a", "b", "c"):
        for n in range(5):
            await put(store, key, f"{key} {n}".encode())
    await store.delete("task", "c", keep=KEPT)


async def evict(store: FileStore) -> None:
    await put(store, "new", b"x" * 30, quota=45)


WORKS: dict[str, Work] = {
    "evict": evict,
    "delete": lambda store: store.delete("task", "a", keep=KEPT),
    "clear": lambda store: store.clear("task", keep=KEPT),
    "restore": lambda store: store.restore_entry("task", "a", 3, limits=limits_of()),
    "undelete": lambda store: store.restore_entry("task", "c", limits=limits_of()),
}


def killed_at(workspace: Path, work: Work, step: int, clock: object) -> bool:
    """Do the work in a process that is killed before one of its steps; tell whether it came to that."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(asyncio.run(run_until(workspace, work, step, clock)))
        finally:
            os._exit(9)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


async def run_until(workspace: Path, work: Work, step: int, clock: object) -> int:
    left = step
    is_open = False

    def count(_: object, event: str, called: object) -> None:
        nonlocal left
        if is_open and event == "c_call" and getattr(called, "__name__", "") in STEPS:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    # For threads that start from now on: those of the store.
    threading.setprofile(count)
    store = await FileStore.open(workspace, clock=clock, durable=True)
    is_open = True
    await work(store)
    return 0


async def found_after(workspace: Path, clock: object) -> tuple[dict[str, bytes], set[bytes]]:
    """Return what is live, and the bytes of all that is kept, once everything was found to be in order."""
    async with aclosing(await FileStore.open(workspace, clock=clock, durable=False)) as store:
        seen = await store.verify()
        assert (seen.damaged, seen.usage_matches) == ((), True)
        await store.collect()
        used = await store.usage("task")
        assert len(values_in(workspace)) == used.entries + used.kept
        assert await store.verify() == seen
        page = await store.list("task")
        live = {info.key: (await store.get("task", info.key)).value for info in page.entries}
        return live, {path.read_bytes() for path in values_in(workspace).values()} - set(live.values())


@pytest.mark.parametrize("name", WORKS)
def test_a_kill_at_any_step_leaves_what_was_or_what_is_to_be(tmp_path, clock, name):
    async def filled(workspace: Path) -> None:
        workspace.mkdir()
        async with aclosing(await FileStore.open(workspace, clock=clock, durable=False)) as store:
            await prepare(store)

    async def done(workspace: Path) -> None:
        async with aclosing(await FileStore.open(workspace, clock=clock, durable=False)) as store:
            await WORKS[name](store)

    before = tmp_path / "before"
    asyncio.run(filled(before))
    shutil.copytree(before, tmp_path / "after")
    asyncio.run(done(tmp_path / "after"))
    allowed = [asyncio.run(found_after(each, clock)) for each in (before, tmp_path / "after")]

    seen = []
    step = 0
    while step == len(seen):
        step += 1
        workspace = tmp_path / "killed"
        shutil.copytree(before, workspace)
        if killed_at(workspace, WORKS[name], step, clock):
            seen.append(asyncio.run(found_after(workspace, clock)))
        shutil.rmtree(workspace)

    assert len(seen) > 10
    assert [each for each in seen if each not in allowed] == []
    assert seen[0] == allowed[0]
    assert seen[-1] == allowed[1]
