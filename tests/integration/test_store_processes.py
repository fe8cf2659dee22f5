"""Several processes over one file store: nothing acknowledged is lost, whoever is killed, hangs or deletes what.

This file is also the program that those processes run: `python test_store_processes.py COMMAND WORKSPACE ...`.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import aclosing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from iris_kv.errors import BusyError, IrisError, NotFoundError, QuotaExceededError
from iris_kv.model import Limits, Provenance, Usage, Verification
from iris_kv.store.files import FileStore
from iris_kv.store.lock import WriteLock

if TYPE_CHECKING:
    from collections.abc import Generator

SERVER = Path(__file__).parents[2] / "server"
STORE_FOLDER = ".iris/kv-cache/.store"
QUOTA = 1 << 20


class RealClock:
    def now_ms(self) -> int:
        return int(time.time() * 1000)


async def put(store: FileStore, key: str, value: bytes, quota: int = 100_000_000) -> None:
    limits = Limits(quota_bytes=quota, max_value_bytes=quota, ttl_ms=None, renew=False)
    by = Provenance(author="agent", face="mcp")
    await store.put("task", key, value, content_type="text/plain", limits=limits, provenance=by)


def value_of(key: str, number: int) -> bytes:
    return f"{key} {number} ".encode() * (1 + number * 37 % 2000)


# What the other processes do


async def put_twenty(workspace: Path, name: str) -> None:
    async with aclosing(await FileStore.open(workspace, clock=RealClock())) as store:
        say("ready")
        sys.stdin.readline()
        async with anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(put, store, f"{name}{number}", value_of(f"{name}{number}", number))


async def write_for_ever(workspace: Path, name: str) -> None:
    store = await FileStore.open(workspace, clock=RealClock())
    number = 0
    while True:
        number += 1
        key = f"{name}{number % 3}"
        say(f"begin {key} {number}")
        await put(store, key, value_of(key, number))
        say(f"ack {key} {number}")


def raise_writers(workspace: Path) -> None:
    """Fork two writers for each line that comes in: forking is faster than starting Python anew."""
    while sys.stdin.readline():
        writers: list[int] = []
        for name in "ab":
            writers.append(os.fork())
            if writers[-1] == 0:
                os._exit(asyncio.run(write_for_ever(workspace, name)))
        say(" ".join(map(str, writers)))
        for writer in writers:
            os.waitpid(writer, 0)
        say("dead")


async def fill(workspace: Path, seed: str) -> None:
    sizes = random.Random(seed)
    async with aclosing(await FileStore.open(workspace, clock=RealClock(), durable=False)) as store:
        for number in range(150):
            with suppress(QuotaExceededError):
                await put(store, f"{seed}{number % 40}", b"x" * sizes.randrange(100_000), QUOTA)
            assert (await store.usage("task")).bytes <= QUOTA


async def hold_lock(workspace: Path) -> None:
    folder = os.open(workspace / STORE_FOLDER, os.O_RDONLY)
    with WriteLock(folder, 1).held():
        say("held")
        signal.pause()


async def tell_changes(workspace: Path) -> None:
    async with aclosing(await FileStore.open(workspace, clock=RealClock())) as store:
        position = (await store.changes(None)).next
        say("ready")
        while True:
            await store.wait_for_change(position)
            changes = await store.changes(position)
            position = changes.next
            for change in changes.events:
                say(f"{change.op} {change.key}")
                if change.key == "ping":
                    await put(store, "pong", b"")


def fork(workspace: Path) -> None:
    async def start() -> FileStore:
        store = await FileStore.open(workspace, clock=RealClock())
        await put(store, "parent", b"from the parent")
        await store.get("task", "parent")
        return store

    async def in_child(origin: str) -> None:
        assert (await store.get("task", "parent")).value == b"from the parent"
        await put(store, "child", b"from the child")
        assert store.origin != origin
        assert ((await store.activity("task"))[0]).by == f"library (pid {os.getpid()})"
        await store.aclose()

    async def in_parent(position: str) -> None:
        assert (await store.get("task", "child")).value == b"from the child"
        await put(store, "after", b"")
        assert [change.key for change in (await store.changes(position)).events] == ["child", "after"]
        assert (await store.verify()).usage_matches
        await store.aclose()

    async def position() -> str:
        return (await store.changes(None)).next

    with asyncio.Runner() as runner:
        store = runner.run(start())
        at = runner.run(position())
        origin = store.origin
        child = os.fork()
        if child == 0:
            os._exit(asyncio.run(in_child(origin)) or 0)
        assert os.waitpid(child, 0)[1] == 0
        runner.run(in_parent(at))


def say(line: str) -> None:
    os.write(1, line.encode() + b"\n")


# The tests


@contextmanager
def running(command: str, workspace: Path, *arguments: str) -> Generator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, __file__, command, str(workspace), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(SERVER)},
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def ended(process: subprocess.Popen[bytes], send: bytes = b"") -> None:
    _, errors = process.communicate(send, timeout=30)
    assert (process.returncode, errors.decode()) == (0, "")


def said(process: subprocess.Popen[bytes]) -> str:
    return process.stdout.readline().decode().strip()


async def test_forty_puts_of_two_processes_at_once_all_arrive_whole(workspace, open_file_store):
    with running("put_twenty", workspace, "a") as one, running("put_twenty", workspace, "b") as two:
        assert [said(one), said(two)] == ["ready", "ready"]
        for process in (one, two):
            process.stdin.write(b"go\n")
            process.stdin.flush()
        ended(one)
        ended(two)

    async with open_file_store() as store:
        for name in "ab":
            for number in range(20):
                key = f"{name}{number}"
                assert (await store.get("task", key)).value == value_of(key, number)
        found = await store.verify("task")
        assert (found.entries, found.damaged, found.usage_matches) == (40, (), True)


async def test_a_writer_killed_at_any_moment_loses_nothing_acknowledged(workspace, open_file_store):
    moments = random.Random(11)
    acknowledged: dict[str, int] = {}
    with running("raise_writers", workspace) as mother:
        for _ in range(10):
            begun = killed_writers(mother, acknowledged, moments.randrange(20, 150))
            async with open_file_store() as store:
                await check_values(store, acknowledged, begun)
    assert min(acknowledged.values()) > 1


def killed_writers(mother: subprocess.Popen[bytes], acknowledged: dict[str, int], n_lines: int) -> dict[str, int]:
    """Start two writers, kill both after some lines, and return the writes that were begun and not acknowledged."""
    mother.stdin.write(b"go\n")
    mother.stdin.flush()
    writers: list[int] = []
    begun: dict[str, int] = {}
    for n in itertools.count():
        if n == n_lines:
            for writer in writers:
                os.kill(writer, signal.SIGKILL)
        match said(mother).split():
            case ["begin", key, number]:
                begun[key] = int(number)
            case ["ack", key, number]:
                acknowledged[key] = int(number)
                begun.pop(key, None)
            case ["dead"]:
                return begun
            case pids:
                writers = [int(pid) for pid in pids]
    raise AssertionError


async def check_values(store: FileStore, acknowledged: dict[str, int], begun: dict[str, int]) -> None:
    for key, number in {**begun, **acknowledged}.items():
        allowed = {value_of(key, n): n for n in (number, begun.get(key, number))}
        try:
            acknowledged[key] = allowed[(await store.get("task", key)).value]
        except NotFoundError:
            assert key not in acknowledged
    found = await store.verify()
    assert (found.damaged, found.usage_matches) == ((), True)
    await store.collect()
    assert len((await store.list("task")).entries) == found.entries


async def test_two_processes_see_each_others_changes(workspace, open_file_store):
    async with open_file_store() as store:
        with running("tell_changes", workspace) as other:
            assert said(other) == "ready"
            position = (await store.changes(None)).next
            await put(store, "ping", b"")
            assert said(other) == "create ping"
            with anyio.fail_after(10):
                while True:
                    await store.wait_for_change(position)
                    changes = await store.changes(position)
                    position = changes.next
                    foreign = [change.key for change in changes.events if change.origin != store.origin]
                    if foreign:
                        break
            assert foreign == ["pong"]


async def test_a_hanging_lock_holder_is_named_and_waited_for_no_longer_than_asked(workspace, open_file_store):
    async with open_file_store(lock_timeout_s=0.1) as store:
        await put(store, "k", b"old")
        with running("hold_lock", workspace) as holder:
            assert said(holder) == "held"
            holder.send_signal(signal.SIGSTOP)
            for _ in range(3):
                with anyio.fail_after(5), pytest.raises(BusyError, match=f"process {holder.pid} "):
                    await put(store, "k", b"new")
            assert (await store.get("task", "k")).value == b"old"
            waiting = [thread for thread in threading.enumerate() if thread.name == "iris-kv write lock"]
            assert len(waiting) == 1
            holder.kill()
        for thread in waiting:
            thread.join(5)
        for number in range(3):
            await put(store, "k", b"new %d" % number)
        assert (await store.get("task", "k")).value == b"new 2"


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_put_that_is_cancelled_while_it_waits_for_the_lock_ends_at_once_and_leaves_nothing(workspace, backend):
    async def main(holder: subprocess.Popen[bytes], store: FileStore) -> None:
        with anyio.fail_after(5), anyio.move_on_after(0.1) as scope:
            await put(store, "k", b"new")
        assert scope.cancelled_caught
        assert (await store.get("task", "k")).value == b"old"
        holder.kill()
        holder.wait(5)
        await put(store, "k", b"newer")
        assert (await store.get("task", "k")).value == b"newer"
        (file,) = (workspace / ".iris/kv-cache/task").glob("[!.]*")
        assert file.read_bytes() == b"newer"
        assert not list((workspace / ".iris/kv-cache/task").glob(".tmp-*"))

    async def opened() -> None:
        async with aclosing(await FileStore.open(workspace, clock=RealClock(), durable=False)) as store:
            await put(store, "k", b"old")
            with running("hold_lock", workspace) as holder:
                assert said(holder) == "held"
                await main(holder, store)

    anyio.run(opened, backend=backend)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_cancelled_task_begins_no_other_write(workspace, backend):
    async def main() -> None:
        async with aclosing(await FileStore.open(workspace, clock=RealClock(), durable=False)) as store:
            numbers = itertools.count()

            async def write_for_ever() -> None:
                for number in numbers:
                    await put(store, f"k{number}", b"v")

            with anyio.fail_after(10):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(write_for_ever)
                    position = (await store.changes(None)).next
                    await store.wait_for_change(position)
                    tasks.cancel_scope.cancel()
            begun = next(numbers)
            # The last may have been withdrawn before a thread took it.
            assert begun - 1 <= (await store.usage("task")).entries <= begun

    anyio.run(main, backend=backend)


async def test_a_task_that_asyncio_cancels_ends_what_it_began(workspace, open_file_store):
    async with open_file_store() as store:
        await put(store, "k", b"old")
        began = asyncio.Event()

        async def write() -> None:
            began.set()
            await put(store, "k", b"new")

        task = asyncio.create_task(write())
        await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await store.get("task", "k")).value in (b"old", b"new")
        await put(store, "k", b"newer")
        assert (await store.get("task", "k")).value == b"newer"
        assert (await store.verify()).usage_matches


async def test_a_forked_child_opens_the_store_for_itself(workspace):
    with running("fork", workspace) as process:
        ended(process)


async def test_two_processes_never_pass_the_quota(workspace, open_file_store):
    with running("fill", workspace, "a") as one, running("fill", workspace, "b") as two:
        ended(one)
        ended(two)
    async with open_file_store() as store:
        used = await store.usage("task")
        files = [path.stat().st_size for path in (workspace / ".iris/kv-cache/task").iterdir() if path.name[0] != "."]
        assert used == Usage(entries=len(files), bytes=sum(files))
        assert QUOTA // 2 < used.bytes <= QUOTA
        assert (await store.verify("task")).usage_matches


# A cache that is deleted or replaced under a live store


async def test_a_deleted_cache_is_made_anew_by_the_next_write(workspace, open_file_store):
    async with open_file_store() as store:
        await put(store, "k", b"old")
        await store.get("task", "k")
        position = (await store.changes(None)).next
        shutil.rmtree(workspace / ".iris")

        await put(store, "new", b"new")

        assert (await store.get("task", "new")).value == b"new"
        with pytest.raises(NotFoundError):
            await store.get("task", "k")
        assert [info.key for info in (await store.list("task")).entries] == ["new"]
        assert (await store.changes(position)).reset
        assert await store.verify() == Verification(entries=1, bytes=3, damaged=(), usage_matches=True)
        async with open_file_store() as other:
            assert (await other.get("task", "new")).value == b"new"


async def test_a_reader_finds_what_stands_in_a_cache_that_replaced_its_own(workspace, open_file_store):
    async with open_file_store() as reader:
        await put(reader, "k", b"old")
        shutil.rmtree(workspace / ".iris")
        async with open_file_store() as other:
            await put(other, "k", b"new")
            await put(other, "l", b"new")
            assert (await reader.get("task", "l")).value == b"new"
            assert (await reader.get("task", "k")).value == b"new"
            assert await reader.usage("task") == Usage(entries=2, bytes=6)


@pytest.mark.parametrize("part", ["task", ".store/lock", ".store/quarantine", ".store/recovery.jsonl"])
async def test_a_deleted_part_of_the_cache_is_made_anew(workspace, open_file_store, part):
    path = workspace / ".iris/kv-cache" / part
    async with open_file_store() as store:
        await put(store, "k", b"old")
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        for number in range(2):
            await put(store, "k", b"new %d" % number)
        assert (await store.get("task", "k")).value == b"new 1"
        assert part == ".store/quarantine" or path.exists()


async def test_a_cache_moved_away_during_an_upload_takes_nothing_along(workspace, open_file_store):
    async def moving():
        yield b"one "
        (workspace / ".iris").rename(workspace / "moved")
        yield b"two"

    async with open_file_store() as store:
        await put(store, "old", b"old")
        await put(store, "k", moving())
        assert (await store.get("task", "k")).value == b"one two"
        assert [info.key for info in (await store.list("task")).entries] == ["k"]


async def test_a_cache_deleted_over_and_over_leaks_nothing_and_breaks_nothing(workspace, open_file_store):
    async def work(store: FileStore, name: str, stop: anyio.Event) -> None:
        while not stop.is_set():
            with suppress(IrisError):
                await put(store, name, b"value")
                await store.list("task")
                await store.get("task", name)

    async with open_file_store() as store:
        stop = anyio.Event()
        before = 0
        async with anyio.create_task_group() as tasks:
            for number in range(5):
                tasks.start_soon(work, store, f"k{number}", stop)
            for round_ in range(12):
                await put_somehow(store, f"round {round_}")
                await anyio.to_thread.run_sync(lambda: shutil.rmtree(workspace / ".iris", ignore_errors=True))
                if round_ == 2:
                    before = len(os.listdir("/proc/self/fd"))
            stop.set()
        await put(store, "k", b"last")
        assert (await store.get("task", "k")).value == b"last"
        gc.collect()  # errors hold the frames that used a replaced cache
        assert len(os.listdir("/proc/self/fd")) < before + 20


async def put_somehow(store: FileStore, key: str) -> None:
    with anyio.fail_after(10):
        while True:
            try:
                await put(store, key, b"value")
            except IrisError:
                continue
            return


async def test_a_closed_store_leaves_no_descriptor_open_and_says_that_it_is_closed(workspace, open_file_store):
    before = set(os.listdir("/proc/self/fd"))
    async with open_file_store() as store:
        await put(store, "k", b"v")
        await store.get("task", "k")
    await store.aclose()
    assert set(os.listdir("/proc/self/fd")) <= before
    for call in (store.get("task", "k"), put(store, "k", b"v"), store.collect(), store.changes(None)):
        with pytest.raises(IrisError, match="unavailable: the store is closed"):
            await call


async def test_a_store_closed_under_running_calls_lets_them_end(open_file_store):
    async with open_file_store() as store, anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(put_or_closed, store, f"k{number}")
        await anyio.lowlevel.checkpoint()
        await store.aclose()
    async with open_file_store() as store:
        assert (await store.verify()).usage_matches


async def put_or_closed(store: FileStore, key: str) -> None:
    with suppress(IrisError):
        await put(store, key, b"value")
        await store.get("task", key)


async def test_a_put_cancelled_by_asyncio_is_whole_or_absent(open_file_store):
    async def chunks():
        for _ in range(50):
            yield b"x" * 100_000

    async with open_file_store() as store:
        for turn in range(30):
            value = chunks() if turn % 2 else b"x" * 5_000_000
            task = asyncio.ensure_future(put(store, f"k{turn}", value))
            for _ in range(turn * 3):
                await asyncio.sleep(0)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await put(store, "last", b"")
        found = await store.verify()
        assert (found.damaged, found.usage_matches) == ((), True)


if __name__ == "__main__":
    command = globals()[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
    if command is not None:
        asyncio.run(command)
