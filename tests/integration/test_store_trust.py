"""What the file store does not trust: planted links, other owners, damaged files, a damaged index, a full disk.

This file is also the program that runs as another user, as root passes every permission test.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import aclosing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from iris_kv.errors import CorruptError, ForbiddenError, IrisError, NotFoundError, UnavailableError
from iris_kv.model import Limits, Provenance, Removed
from iris_kv.store import manifests
from iris_kv.store.files import FileStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SERVER = Path(__file__).parents[2] / "server"
CACHE = Path(".iris/kv-cache")
NOBODY = 65534
AS_NOBODY = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]

needs_root = pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root and setpriv")


class RealClock:
    def now_ms(self) -> int:
        return int(time.time() * 1000)


async def put(store: FileStore, key: str, value: bytes = b"value") -> None:
    limits = Limits(quota_bytes=100_000_000, max_value_bytes=100_000_000, ttl_ms=None, renew=False)
    by = Provenance(author="agent", face="mcp")
    await store.put("task", key, value, content_type="text/plain", limits=limits, provenance=by)


# What the other user does


async def try_store(workspace: Path, *, trust_owner: bool) -> None:
    async with aclosing(await FileStore.open(workspace, clock=RealClock(), trust_owner=trust_owner)) as store:
        await put(store, "k", b"value")
        assert (await store.get("task", "k")).value == b"value"


async def read_forbidden_value(workspace: Path) -> None:
    async with aclosing(await FileStore.open(workspace, clock=RealClock())) as store:
        await put(store, "k", b"value")
        value_path(workspace).chmod(0)
        for _ in range(3):
            try:
                await store.get("task", "k")
            except UnavailableError:
                continue
            raise AssertionError
        value_path(workspace).chmod(0o600)
        assert (await store.get("task", "k")).value == b"value"


# Helpers


def value_path(workspace: Path, scope: str = "task") -> Path:
    (path,) = [path for path in (workspace / CACHE / scope).iterdir() if not path.name.startswith(".")]
    return path


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def quarantined(workspace: Path) -> list[Path]:
    return list((workspace / CACHE / ".store/quarantine").iterdir())


@pytest.fixture
def filled(workspace, open_file_store) -> Callable[..., object]:
    """Return a function that makes a closed store with entries `k` and `l`."""

    async def fill() -> Path:
        async with open_file_store() as store:
            await put(store, "k", b"the value of k")
            await store.put(
                "project",
                "l",
                b"the value of l",
                content_type="text/plain",
                limits=Limits(quota_bytes=1000, max_value_bytes=1000, ttl_ms=None, renew=False),
                provenance=Provenance(author="user", face="cli"),
            )
        return workspace

    return fill


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """Make a folder that another user reaches, which pytest's own are not."""
    folder = Path(tempfile.mkdtemp(prefix="iris-kv-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def as_nobody(command: str, workspace: Path) -> str:
    """Run a command of this file as another user and return what it ended with."""
    environment = {**os.environ, "PYTHONPATH": str(SERVER), "PYTHONDONTWRITEBYTECODE": "1"}
    call = [*AS_NOBODY, sys.executable, __file__, command, str(workspace)]
    done = subprocess.run(call, capture_output=True, text=True, env=environment, cwd="/", timeout=30, check=False)
    if "Permission denied" in done.stderr and "iris_kv" in done.stderr:
        pytest.skip("another user cannot run this interpreter")
    assert done.stderr == ""
    return done.stdout.strip()


# Links and what else is planted


@pytest.mark.parametrize("part", ["", "kv-cache", "kv-cache/task", "kv-cache/.store", "kv-cache/.store/quarantine"])
async def test_a_planted_link_to_a_folder_is_refused_and_its_target_untouched(filled, open_file_store, part):
    workspace = await filled()
    planted = workspace / ".iris" / part
    outside = workspace / "outside"
    shutil.move(planted, outside)
    planted.symlink_to(outside)
    before = files_below(outside)

    with pytest.raises(ForbiddenError, match=r"is a link or not a folder; .*; find out who put it there"):
        async with open_file_store():
            pass

    assert files_below(outside) == before


@pytest.mark.parametrize("name", ["index.db", "index.db-wal", "index.db-shm"])
@pytest.mark.parametrize("kind", ["link", "dangling", "hard link", "fifo", "folder"])
async def test_a_planted_index_file_is_refused_and_its_target_untouched(filled, open_file_store, name, kind):
    workspace = await filled()
    planted = workspace / CACHE / ".store" / name
    outside = workspace / "outside"
    if planted.exists():
        shutil.move(planted, outside)
    elif kind != "dangling":
        outside.write_bytes(b"victim")
    if kind == "dangling":
        outside = workspace / "nowhere"
    plant(planted, kind, outside)
    before = files_below(workspace)

    with pytest.raises(ForbiddenError, match=rf"\.store/{name} is a link or not a regular file"):
        async with open_file_store():
            pass

    assert files_below(workspace) == before
    assert not (workspace / "nowhere").exists()


def plant(path: Path, kind: str, outside: Path) -> None:
    match kind:
        case "link" | "dangling":
            path.symlink_to(outside)
        case "hard link":
            path.hardlink_to(outside)
        case "fifo":
            os.mkfifo(path, 0o600)
        case _:
            path.mkdir(0o700)


@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
async def test_a_planted_value_is_never_served(filled, open_file_store, kind):
    workspace = await filled()
    path = value_path(workspace)
    outside = workspace / "outside"
    shutil.move(path, outside)
    plant(path, kind, outside)

    async with open_file_store() as store:
        for _ in range(3):
            with pytest.raises(CorruptError):
                await store.get("task", "k")
        await put(store, "k", b"mended")
        assert (await store.get("task", "k")).value == b"mended"

    assert outside.read_bytes() == b"the value of k"


@pytest.mark.parametrize("name", ["recovery.jsonl", "gc.lock", "reserve", "lock"])
async def test_a_planted_link_beside_the_index_harms_nothing_outside(filled, open_file_store, name):
    workspace = await filled()
    victim = workspace / "victim"
    victim.write_bytes(b"precious")
    planted = workspace / CACHE / ".store" / name
    planted.unlink(missing_ok=True)
    planted.symlink_to(victim)

    with suppress(ForbiddenError, UnavailableError):
        async with open_file_store() as store:
            await put(store, "k")
            await store.collect()

    assert victim.read_bytes() == b"precious"


async def test_a_planted_manifest_link_is_replaced_and_not_followed(filled, open_file_store):
    workspace = await filled()
    victim = workspace / "victim"
    victim.write_bytes(b"precious")
    manifest = workspace / CACHE / "task/.index.json"
    manifest.unlink()
    manifest.symlink_to(victim)
    async with open_file_store() as store:
        await put(store, "k")
    assert victim.read_bytes() == b"precious"
    assert not manifest.is_symlink()


@pytest.mark.parametrize("file", ["../../../victim", "/etc/hostname", "a\0b"])
async def test_an_index_that_names_files_outside_is_made_anew(filled, open_file_store, file):
    workspace = await filled()
    victim = workspace / "victim"
    victim.write_bytes(b"precious")
    with sqlite3.connect(workspace / CACHE / ".store/index.db") as index:
        index.execute("UPDATE entry SET file=?", (file,))
    index.close()

    async with open_file_store() as store:
        assert (await store.get("task", "k")).value == b"the value of k"
        await store.delete("task", "k")
        await put(store, "k")
        await store.clear("task")

    assert victim.read_bytes() == b"precious"


# Owners and modes


@pytest.mark.parametrize("umask", [0o002, 0o000, 0o077])
async def test_what_is_created_is_private_whatever_the_umask(workspace, open_file_store, umask):
    before = os.umask(umask)
    try:
        async with open_file_store() as store:
            await put(store, "k")
            await store.collect()
            modes = {path: path.stat().st_mode & 0o7777 for path in (workspace / CACHE).rglob("*")}
            modes[workspace / CACHE] = (workspace / CACHE).stat().st_mode & 0o7777
            wrong = [(path, oct(mode)) for path, mode in modes.items() if mode != (0o700 if path.is_dir() else 0o600)]
            assert wrong == []
    finally:
        os.umask(before)


async def test_a_linked_workspace_is_its_users_choice(workspace, open_file_store):
    real, link = workspace / "real", workspace / "link"
    real.mkdir()
    link.symlink_to(real)
    async with open_file_store(link) as one, open_file_store(real) as two:
        await put(one, "k")
        assert (await two.get("task", "k")).value == b"value"
    assert (real / CACHE).is_dir()


@pytest.mark.parametrize("part", [".", ".store", "task", ".store/index.db", ".store/quarantine"])
@pytest.mark.parametrize("mode", [0o720, 0o702])
async def test_what_others_may_write_is_refused(filled, open_file_store, part, mode):
    workspace = await filled()
    (workspace / CACHE / part).chmod(mode)
    with pytest.raises(ForbiddenError, match=r"can be written by group or others .*; chmod go-w "):
        async with open_file_store():
            pass


@needs_root
def test_another_owner_is_refused_unless_trusted(public_folder):
    os.chown(public_folder, NOBODY, NOBODY)
    assert as_nobody("attempt", public_folder) == "ok"
    os.chown(public_folder / CACHE, 0, 0)
    (public_folder / CACHE).chmod(0o755)
    refusal = as_nobody("attempt", public_folder)
    assert refusal.startswith("forbidden: .iris/kv-cache belongs to the user 'root', not to ")
    assert "--trust-owner" in refusal
    assert as_nobody("attempt_trusting", public_folder) == "ok"


@needs_root
@pytest.mark.parametrize("is_new", [True, False])
def test_what_root_writes_in_another_users_workspace_is_that_users(public_folder, tmp_path, is_new):
    os.chown(public_folder, NOBODY, NOBODY)
    if not is_new:
        assert as_nobody("attempt", public_folder) == "ok"
    archive = str(tmp_path / "all.tar")
    for arguments in (["put", "task", "of-root", "v"], ["backup", archive], ["restore", archive], ["prune"]):
        command = [str(Path(sys.executable).with_name("iris-kv")), *arguments, "--workspace", str(public_folder)]
        subprocess.run(command, check=True, capture_output=True)

    owners = {path.stat().st_uid for path in (public_folder / ".iris").rglob("*")}
    assert owners == {NOBODY}
    assert as_nobody("attempt", public_folder) == "ok"


@needs_root
def test_a_mounted_workspace_that_another_user_owns_works(public_folder):
    outside, inside = public_folder / "outside", public_folder / "inside"
    for folder in (outside, inside):
        folder.mkdir()
    os.chown(outside, 1234, 1234)
    outside.chmod(0o777)
    if subprocess.run(["mount", "--bind", str(outside), str(inside)], capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        assert as_nobody("attempt", inside) == "ok"
        assert (outside / CACHE).stat().st_uid == NOBODY
    finally:
        subprocess.run(["umount", "--lazy", str(inside)], check=True)


@needs_root
def test_a_workspace_that_cannot_be_written_is_unavailable(public_folder):
    answer = as_nobody("attempt", public_folder)
    assert answer.startswith("unavailable: .iris/kv-cache cannot be opened or created (Permission denied); ")


@needs_root
def test_a_value_that_may_not_be_read_now_is_not_taken_for_damaged(public_folder):
    os.chown(public_folder, NOBODY, NOBODY)
    assert as_nobody("forbid_value", public_folder) == "ok"


async def test_without_create_nothing_is_made(workspace, open_file_store):
    with pytest.raises(NotFoundError, match="this workspace has no cache yet"):
        async with open_file_store(create=False):
            pass
    assert list(workspace.iterdir()) == []


async def test_a_workspace_that_is_not_there_is_unavailable(workspace, open_file_store):
    with pytest.raises(UnavailableError):
        async with open_file_store(workspace / "nowhere"):
            pass


# Damage


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped": flip,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "emptied": lambda path: path.write_bytes(b""),
    "grown": lambda path: path.write_bytes(path.read_bytes() + b"!"),
    "deleted": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_damaged_value_is_corrupt_until_it_is_written_again(filled, open_file_store, damage):
    workspace = await filled()
    DAMAGES[damage](value_path(workspace))

    async with open_file_store() as store:
        for _ in range(3):
            with pytest.raises(CorruptError, match=r"corrupt: the stored bytes of 'k' in task do not match"):
                await store.get("task", "k")
            with pytest.raises(CorruptError):
                async with store.open_value("task", "k"):
                    pass
        found = await store.verify()
        assert [(each.scope, each.key) for each in found.damaged] == [("task", "k")]
        assert len(quarantined(workspace)) == (damage != "deleted")
        assert (await store.get("project", "l")).value == b"the value of l"
        await put(store, "k", b"made again")
        assert (await store.get("task", "k")).value == b"made again"
        assert (await store.verify()).damaged == ()


async def test_a_damaged_entry_can_be_deleted(filled, open_file_store):
    workspace = await filled()
    flip(value_path(workspace))
    async with open_file_store() as store:
        await store.delete("task", "k")
        with pytest.raises(NotFoundError):
            await store.get("task", "k")
        assert (await store.verify()).usage_matches


async def test_an_index_of_a_newer_version_is_left_alone(filled, open_file_store):
    workspace = await filled()
    path = workspace / CACHE / ".store/index.db"
    with sqlite3.connect(path) as index:
        index.execute("PRAGMA user_version=99")
    index.close()
    before = path.read_bytes()
    with pytest.raises(UnavailableError, match=r"the index has schema 99, .*; a newer iris-kv wrote it.*; upgrade"):
        async with open_file_store():
            pass
    assert path.read_bytes() == before


async def test_a_name_that_a_failed_commit_left_taken_is_passed_over(workspace, open_file_store):
    async with open_file_store() as store:
        await put(store, "k", b"one")
        name = value_path(workspace).name
        taken = value_path(workspace).with_name(name.replace("-1.", "-2."))
        taken.write_bytes(b"left over")
        await put(store, "k", b"two")
        assert (await store.get("task", "k")).value == b"two"
        assert taken.read_bytes() == b"left over"
        assert await store.collect() == Removed(entries=0, bytes=0)
        assert not taken.exists()
        assert (await store.get("task", "k")).value == b"two"


async def test_what_killed_writers_left_behind_is_collected_when_it_is_old(workspace, open_file_store):
    async with open_file_store() as store:
        await put(store, "k", b"value")
        folder = workspace / CACHE / "task"
        fresh, old, odd = folder / ".tmp-0000000000000001", folder / ".tmp-0000000000000002", folder / "notes.txt"
        for path in (fresh, old, odd):
            path.write_bytes(b"x")
        os.utime(old, (time.time() - 3700,) * 2)
        await store.collect()
        assert (fresh.exists(), old.exists(), odd.exists()) == (True, False, True)


# A full disk


@pytest.fixture
def small_disk(public_folder) -> Iterator[Path]:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "iris-kv-test", str(public_folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting is not allowed here")
    yield public_folder
    subprocess.run(["umount", "--lazy", str(public_folder)], check=True)


async def test_a_full_disk_is_said_to_be_full_and_loses_nothing(small_disk, open_file_store):
    async with open_file_store(small_disk) as store:
        kept: dict[str, bytes] = {}
        refused: list[str] = []
        for number in range(60):
            key, value = f"k{number % 7}", bytes([number]) * (20_000 * number)
            try:
                await put(store, key, value)
                kept[key] = value
            except UnavailableError as error:
                refused.append(error.wrong)
        assert len(refused) > 10
        assert set(refused) == {"the disk is full, so nothing was written"}
        for key, value in kept.items():
            assert (await store.get("task", key)).value == value
        for key in kept:
            await store.delete("task", key)
        await put(store, "k", b"x" * 200_000)
        assert (await store.verify()).usage_matches
    assert not list((small_disk / CACHE / "task").glob(".tmp-*"))


async def test_on_a_disk_without_any_room_deleting_and_collecting_still_work(small_disk, open_file_store):
    filler = small_disk / "filler"
    store_folder = small_disk / CACHE / ".store"
    async with open_file_store(small_disk) as store:
        for n in range(40):
            await put(store, f"k{n}", b"x" * 20_000)
        await store.collect()
        assert (store_folder / "reserve").stat().st_size == 256 * 1024
        fill_up(filler)
        with pytest.raises(UnavailableError, match="the disk is full, so nothing was written"):
            await put(store, "more", b"x" * 50_000)
        assert (store_folder / "reserve").exists()
        for n in range(20):
            await store.delete("task", f"k{n}")
        await store.clear("task")
        assert not (store_folder / "reserve").exists()
        filler.unlink()
        await store.collect()
        assert (store_folder / "reserve").exists()
        await put(store, "more", b"x" * 50_000)
        assert (await store.verify()).usage_matches


def fill_up(path: Path) -> None:
    with path.open("ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))


async def test_a_store_is_closed_once_no_manifest_is_being_written(workspace: Path, monkeypatch) -> None:
    monkeypatch.setattr(manifests, "_AT_LEAST_S", 0.0)
    limits = Limits(quota_bytes=10**6, max_value_bytes=10**5, ttl_ms=None, renew=False)
    by = Provenance(author="agent", face="mcp")
    for n in range(40):
        store = await FileStore.open(workspace, clock=RealClock(), durable=False)
        await store.put("task", f"k{n}", b"v", content_type="text/plain", limits=limits, provenance=by)
        await store.aclose()

    # What is raised in the thread of the timer fails the test by itself.
    assert '"k39"' in (workspace / CACHE / "task/.index.json").read_text()


if __name__ == "__main__":
    place = Path(sys.argv[2])
    commands = {
        "attempt": lambda: try_store(place, trust_owner=False),
        "attempt_trusting": lambda: try_store(place, trust_owner=True),
        "forbid_value": lambda: read_forbidden_value(place),
    }
    try:
        asyncio.run(commands[sys.argv[1]]())
    except IrisError as error:
        sys.stdout.write(str(error))
    else:
        sys.stdout.write("ok")
