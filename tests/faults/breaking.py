"""What fault tests share: the mother of the processes they break, and the ledger of what may stand in a store."""

from __future__ import annotations

import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterable
from contextlib import aclosing, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
from tests.faults.program import ABSENT, RealClock

from iris_kv.errors import CorruptError, NotFoundError
from iris_kv.store.files import FileStore

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60.0
CACHE = Path(".iris/kv-cache")
INDEX = CACHE / ".store/index.db"


class Ledger:
    """Which states each key may have: the last that was acknowledged, or one begun since then."""

    def __init__(self) -> None:
        self._allowed: dict[tuple[str, str], set[str]] = {}
        self._ever: dict[tuple[str, str], set[str]] = {}
        self._old: dict[tuple[str, str], str] = {}
        self.acknowledged = 0
        self.refusals: list[str] = []

    def note(self, words: list[str]) -> None:
        match words:
            case ["begin", scope, key, state]:
                self._allowed.setdefault((scope, key), {ABSENT}).add(state)
                self._ever.setdefault((scope, key), {ABSENT}).add(state)
            case ["ack", scope, key, state]:
                self._allowed[scope, key] = {state}
                self.acknowledged += 1
            case ["synced", scope, key, state]:
                self._old[scope, key] = state
            case ["refused", *reason]:
                self.refusals.append(" ".join(reason))
            case _:
                raise AssertionError(words)

    async def check(self, workspace: Path) -> None:
        """Open the store anew, compare everything with what may stand there, and write to it."""
        async with aclosing(await FileStore.open(workspace, clock=RealClock())) as store:
            found = {name: await state_of(store, *name) for name in self._allowed}
            wrong = {name: state for name, state in found.items() if state not in self._allowed[name]}
            assert wrong == {}, {name: self._allowed[name] for name in wrong}
            verified = await store.verify()
            assert (verified.damaged, verified.usage_matches) == ((), True)
            await store.collect()
            listed = [(scope, info.key) for scope in self._scopes() async for info in entries(store, scope)]
            assert sorted(listed) == sorted(name for name, state in found.items() if state != ABSENT)
            assert {name: await state_of(store, *name) for name in found} == found
        self._allowed = {name: {state} for name, state in found.items()}

    def _scopes(self) -> set[str]:
        return {scope for scope, _ in self._allowed}

    async def check_old(self, workspace: Path) -> None:
        """Open the store anew: what was on the disk long ago is there."""
        async with aclosing(await FileStore.open(workspace, clock=RealClock())) as store:
            assert self._old
            assert {name: await state_of(store, *name) for name in self._old} == self._old

    async def check_nothing_wrong(self, workspace: Path) -> None:
        """Open the store anew: what it serves was written once; what is damaged, it says; it can be written to."""
        async with aclosing(await FileStore.open(workspace, clock=RealClock())) as store:
            for name, states in self._ever.items():
                with suppress(CorruptError):
                    assert await state_of(store, *name) in states
            verified = await store.verify()
            assert verified.usage_matches
            for each in verified.damaged:
                await store.delete(each.scope, each.key)
            assert (await store.verify()).damaged == ()
            self._allowed = {name: {await state_of(store, *name)} for name in self._ever}


async def entries(store: FileStore, scope: str):
    cursor = None
    while True:
        page = await store.list(scope, cursor=cursor, limit=500)
        for info in page.entries:
            yield info
        cursor = page.next_cursor
        if cursor is None:
            return


async def state_of(store: FileStore, scope: str, key: str) -> str:
    try:
        return (await store.get(scope, key)).info.digest
    except NotFoundError:
        return ABSENT


class Mother:
    """A process that forks children for us: forking is faster than starting Python anew."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._children: set[int] = set()

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.program"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT / "server")},
            )
        self._buffer = b""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for child in self._children:
            os.kill(child, signal.SIGKILL)
        self._process.stdin.close()
        self._process.kill()
        self._process.wait(PATIENCE_S)
        self._process.stdout.close()
        if kind is None:
            _, _, failure = self._log.read_text().partition("Traceback")
            assert not failure, failure[:8_000]

    def start(self, command: str, workspace: Path, *arguments: str) -> None:
        self._send(command, str(workspace), *arguments)

    def kill(self) -> None:
        for child in self._children:
            os.kill(child, signal.SIGKILL)

    def signal(self, number: signal.Signals) -> None:
        for child in self._children:
            os.kill(child, number)

    def lines(self, within_s: float = PATIENCE_S) -> Generator[list[str]]:
        """Give what children say until a time is over; who waits for something breaks off, and asks again."""
        until = time.monotonic() + within_s
        while True:
            while b"\n" in self._buffer:
                line, self._buffer = self._buffer.split(b"\n", 1)
                words = line.decode().split(" ")
                if words[0] == "started":
                    self._children.add(int(words[1]))
                else:
                    yield words
            readable, _, _ = select.select([self._process.stdout], [], [], max(0.0, until - time.monotonic()))
            if not readable:
                return
            part = os.read(self._process.stdout.fileno(), 1 << 16)
            assert part, self._log.read_text()
            self._buffer += part

    def until(self, word: str, ledger: Ledger | None = None) -> list[str]:
        """Note what children say until one says a word."""
        for words in self.lines():
            if ledger is not None and words[0] != "ready":
                ledger.note(words)
            if words[0] == word:
                return words
        raise AssertionError(f"nobody said {word!r}; {self._log.read_text()}")

    def listen(self, ledger: Ledger, for_s: float) -> None:
        """Note what children say for a while."""
        for words in self.lines(for_s):
            ledger.note(words)

    def children(self, n: int) -> list[int]:
        """Return the numbers of the children, once there are so many."""
        while len(self._children) < n:
            for _ in self.lines(0.01):
                raise AssertionError
        return sorted(self._children)

    def wait(self, ledger: Ledger | None = None) -> list[int]:
        """Wait until all children have ended and return their exit codes; below 0: the signal."""
        codes = self._wait(ledger)
        assert 1 not in codes, self._log.read_text()
        return codes

    def _wait(self, ledger: Ledger | None) -> list[int]:
        self._send("wait")
        codes: list[int] = []
        for words in self.lines():
            match words:
                case ["ended", child, code]:
                    self._children.discard(int(child))
                    codes.append(int(code))
                case ["all-ended"]:
                    return codes
                case _ if ledger is not None:
                    ledger.note(words)
                case _:
                    raise AssertionError(words)
        raise AssertionError("a child did not end")

    def _send(self, *words: str) -> None:
        os.write(self._process.stdin.fileno(), json.dumps(words).encode() + b"\n")


@contextmanager
def mounted(where: Path, *options: str) -> Generator[None]:
    """Mount something, or skip where that is not allowed."""
    done = subprocess.run(["mount", *options, str(where)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting is not allowed here ({done.stderr.strip()})")
    try:
        yield
    finally:
        subprocess.run(["umount", str(where)], check=True)


def moments(seed: int, n: int) -> Iterable[float]:
    """Return seconds from 5 to 300 ms to kill at."""
    chance = random.Random(seed)
    return [chance.uniform(0.005, 0.3) for _ in range(n)]
