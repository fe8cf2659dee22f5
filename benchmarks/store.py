"""The file store beside raw system calls, diskcache and py-key-value's stores, interleaved in one run.

Ratios are of medians of single calls that take turns, so that all see the same machine. Nothing is
deleted between cases: creating files on ext4 is thirty times slower for seconds after mass deletes.
The needed packages are pinned in `constraints.txt` beside this script; `make bench` installs them.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import importlib
import itertools
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path
from typing import Any, Final, NamedTuple

import aiofiles
from startup import Server

from iris_kv.model import Limits, Provenance, Unwatched
from iris_kv.store.cache import CacheOptions
from iris_kv.store.checks import Listing, PutRequest
from iris_kv.store.files import FileStore
from iris_kv.store.threads import StoreThreads

HERE: Final = Path(__file__).parent
SMALL: Final = os.urandom(4096)
LARGE: Final = os.urandom(262_144)
TINY: Final = b"x" * 64
LIMITS: Final = Limits(quota_bytes=1 << 40, max_value_bytes=1 << 30, ttl_ms=None, renew=False)
BY: Final = Provenance(author="agent", face="library")
WORST_GOAL_MS: Final = 100.0
_NUMBER: Final = itertools.count()


class SystemClock:
    """The machine's time."""

    def now_ms(self) -> int:
        """Return the time in milliseconds since the epoch."""
        return time.time_ns() // 1_000_000


class Ratio(NamedTuple):
    """One comparison: medians in microseconds."""

    what: str
    ours: float
    theirs: float
    goal: float | None

    @property
    def value(self) -> float:
        """Return ours over theirs."""
        return self.ours / self.theirs


class Ours:
    """Our store as one thread uses it: its synchronous core, without a hop between threads."""

    def __init__(self, folder: Path, *, durable: bool = False) -> None:
        """Open the store in a folder."""
        folder.mkdir(exist_ok=True)
        self._options = CacheOptions(
            workspace=folder,
            clock=SystemClock(),
            face="library",
            create=True,
            durable=durable,
            trust_owner=False,
            lock_timeout_s=10.0,
            watch=Unwatched(),
            shared_disk=None,
        )
        self._threads = StoreThreads(self._options)

    def put(self, key: str, value: bytes) -> None:
        """Write a value."""
        request = PutRequest("task", key, "application/octet-stream", LIMITS, BY, None, {}, None)
        self._threads.writing.put(request, value)

    def get(self, key: str) -> bytes:
        """Read a value, verified."""
        return self._threads.reading.get("task", key).value

    def list(self) -> int:
        """Walk all keys and return how many there are."""
        cursor, n = None, 0
        while True:
            page = self._threads.reading.list("task", Listing("", cursor, 1000, None), include_expired=False)
            n, cursor = n + len(page.entries), page.next_cursor
            if cursor is None:
                return n

    def close(self) -> None:
        """Close the store."""
        asyncio.run(self._threads.close())


