"""Every system call fails once, or is the last: strace breaks the K-th of each kind, counted from where it attaches."""

from __future__ import annotations

import asyncio
import re
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, aclosing
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.faults.breaking import INDEX, PATIENCE_S, Ledger, Mother
from tests.faults.conftest import Rounds
from tests.faults.program import ABSENT, ARCHIVE, ARCHIVED, BY, LIMITS, WRITTEN_SINCE, RealClock

from iris_kv.model import digest_of
from iris_kv.store.files import FileStore

CALLS = {
    "openat": "openat",
    "write": "write",
    "pwrite": "pwrite64",
    "fsync": "fsync",
    "fdatasync": "fdatasync",
    "rename": "rename,renameat,renameat2",
    "unlink": "unlink,unlinkat",
    "link": "link,linkat",
    "ftruncate": "ftruncate",
    "flock": "flock",
    "fcntl": "fcntl",
}
LANES = 2


class Fault(NamedTuple):
    """What happens at the K-th call."""

    does: str
    """As strace's `inject` says it; `+` at its end: at each call from the K-th on."""
    manner: str = "goes on"
    """`dies`: the process kills itself at the first error that it is told of."""


FAULTS = {
    "killed": Fault("signal=KILL:when={k}"),
    "error": Fault("error=EIO:when={k}"),
    "full": Fault("error=ENOSPC:when={k}"),
    "error-then-killed": Fault("error=EIO:when={k}+", "dies"),
}


class Lane:
    """A mother and her store, which is broken again and again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.mother = Mother(folder / "errors")
        self._made = 0
        self._start_anew("one_of_each")

    def strike(self, command: str, calls: str, fault: Fault, k: int) -> bool:
        """Break one call and check the store; False if the call was never made."""
        if command != "one_of_each":
            self._start_anew(command)
        text = self._traced(
            command, fault.manner, "-e", f"trace={calls}", "-e", f"inject={calls}:{fault.does.format(k=k)}"
        )
        asyncio.run(self._ledger.check(self._workspace))
        return "(INJECTED)" in text or "SIGKILL" in text

    def count(self, command: str) -> Counter[str]:
        """Return how often one thread makes each call when nothing is broken."""
        self._start_anew(command)
        made = Counter(
            re.findall(
                r"^(\d+) +(\w+)\(", self._traced(command, "", "-e", f"trace={','.join(CALLS.values())}"), re.MULTILINE
            )
        )
        most: Counter[str] = Counter()
        for (_, call), n in made.items():
            most[call] = max(most[call], n)
        self._start_anew("one_of_each")
        return most

    def _traced(self, command: str, manner: str, *expressions: str) -> str:
        self.mother.start(command, self._workspace, manner)
        self.mother.until("ready", self._ledger)
        (child,) = self.mother.children(1)
        trace = self._folder / "trace"
        with attached(child, trace, *expressions):
            self.mother.signal(signal.SIGCONT)
            (code,) = self.mother.wait(self._ledger)
        assert code in (0, -signal.SIGKILL)
        return trace.read_text()

    def _start_anew(self, command: str) -> None:
        self._made += 1
        self._ledger, self._workspace = Ledger(), self._folder / str(self._made)
        self._workspace.mkdir()
        if command in BEFORE:
            asyncio.run(BEFORE[command](self._workspace, self._ledger))


async def lose_index(workspace: Path, ledger: Ledger) -> None:
    async with aclosing(await FileStore.open(workspace, clock=RealClock())) as store:
        await put_all(store, ledger, ARCHIVED)
    (workspace / INDEX).unlink()


async def write_since_archive(workspace: Path, ledger: Ledger) -> None:
    async with aclosing(await FileStore.open(workspace, clock=RealClock())) as store:
        await put_all(store, ledger, ARCHIVED)
        await store.back_up(workspace / ARCHIVE)
        await put_all(store, ledger, {"one": b"newer", WRITTEN_SINCE: b"not archived"})
        await store.delete("task", "two")
        ledger.note(["ack", "task", "two", ABSENT])


async def put_all(store: FileStore, ledger: Ledger, values: Mapping[str, bytes]) -> None:
    for key, value in values.items():
        await store.put("task", key, value, content_type="text/plain", limits=LIMITS, provenance=BY)
        ledger.note(["ack", "task", key, digest_of(value)])


BEFORE = {"rebuild": lose_index, "restore_archive": write_since_archive}


class attached:  # noqa: N801 - reads as what it is
    """strace on a stopped process and its threads, from here to its end."""

    def __init__(self, process: int, trace: Path, *expressions: str) -> None:
        call = ["strace", "-f", "-p", str(process), "-o", str(trace), *expressions]
        self._strace = subprocess.Popen(call, stderr=subprocess.PIPE, text=True)

    def __enter__(self) -> None:
        line = self._strace.stderr.readline()
        if "attached" not in line:
            self._strace.kill()
            self._strace.wait(PATIENCE_S)
            raise PermissionError(line)

    def __exit__(self, *_: object) -> None:
        self._strace.stderr.close()
        self._strace.wait(PATIENCE_S)


@pytest.fixture(scope="session")
def needs_strace(tmp_path_factory: pytest.TempPathFactory) -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            with attached(process.pid, tmp_path_factory.mktemp("strace") / "trace"):
                process.kill()
        except PermissionError as error:
            pytest.skip(f"ptrace is denied here ({error})")
        finally:
            process.kill()


@pytest.fixture(scope="session")
def lanes(needs_strace: None, memory_folder: Path) -> Iterator[list[Lane]]:
    """Two lanes side by side, in memory: the disk's own time is no part of the question."""
    folders = [memory_folder / f"lane{n}" for n in range(LANES)]
    for folder in folders:
        folder.mkdir()
    made = [Lane(folder) for folder in folders]
    with ExitStack() as stack:
        for lane in made:
            stack.enter_context(lane.mother)
        yield made


