"""The processes that fault tests break: one that forks a child for each command, and imports only the store.

    python -m tests.faults.program

reads commands as JSON, one a line: `[name, workspace, argument, ...]`. Each child tells on stdout what
it begins and what was acknowledged, by digest. It does so with `writev`, as `write` is made to fail.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Awaitable
from contextlib import aclosing, suppress
from pathlib import Path

import anyio
import anyio.lowlevel

from iris_kv.errors import IrisError, QuotaExceededError
from iris_kv.model import Keep, Limits, Provenance, Scope, digest_of
from iris_kv.store.files import FileStore

ABSENT = "absent"
LIMITS = Limits(
    quota_bytes=100_000_000,
    max_value_bytes=100_000_000,
    ttl_ms=None,
    renew=False,
    keep=Keep(versions=3, deleted_ms=86_400_000),
)
RACE_QUOTA = 1 << 20
ARCHIVE = "archive"
ARCHIVED = {key: key.encode() * 1000 for key in ("one", "two", "first")}
"""What an archive of the scope `task` holds."""
WRITTEN_SINCE = "later"
BY = Provenance(author="agent", face="mcp")


class RealClock:
    def now_ms(self) -> int:
        return int(time.time() * 1000)


def say(*words: str) -> None:
    os.writev(1, [" ".join(words).encode() + b"\n"])


class Teller:
    """Does writes and tells of each before and after; the state of a key is a digest or `absent`."""

    def __init__(self, store: FileStore, *, dies: bool = False) -> None:
        self.store = store
        self.dies = dies

    async def put(self, scope: Scope, key: str, value: bytes, limits: Limits = LIMITS) -> None:
        work = self.store.put(scope, key, value, content_type="text/plain", limits=limits, provenance=BY)
        await self._tell(scope, key, digest_of(value), work)

    async def delete(self, scope: Scope, key: str) -> None:
        await self._tell(scope, key, ABSENT, self.store.delete(scope, key, keep=LIMITS.keep))

    async def restore(self, scope: Scope, key: str) -> None:
        kept = (await self.store.history(scope, key)).kept[0]
        work = self.store.restore_entry(scope, key, kept.version, limits=LIMITS)
        await self._tell(scope, key, kept.digest, work)

    async def clear(self, scope: Scope) -> None:
        keys: list[str] = []
        if not await self._did(self._list(scope, keys)):
            return
        for key in keys:
            say("begin", scope, key, ABSENT)
        if await self._did(self.store.clear(scope, keep=LIMITS.keep)):
            for key in keys:
                say("ack", scope, key, ABSENT)

    async def _list(self, scope: Scope, keys: list[str]) -> None:
        keys += [info.key for info in (await self.store.list(scope)).entries]

    async def collect(self) -> None:
        await self._did(self.store.collect())

    async def restore_archive(self, path: Path) -> None:
        states = {key: digest_of(value) for key, value in ARCHIVED.items()} | {WRITTEN_SINCE: ABSENT}
        for key, state in states.items():
            say("begin", "task", key, state)
        if await self._did(self.store.restore(path)):
            for key, state in states.items():
                say("ack", "task", key, state)

    async def _tell(self, scope: Scope, key: str, state: str, work: Awaitable[object]) -> None:
        say("begin", scope, key, state)
        if await self._did(work):
            say("ack", scope, key, state)

    async def _did(self, work: Awaitable[object]) -> bool:
        try:
            await work
        except IrisError as error:
            say("refused", error.code, error.wrong)
            if self.dies:
                os.kill(os.getpid(), signal.SIGKILL)
            return False
        return True


async def write_for_ever(workspace: Path, name: str, seed: str, durability: str) -> None:
    """Put, delete and restore three keys at random."""
    chance = random.Random(seed + name)
    tell = Teller(await FileStore.open(workspace, clock=RealClock(), durable=durability == "full"))
    while True:
        key = f"{name}{chance.randrange(3)}"
        dice = chance.random()
        with suppress(IrisError, IndexError):
            if dice < 0.8:
                await tell.put("task", key, chance.randbytes(chance.choice([10, 5_000, 100_000])))
            elif dice < 0.9:
                await tell.delete("task", key)
            else:
                await tell.restore("task", key)


async def put_old(workspace: Path) -> None:
    """Put values that nobody touches afterwards."""
    async with aclosing(await FileStore.open(workspace, clock=RealClock(), durable=False)) as store:
        for key in ("old1", "old2"):
            value = key.encode() * 5_000
            await store.put("project", key, value, content_type="text/plain", limits=LIMITS, provenance=BY)
            say("synced", "project", key, digest_of(value))


async def one_of_each(workspace: Path, manner: str) -> None:
    """Stop, and once continued do every kind of write; with the manner `dies`, only up to the first that fails."""
    chance = random.Random(time.monotonic_ns())
    store = await FileStore.open(workspace, clock=RealClock())
    tell = Teller(store)
    for scope, key in (("task", "over"), ("task", "away"), ("project", "one"), ("project", "two")):
        await tell.put(scope, key, chance.randbytes(900))
    tell.dies = manner == "dies"
    stop()
    await tell.put("task", f"new{chance.randrange(50)}", chance.randbytes(3_000))
    await tell.put("task", "over", chance.randbytes(70_000))
    await tell.delete("task", "away")
    await suppressed(tell.restore("task", "away"))
    await tell.clear("project")
    await tell.collect()
    await store.aclose()


async def create(workspace: Path, manner: str) -> None:
    """Stop, and once continued make the cache, or rebuild it, and write to it."""
    stop()
    try:
        store = await FileStore.open(workspace, clock=RealClock())
    except IrisError as error:
        say("refused", error.code, error.wrong)
        return
    tell = Teller(store, dies=manner == "dies")
    await tell.put("task", "first", b"the first value")
    await store.aclose()


async def restore_archive(workspace: Path, manner: str) -> None:
    """Stop, and once continued replace what is there by an archive."""
    store = await FileStore.open(workspace, clock=RealClock())
    tell = Teller(store, dies=manner == "dies")
    stop()
    await tell.restore_archive(workspace / ARCHIVE)
    await store.aclose()


async def suppressed(work: Awaitable[None]) -> None:
    with suppress(IrisError, IndexError):
        await work


async def stop_in_lock(workspace: Path) -> None:
    """Stop in the middle of a write, and go on with it once continued."""
    async with aclosing(await FileStore.open(workspace, clock=RealClock())) as store:
        tell = Teller(store)
        await tell.put("task", "k", b"old")
        rename = os.rename

        def stopping(old: str, new: str, **folders: int) -> None:
            # The manifest is renamed without the lock.
            if new[0] != ".":
                os.rename = rename
                stop()
            rename(old, new, **folders)

        os.rename = stopping
        await tell.put("task", "k", b"newer")


def stop() -> None:
    # To this thread: another one might take a signal to the process, and this one run on meanwhile.
    signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)


async def race(workspace: Path, seed: str) -> None:
    """Fill a scope to its quota, again and again; history counts, too."""
    sizes = random.Random(seed)
    limits = LIMITS.model_copy(update={"quota_bytes": RACE_QUOTA})
    async with aclosing(await FileStore.open(workspace, clock=RealClock(), durable=False)) as store:
        for number in range(150):
            with suppress(QuotaExceededError):
                key, value = f"{seed}{number % 40}", b"x" * sizes.randrange(100_000)
                await store.put("task", key, value, content_type="text/plain", limits=limits, provenance=BY)
            used = await store.usage("task")
            assert used.bytes + used.kept_bytes <= RACE_QUOTA, used


COMMANDS = {
    "write_for_ever": write_for_ever,
    "put_old": put_old,
    "one_of_each": one_of_each,
    "create": create,
    "rebuild": create,
    "restore_archive": restore_archive,
    "stop_in_lock": stop_in_lock,
    "race": race,
}
STOPPING = {"stop_in_lock", "one_of_each", "create", "rebuild", "restore_archive"}


def main() -> None:
    """Fork a child for each command and tell its number, and how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # A write that is made to fail may be the log's own, which is no fault of the store.
    logging.raiseExceptions = False
    # Loaded at its first use, which is to be none of the calls that are made to fail.
    anyio.run(anyio.lowlevel.checkpoint)
    children: set[int] = set()
    while line := sys.stdin.buffer.readline():
        name, *arguments = json.loads(line)
        if name == "wait":
            while children:
                child, status = os.wait()
                children.remove(child)
                say("ended", str(child), str(os.waitstatus_to_exitcode(status)))
            say("all-ended")
            continue
        child = os.fork()
        if child == 0:
            workspace, *rest = arguments
            asyncio.run(COMMANDS[name](Path(workspace), *rest))
            os._exit(0)
        children.add(child)
        say("started", str(child))
        if name in STOPPING:
            os.waitid(os.P_PID, child, os.WSTOPPED | os.WNOWAIT)
            say("ready")


if __name__ == "__main__":
    main()