class Raw:
    """What a put and a get cost at least: a temporary file that is renamed, and a verified read."""

    def __init__(self, folder: Path, *, durable: bool = False) -> None:
        """Write to a folder."""
        folder.mkdir(exist_ok=True)
        self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        self._durable = durable

    def put(self, key: str, value: bytes) -> None:
        """Write a value."""
        temporary = f".tmp-{next(_NUMBER)}"
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=self._folder)
        os.write(handle, value)
        hashlib.sha256(value).digest()
        if self._durable:
            os.fsync(handle)
        os.close(handle)
        os.rename(temporary, key, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        if self._durable:
            os.fsync(self._folder)

    def get(self, key: str) -> bytes:
        """Read a value and hash it."""
        handle = os.open(key, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=self._folder)
        value = os.read(handle, os.fstat(handle).st_size + 1)
        os.close(handle)
        hashlib.sha256(value).digest()
        return value


class Peers:
    """Every store with as many keys, filled before anything is measured."""

    def __init__(self, folder: Path, n_keys: int) -> None:
        """Fill them; every 20th value has 4 KiB, the others 64 bytes."""
        self.n_keys = n_keys
        self.folder = folder / str(n_keys)
        self.folder.mkdir()
        self.ours = Ours(self.folder / "ours")
        self.raw = Raw(self.folder / "raw")
        self.diskcache: Any = importlib.import_module("diskcache").Cache(
            str(self.folder / "diskcache"), eviction_policy="none", size_limit=1 << 40
        )
        disk: Any = importlib.import_module("key_value.aio.stores.disk")
        tree: Any = importlib.import_module("key_value.aio.stores.filetree")
        self.disk = disk.DiskStore(directory=self.folder / "pkv-disk")
        self.tree = tree.FileTreeStore(data_directory=self.folder / "pkv-tree")
        for number in range(n_keys):
            value = SMALL if number % 20 == 0 else TINY
            for store in (self.ours, self.raw):
                store.put(f"k{number}", value)
            self.diskcache.set(f"k{number}", value)
        asyncio.run(self._fill_async())

    async def _fill_async(self) -> None:
        for number in range(self.n_keys):
            value = {"v": (SMALL if number % 20 == 0 else TINY).hex()}
            await self.disk.put(f"k{number}", value)
            await self.tree.put(f"k{number}", value)

    def small_keys(self, n: int) -> Iterator[str]:
        """Return keys of values of 4 KiB, spread over all."""
        step = max(1, self.n_keys // 20 // n)
        return (f"k{20 * (number * step % (self.n_keys // 20))}" for number in range(n))


def medians(n: int, *calls: Callable[[int], object]) -> list[float]:
    """Make calls in turn and return the median of each in microseconds; the first ones only warm up."""
    taken: list[list[float]] = [[] for _ in calls]
    for number in range(n + 10):
        for call, times in zip(calls, taken, strict=True):
            started = time.perf_counter()
            call(number)
            if number >= 10:
                times.append((time.perf_counter() - started) * 1e6)
    return [statistics.median(times) for times in taken]


async def medians_async(n: int, *calls: Callable[[int], Awaitable[object]]) -> list[float]:
    """Do as `medians` does, awaiting each call."""
    taken: list[list[float]] = [[] for _ in calls]
    for number in range(n + 10):
        for call, times in zip(calls, taken, strict=True):
            started = time.perf_counter()
            await call(number)
            if number >= 10:
                times.append((time.perf_counter() - started) * 1e6)
    return [statistics.median(times) for times in taken]


def puts(folder: Path, rounds: int, large: Any) -> list[Ratio]:
    """Compare puts with raw system calls and with diskcache."""
    durable, raw_durable = Ours(folder / "durable", durable=True), Raw(folder / "raw-durable", durable=True)
    fast, raw = Ours(folder / "fast"), Raw(folder / "raw-fast")
    ours_d, raw_d, ours_f, raw_f, ours_l, theirs_l = medians(
        rounds,
        lambda n: durable.put(f"k{n}", SMALL),
        lambda n: raw_durable.put(f"k{n}", SMALL),
        lambda n: fast.put(f"k{n}", SMALL),
        lambda n: raw.put(f"k{n}", SMALL),
        lambda n: fast.put(f"large{n}", LARGE),
        lambda n: large.set(f"large{n}", LARGE),
    )
    durable.close()
    fast.close()
    return [
        Ratio("durable put 4 KiB / raw temp+fsync+rename+folder fsync", ours_d, raw_d, 2.0),
        Ratio("put 4 KiB, fast / raw temp+rename", ours_f, raw_f, 3.0),
        Ratio("put 256 KiB, fast / diskcache", ours_l, theirs_l, 1.0),
    ]


def at_size(peers: Peers, rounds: int) -> tuple[list[Ratio], dict[str, float]]:
    """Compare gets, puts and lists of stores with so many keys."""
    keys = list(peers.small_keys(rounds + 10))
    get, raw_get, disk_get, put, raw_put, disk_put = medians(
        rounds,
        lambda n: peers.ours.get(keys[n]),
        lambda n: peers.raw.get(keys[n]),
        lambda n: peers.diskcache.get(keys[n]),
        lambda n: peers.ours.put(f"new{n}", SMALL),
        lambda n: peers.raw.put(f"new{n}", SMALL),
        lambda n: peers.diskcache.set(f"new{n}", SMALL),
    )
    size = f"{peers.n_keys:,} keys: "
    goals = (1.8, 2.0) if peers.n_keys == 10_000 else (None, None)
    found = [
        Ratio(size + "verified get 4 KiB / raw open+fstat+read+SHA-256", get, raw_get, goals[0]),
        Ratio(size + "verified get 4 KiB / diskcache's unverified get", get, disk_get, goals[1]),
        Ratio(size + "put 4 KiB, fast / raw temp+rename", put, raw_put, None),
        Ratio(size + "put 4 KiB, fast / diskcache", put, disk_put, None),
    ]
    if peers.n_keys == 10_000:
        ours, theirs = medians(5, lambda _: peers.ours.list(), lambda _: list(peers.diskcache.iterkeys()))
        found.append(Ratio(size + "list / diskcache", ours, theirs, 0.3))
    return found, {"get": get, "put": put, "raw put": raw_put, "raw get": raw_get}


async def asynchronous(peers: Peers, rounds: int) -> list[Ratio]:
    """Compare what async programs call: ours, aiofiles, and py-key-value's stores."""
    keys = list(peers.small_keys(rounds + 10))
    where = peers.folder / "raw"

    async def read_file(n: int) -> bytes:
        async with aiofiles.open(where / keys[n], "rb") as file:
            return await file.read()

    async with aclosing(await FileStore.open(peers.folder / "ours", clock=SystemClock(), durable=False)) as store:

        async def put(n: int) -> None:
            await store.put(
                "task", f"async{n}", SMALL, content_type="application/octet-stream", limits=LIMITS, provenance=BY
            )

        value = {"v": SMALL.hex()}
        get_us, file_us, disk_us, tree_us, put_us, put_disk_us, put_tree_us = await medians_async(
            rounds,
            lambda n: store.get("task", keys[n]),
            read_file,
            lambda n: peers.disk.get(keys[n]),
            lambda n: peers.tree.get(keys[n]),
            put,
            lambda n: peers.disk.put(f"async{n}", value),
            lambda n: peers.tree.put(f"async{n}", value),
        )
    size = f"{peers.n_keys:,} keys: "
    goal = 0.4 if peers.n_keys == 10_000 else None
    return [
        Ratio(size + "async get / aiofiles read of the same bytes", get_us, file_us, goal),
        Ratio(size + "async get / py-key-value DiskStore (blocks the loop)", get_us, disk_us, None),
        Ratio(size + "async get / py-key-value FileTreeStore", get_us, tree_us, None),
        Ratio(size + "async put / py-key-value DiskStore (blocks the loop)", put_us, put_disk_us, None),
        Ratio(size + "async put / py-key-value FileTreeStore", put_us, put_tree_us, None),
    ]


def growth(small: Peers, big: Peers, rounds: int) -> list[Ratio]:
    """Compare a store of many keys with one of few."""
    few, many = list(small.small_keys(rounds + 10)), list(big.small_keys(rounds + 10))
    get_s, get_b, put_s, put_b = medians(
        rounds,
        lambda n: small.ours.get(few[n]),
        lambda n: big.ours.get(many[n]),
        lambda n: small.ours.put(f"grow{n}", SMALL),
        lambda n: big.ours.put(f"grow{n}", SMALL),
    )

    def opened(peers: Peers) -> None:
        store = Ours(peers.folder / "ours")
        store.get("k0")
        store.close()

    open_s, open_b = medians(20, lambda _: opened(small), lambda _: opened(big))
    between = f"at {big.n_keys:,} keys / at {small.n_keys:,}: "
    return [
        Ratio(between + "open, first get, close", open_b, open_s, 2.0),
        Ratio(between + "get", get_b, get_s, 2.0),
        Ratio(between + "put (the directory itself costs most of it)", put_b, put_s, 3.0),
    ]


def write_durably(folder: Path, name: str, n: int) -> None:
    """Put values durably as one of several processes, and print the time of each in microseconds."""
    store = Ours(folder, durable=True)
    store.put(name, SMALL)
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(n):
        started = time.perf_counter()
        store.put(f"{name}{number % 50}", SMALL)
        print((time.perf_counter() - started) * 1e6)
    store.close()


def processes(folder: Path, n_processes: int, n: int) -> tuple[float, float, float]:
    """Return puts a second of all, the median and the worst put in milliseconds, with several durable writers."""
    command = [sys.executable, __file__, "--writer", str(folder), "--puts", str(n)]
    writers: list[subprocess.Popen[str]] = [
        subprocess.Popen([*command, "--name", f"w{number}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for number in range(n_processes)
    ]
    for writer in writers:
        assert writer.stdout is not None
        writer.stdout.readline()
    started = time.perf_counter()
    with ThreadPoolExecutor(n_processes) as threads:
        told = list(threads.map(_let_go, writers))
    taken = time.perf_counter() - started
    times = [float(line) / 1000 for text in told for line in text.split()]
    return len(times) / taken, statistics.median(times), max(times)


def _let_go(writer: subprocess.Popen[str]) -> str:
    return writer.communicate("go\n")[0]


async def loop_lag(folder: Path, rounds: int) -> tuple[float, float]:
    """Return how late the event loop is, at the 99th percentile and at worst in ms, while 8 tasks put and get."""
    late: list[float] = []
    done = asyncio.Event()

    async def watch() -> None:
        while not done.is_set():
            started = time.perf_counter()
            await asyncio.sleep(0.001)
            late.append((time.perf_counter() - started - 0.001) * 1000)

    async with aclosing(await FileStore.open(folder, clock=SystemClock())) as store:

        async def work(name: str) -> None:
            for number in range(rounds):
                key = f"{name}{number % 20}"
                await store.put("task", key, SMALL, content_type="text/plain", limits=LIMITS, provenance=BY)
                await store.get("task", key)

        watcher = asyncio.ensure_future(watch())
        await asyncio.gather(*(work(name) for name in "abcdefgh"))
        done.set()
        await watcher
    late.sort()
    return late[len(late) * 99 // 100], late[-1]


def idle_memory(folder: Path) -> tuple[float, float]:
    """Return the resident megabytes of an idle minimal server of the SDK, and of ours."""
    folder.mkdir()
    floor = [sys.executable, str(HERE / "minimal_server.py")]
    ours = [sys.executable, "-c", "from iris_kv.cli import main; main()", "serve", "--workspace", str(folder)]
    found: list[float] = []
    for command in (floor, ours):
        with Server(command) as server:
            if command is ours:
                server.call("cache_list", {"scope": "task"})
            time.sleep(3)
            status = Path(f"/proc/{server.pid}/status").read_text("ascii")
            found.append(int(status.split("VmRSS:")[1].split()[0]) / 1024)
    return found[0], found[1]


def main() -> None:
    """Run everything, print the table, and write it and the plot beside this script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1000, help="Calls of each kind.")
    parser.add_argument("--keys", type=int, nargs=3, default=[100, 10_000, 100_000], help="Three sizes of stores.")
    parser.add_argument("--folder", type=Path, help="Where the stores are made; default: the temporary folder.")
    parser.add_argument("--writer", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--name", default="", help=argparse.SUPPRESS)
    parser.add_argument("--puts", type=int, default=300, help="Puts of each of several processes.")
    options = parser.parse_args()
    if options.writer is not None:
        write_durably(options.writer, options.name, options.puts)
        return
    folder = Path(tempfile.mkdtemp(dir=options.folder, prefix="iris-kv-bench-"))
    try:
        lines, ratios, sizes = measure(folder, options.rounds, options.keys, options.puts)
    finally:
        shutil.rmtree(folder)
    text = "\n".join(lines) + "\n"
    print(text, end="")
    (HERE / "store.txt").write_text(text)
    plot(ratios, sizes)


def measure(
    folder: Path, rounds: int, keys: Sequence[int], n_puts: int
) -> tuple[list[str], list[Ratio], dict[int, dict[str, float]]]:
    """Return the table's lines, its ratios, and medians by number of keys."""
    load = os.getloadavg()[0]
    peers = [Peers(folder, n) for n in keys]
    ratios = puts(folder, rounds, peers[0].diskcache)
    sizes: dict[int, dict[str, float]] = {}
    for each in peers:
        found, sizes[each.n_keys] = at_size(each, rounds)
        ratios += found
    ratios += growth(peers[0], peers[-1], rounds)
    for each in peers:
        ratios += asyncio.run(asynchronous(each, rounds))
    system = f"Python {platform.python_version()}, {platform.system()} {platform.release()}, {os.cpu_count()} cores"
    lines = [
        f"{system}, load {load:.1f} before and {os.getloadavg()[0]:.1f} after",
        f"medians of {rounds} calls that take turns, in microseconds",
        f"{'':<66}{'ours':>10}{'theirs':>10}{'ratio':>8}{'goal':>8}",
        *(shown(each) for each in ratios),
        *concurrent(folder, n_puts),
    ]
    for each in peers:
        each.ours.close()
    return lines, ratios, sizes


def concurrent(folder: Path, n_puts: int) -> list[str]:
    """Return the lines on several processes, the event loop and memory."""
    lines: list[str] = []
    for n in (1, 2, 4):
        rate, median, worst = processes(folder / f"writers{n}", n, n_puts)
        goal = "" if n < 4 else f" (goal: {WORST_GOAL_MS:.0f} ms{'' if worst <= WORST_GOAL_MS else ', MISSED'})"
        lines.append(
            f"{n} durable writers: {rate:.0f} puts a second, median {median:.2f} ms, worst {worst:.1f} ms{goal}"
        )
    (folder / "lag").mkdir()
    p99, worst = asyncio.run(loop_lag(folder / "lag", max(10, n_puts // 3)))
    lines.append(
        f"event loop under 8 tasks of durable puts and gets: {p99:.1f} ms late at p99, {worst:.1f} ms at worst"
    )
    floor, ours = idle_memory(folder / "idle")
    lines.append(f"memory of an idle server over stdio: {ours:.0f} MB; a minimal server of the SDK: {floor:.0f} MB")
    return lines


def shown(ratio: Ratio) -> str:
    """Return a line of the table."""
    goal = "" if ratio.goal is None else f"<= {ratio.goal}"
    missed = " MISSED" if ratio.goal is not None and ratio.value > ratio.goal else ""
    return f"{ratio.what:<66}{ratio.ours:>10.1f}{ratio.theirs:>10.1f}{ratio.value:>8.2f}{goal:>8}{missed}"


def plot(ratios: Sequence[Ratio], sizes: dict[int, dict[str, float]]) -> None:
    """Draw the ratios with their goals, and how puts and gets grow with the number of keys."""
    matplotlib: Any = importlib.import_module("matplotlib")
    matplotlib.use("Agg")
    pyplot: Any = importlib.import_module("matplotlib.pyplot")
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(15, 6), width_ratios=(3, 2))
    goals = [each for each in reversed(ratios) if each.goal is not None]
    left.barh([each.what for each in goals], [each.value for each in goals], color="#4477aa")
    left.plot([each.goal for each in goals], range(len(goals)), "k|", markersize=22, label="goal: at most")
    left.set_xlabel("ours / theirs")
    left.legend(loc="lower right")
    for name, style in (("put", "o-"), ("raw put", "o:"), ("get", "s-"), ("raw get", "s:")):
        right.plot(list(sizes), [each[name] for each in sizes.values()], style, label=f"{name}, 4 KiB")
    right.set(xscale="log", yscale="log", xlabel="keys", ylabel="median, microseconds")
    right.legend()
    figure.tight_layout()
    figure.savefig(HERE / "store.png", dpi=110, metadata={"Software": ""})


if __name__ == "__main__":
    main()
