"""What somebody put into the cache, under a store that is open or is opened: refused or replaced, never followed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import anyio
import pytest
from tests.faults.breaking import CACHE, ROOT
from tests.faults.program import BY, LIMITS, RealClock

from iris_kv.errors import IrisError
from iris_kv.store.files import FileStore
from iris_kv.store.names import value_file

KINDS = ["link", "dangling link", "hard link", "fifo", "folder", "loop"]
NOBODY = 65534
EVERYTHING = """
import asyncio, sys
from pathlib import Path
from tests.faults.test_planted import use
asyncio.run(use(Path(sys.argv[1])))
"""


async def put(store: FileStore, key: str) -> None:
    await store.put("task", key, b"our value", content_type="text/plain", limits=LIMITS, provenance=BY)


async def use_open(store: FileStore) -> None:
    """Do everything once; what is refused is refused in our words, and nothing hangs."""
    for work in (
        lambda: store.get("task", "k"),
        lambda: put(store, "k"),
        lambda: put(store, "other"),
        lambda: store.delete("task", "other", keep=LIMITS.keep),
        lambda: store.restore_entry("task", "other", limits=LIMITS),
        lambda: store.list("task"),
        store.collect,
        store.verify,
    ):
        try:
            answer = await work()
        except IrisError:
            continue
        assert getattr(answer, "value", b"our value") == b"our value"


async def use(workspace: Path) -> None:
    with anyio.fail_after(30):
        try:
            async with aclosing(await FileStore.open(workspace, clock=RealClock(), durable=False)) as store:
                await use_open(store)
        except IrisError:
            pass


@pytest.fixture
def victims(workspace: Path) -> Iterator[Path]:
    """Make what planted links lead to, and check that nobody touched it."""
    outside = workspace / "outside"
    (outside / "folder").mkdir(parents=True)
    for path in (outside / "file", outside / "folder/file"):
        path.write_bytes(b"precious")
    yield outside
    assert [(path.name, path.read_bytes()) for path in sorted(outside.rglob("file"))] == [("file", b"precious")] * 2
    assert sorted(path.name for path in outside.rglob("*")) == ["file", "file", "folder"]


def plant(path: Path, kind: str, victims: Path) -> None:
    is_folder = path.is_dir()
    shutil.rmtree(path) if is_folder else path.unlink(missing_ok=True)
    match kind:
        case "link":
            path.symlink_to(victims / ("folder" if is_folder else "file"))
        case "dangling link":
            path.symlink_to(victims / "nowhere")
        case "hard link" if not is_folder:
            path.hardlink_to(victims / "file")
        case "fifo":
            os.mkfifo(path, 0o600)
        case "folder":
            path.mkdir(0o700)
        case _:
            path.symlink_to(path.name)


def parts(workspace: Path) -> list[Path]:
    """Return everything that there is in a cache, and what may come to be there."""
    cache = workspace / CACHE
    beside = [cache / ".store" / name for name in ("index.db-wal", "index.db-shm", "gc.lock", "recovery.jsonl")]
    return [cache, *{*cache.rglob("*"), *beside}]


@pytest.mark.parametrize("kind", KINDS)
async def test_what_is_planted_anywhere_in_a_cache_is_not_followed(workspace: Path, victims: Path, kind: str) -> None:
    origin = workspace / "origin"
    origin.mkdir()
    async with aclosing(await FileStore.open(origin, clock=RealClock(), durable=False)) as store:
        await put(store, "k")
        await store.collect()
    for number, part in enumerate(parts(origin)):
        for is_open in (False, True):
            work = Path(shutil.copytree(origin, workspace / f"{number}{is_open}"))
            planted = work / part.relative_to(origin)
            if not is_open:
                plant(planted, kind, victims)
                await use(work)
                continue
            with anyio.fail_after(30):
                store = await FileStore.open(work, clock=RealClock(), durable=False)
                await store.get("task", "k")
                plant(planted, kind, victims)
                await use_open(store)
                await store.aclose()


def test_what_another_user_put_anywhere_in_a_cache_is_not_followed(tmp_path: Path, victims: Path) -> None:
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("needs root and setpriv")
    work = victims.parent / "owned"
    work.mkdir()
    for folder in (victims.parent.parent, victims.parent):
        folder.chmod(0o755)
    os.chown(work, NOBODY, NOBODY)
    as_nobody = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    call = [*as_nobody, sys.executable, "-B", "-c", EVERYTHING, str(work)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'server'}"}

    def used() -> str:
        done = subprocess.run(call, capture_output=True, text=True, env=environment, cwd="/", timeout=60, check=False)
        if "Permission denied" in done.stderr and "iris_kv" not in done.stderr.splitlines()[-1]:
            pytest.skip("another user cannot run this interpreter")
        return done.stderr

    assert used() == ""
    assert (work / CACHE).stat().st_uid == NOBODY
    for part in (work / CACHE, work / CACHE / "task", work / CACHE / ".store/index.db"):
        os.chown(part, 0, 0)
        before = part.stat()
        assert "Traceback" not in used()
        assert part.stat().st_ctime_ns == before.st_ctime_ns
        os.chown(part, NOBODY, NOBODY)


def test_200000_hostile_keys_get_names_of_their_own_inside_the_folder() -> None:
    pieces = [
        "../",
        "/etc/passwd",
        "..",
        "a/b",
        "a_b",
        "CON",
        "nul.txt",
        "é",
        "e\u0301",
        "\U0001f600",
        ".index.json",
        " ",
        "A",
    ]
    names: set[str] = set()
    for number in range(200_000):
        a, b, c = number % 13, number // 13 % 13, number // 169
        key = f"{pieces[a]}{pieces[b]}{c}"
        name = value_file("task", key, number + 1, "text/plain")
        assert os.path.basename(name) == name
        assert name[0] != "."
        names.add(name.casefold())
    assert len(names) == 200_000
    assert max(map(len, names)) <= 80


async def test_hostile_keys_are_kept_apart_on_a_disk(workspace: Path) -> None:
    pieces = ["../", "/", "..", "a", "_", "CON", "é", "e\u0301", ".index.json", ".tmp-1", "A"]
    keys = sorted({first + second for first in pieces for second in pieces})
    async with aclosing(await FileStore.open(workspace, clock=RealClock(), durable=False)) as store:
        for key in keys:
            value = key.encode()
            await store.put("task", key, value, content_type="text/plain", limits=LIMITS, provenance=BY)
        assert {key: (await store.get("task", key)).value for key in keys} == {key: key.encode() for key in keys}
    files = [path.name for path in (workspace / CACHE / "task").iterdir() if path.name[0] != "."]
    assert len(files) == len({name.casefold() for name in files}) == len(keys)
    assert sorted(path.name for path in workspace.iterdir()) == [".iris"]