@pytest.fixture(scope="session")
def counts(lanes: list[Lane]) -> dict[str, Counter[str]]:
    """How often each kind of run makes each call."""
    return {command: lanes[0].count(command) for command in ("one_of_each", "create", *BEFORE)}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("calls", CALLS)
def test_a_broken_call_of_a_writer_loses_nothing(lanes, counts, rounds: Rounds, calls: str, fault: str) -> None:
    most = rounds.of_each_call if fault != "killed" else None
    if calls == "fcntl":
        # Locks change nothing on the disk, so that a kill between two of SQLite's 165 is like one at the next
        # write; and it tries a lock that fails again and again for ten seconds.
        most = 1 if fault == "error-then-killed" else 6
    strike_all(lanes, counts, "one_of_each", CALLS[calls], FAULTS[fault], most)


@pytest.mark.parametrize("fault", ["killed", "full"])
@pytest.mark.parametrize("command", ["create", *BEFORE])
def test_a_broken_call_while_a_cache_is_made_rebuilt_or_restored_loses_nothing(
    lanes, counts, rounds: Rounds, command: str, fault: str
) -> None:
    for calls in CALLS.values():
        strike_all(lanes, counts, command, calls, FAULTS[fault], rounds.of_each_call)


def strike_all(
    lanes: list[Lane], counts: dict[str, Counter[str]], command: str, calls: str, fault: Fault, most: int | None
) -> None:
    """Break each call of a kind in turn, or some evenly spread, with several stores side by side."""
    n_calls = sum(counts[command][call] for call in calls.split(","))
    step = max(1, n_calls // most) if most else 1
    chosen = range(1, n_calls + 1, step)

    def work(n: int) -> int:
        return sum(lanes[n].strike(command, calls, fault, k) for k in chosen[n::LANES])

    with ThreadPoolExecutor(LANES) as threads:
        struck = sum(threads.map(work, range(LANES)))
    assert struck >= len(chosen) // 2
