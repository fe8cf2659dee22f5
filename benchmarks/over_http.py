"""GET and POST of a value of 4 KiB over HTTP, as ratios to a bare Starlette route; and 2,000 sandboxes in turn.

Both servers are real processes on this machine, asked call by call in turn over one kept connection
each, so that what else the machine does falls on both alike. The bare route reads the body and answers
the same bytes. A client that asks one server again at once also waits for what that does behind each
answer, such as its line in the log: the ratio back to back is told beside the latency's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import IO, Final, NamedTuple, cast

HERE: Final = Path(__file__).parent
VALUE: Final = b"v" * 4096
VALUE_PATH: Final = "/api/sandboxes/{sandbox}/kv-cache/value?scope=task&key={key}"
GET_GOAL: Final = 2.5
POST_GOAL: Final = 3.0
GROWTH_GOAL: Final = 1.1
PASSES: Final = 4

BARE: Final = """
import sys
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

VALUE = b"v" * 4096

async def get(request: Request) -> Response:
    return Response(VALUE, media_type="application/octet-stream")

async def post(request: Request) -> Response:
    await request.body()
    return Response(VALUE[:200], 201, media_type="application/json")

routes = [Route("/", get), Route("/", post, methods=["POST"])]
config = uvicorn.Config(Starlette(routes=routes), port=0, http="h11", log_level="info", access_log=False, timeout_keep_alive=60)
uvicorn.Server(config).run()
"""


class Served(NamedTuple):
    """A server process."""

    pid: int
    connection: HTTPConnection

    def ask(self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> bytes:
        """Ask for something that must succeed, and return the answer's body."""
        self.connection.request(method, path, body, dict(headers or {}))
        answer = self.connection.getresponse()
        text = answer.read()
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path} answered {answer.status}: {text[:500]!r}")
        return text


@contextmanager
def served(command: Sequence[str], env: Mapping[str, str]) -> Generator[Served]:
    """Run a server until the end of the block."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **env})
    try:
        stderr = cast("IO[str]", process.stderr)
        found = next(match for line in stderr if (match := re.search(r"http://([^\s:]+):(\d+)", line)))
        # A log that nobody reads would fill its pipe and stop the server.
        threading.Thread(target=lambda: [None for _ in stderr], daemon=True).start()
        yield Served(process.pid, HTTPConnection(found[1], int(found[2]), timeout=60))
    finally:
        process.terminate()
        process.wait(60)


class Footprint(NamedTuple):
    """What a process takes."""

    rss_mb: float
    descriptors: int

    def __str__(self) -> str:
        """Return it in words."""
        return f"RSS {self.rss_mb:.0f} MB, {self.descriptors} descriptors"

    @classmethod
    def of(cls, pid: int) -> Footprint:
        """Return the footprint of a process."""
        pages = int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1])
        rss = pages * os.sysconf("SC_PAGE_SIZE")
        return cls(rss / 1e6, len(os.listdir(f"/proc/{pid}/fd")))


def iris(*arguments: str) -> list[str]:
    """Return a command of iris-kv."""
    return [str(Path(sys.executable).with_name("iris-kv")), *arguments]


class Times:
    """The times of calls of several kinds, in microseconds."""

    def __init__(self) -> None:
        """Begin with none."""
        self._found: dict[str, list[float]] = {}

    def take(self, kind: str, ask: Callable[[], object]) -> None:
        """Time one call."""
        started = time.perf_counter()
        ask()
        self._found.setdefault(kind, []).append((time.perf_counter() - started) * 1e6)

    def compared(self, kind: str) -> tuple[float, float, float]:
        """Return the median of one kind, that of the bare route, and their ratio."""
        us, bare_us = (statistics.median(self._found[each]) for each in (kind, f"bare {kind}"))
        return us, bare_us, us / bare_us


def measure_latency(env: Mapping[str, str], rounds: int, n: int) -> list[str]:
    """Compare both servers in turn, and return the lines of the result."""
    in_turn, back_to_back = Times(), Times()
    raw = {"content-type": "application/octet-stream"}
    with tempfile.TemporaryDirectory() as folder:
        command = iris("serve", "--http", "127.0.0.1:0", "--workspace", folder)
        with served(command, env) as kv, served([sys.executable, "-c", BARE], env) as bare:
            path = VALUE_PATH.format(sandbox="default", key="k")
            kv.ask("POST", path, VALUE, raw)
            asks: dict[str, Callable[[], object]] = {
                "bare GET": lambda: bare.ask("GET", "/"),
                "GET": lambda: kv.ask("GET", path),
                "bare POST": lambda: bare.ask("POST", "/", VALUE, raw),
                "POST": lambda: kv.ask("POST", path, VALUE, raw),
            }
            for _ in range(rounds):
                for _ in range(n):
                    for kind, ask in asks.items():
                        in_turn.take(kind, ask)
                for kind, ask in asks.items():
                    for _ in range(n):
                        back_to_back.take(kind, ask)
    lines: list[str] = []
    for kind, goal in (("GET", GET_GOAL), ("POST", POST_GOAL)):
        us, bare_us, ratio = in_turn.compared(kind)
        verdict = "met" if ratio <= goal else "MISSED"
        lines.append(
            f"{kind} value, 4 KiB: {us:.0f} us, bare {bare_us:.0f} us, ratio {ratio:.2f} (goal {goal}: {verdict})"
        )
        us, bare_us, ratio = back_to_back.compared(kind)
        lines.append(f"  back to back: {us:.0f} us, bare {bare_us:.0f} us, ratio {ratio:.2f}")
    return lines


def measure_sandboxes(env: Mapping[str, str], sandboxes: int) -> list[str]:
    """Use sandboxes in turn, and return the lines of the result: what is taken after the first pass, and later."""
    with (
        tempfile.TemporaryDirectory() as folder,
        served(iris("serve", "--http", "127.0.0.1:0", "--sandboxes", folder), env) as kv,
    ):
        headers = {"authorization": f"Bearer {_token(env)}", "content-type": "application/json"}
        raw = {**headers, "content-type": "application/octet-stream"}

        def create(names: range) -> None:
            for n in names:
                kv.ask("POST", "/api/sandboxes", json.dumps({"id": f"box-{n}"}).encode(), headers)
                kv.ask("POST", VALUE_PATH.format(sandbox=f"box-{n}", key="k"), VALUE, raw)

        create(range(sandboxes // 10))
        early = Footprint.of(kv.pid)
        create(range(sandboxes // 10, sandboxes))
        created, found = Footprint.of(kv.pid), list[Footprint]()
        for _ in range(PASSES):
            for n in range(sandboxes):
                kv.ask("GET", VALUE_PATH.format(sandbox=f"box-{n}", key="k"), headers=headers)
            found.append(Footprint.of(kv.pid))
    growth = [last / first for first, last in zip(found[0], found[-1], strict=True)]
    verdict = "met" if max(growth) <= GROWTH_GOAL else "MISSED"
    return [
        f"{sandboxes // 10} sandboxes created and written: {early}",
        f"{sandboxes} sandboxes created and written: {created}",
        *(f"{sandboxes} sandboxes read in turn, pass {n}: {each}" for n, each in enumerate(found, 1)),
        f"growth since pass 1 of memory {growth[0]:.2f}, of descriptors {growth[1]:.2f} (goal {GROWTH_GOAL}: {verdict})",
    ]


def _token(env: Mapping[str, str]) -> str:
    command = iris("token", "new", "--name", "bench", "--scopes", "kv:admin", "--sandboxes", "*")
    made = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **env})
    return made.stdout.strip()


def main() -> None:
    """Measure, print and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--calls", type=int, default=300)
    parser.add_argument("--sandboxes", type=int, default=2_000)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        env = {
            "HOME": home,
            "XDG_CONFIG_HOME": f"{home}/config",
            "XDG_STATE_HOME": f"{home}/state",
            "IRIS_KV_DURABILITY": "fast",
            "IRIS_KV_HTTP__REQUESTS_PER_SECOND": "unlimited",
        }
        lines = [
            f"{platform.platform()}, Python {platform.python_version()}, {os.cpu_count()} cores",
            f"durability fast; medians of {chosen.rounds * chosen.calls} calls of each kind",
            *measure_latency(env, chosen.rounds, chosen.calls),
            *measure_sandboxes(env, chosen.sandboxes),
        ]
    text = "\n".join(lines) + "\n"
    print(text, end="")
    (HERE / "over_http.txt").write_text(text, "utf-8")


if __name__ == "__main__":
    main()
