"""Start and call over stdio, as ratios to a minimal server of the same SDK, interleaved in one run.

Both servers are real processes. Start is the time from spawn to the answer of the first
`tools/list`. A call is one round trip over the raw pipe, so that no client's cost hides the
difference. Cold drops the page cache before each start, where the kernel lets us.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Self, cast

HERE: Final = Path(__file__).parent
START_GOAL: Final = 1.3
CALL_GOAL: Final = 1.5


class Server:
    """One server process and its pipe."""

    def __init__(self, command: Sequence[str]) -> None:
        """Start the process and list its tools; `start_s` is how long that took."""
        started = time.perf_counter()
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self.pid = self._process.pid
        self._id = 0
        client = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "bench", "version": "1"}}
        self.request("initialize", client)
        self._send({"jsonrpc": "2.0", "method": "notifications/initialized"})
        self.request("tools/list", {})
        self.start_s = time.perf_counter() - started

    def __enter__(self) -> Self:
        """Return the running server."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process as a client does: by closing its stdin."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)

    def request(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """Send a request and return its result."""
        self._id += 1
        self._send({"jsonrpc": "2.0", "id": self._id, "method": method, "params": params})
        assert self._process.stdout is not None
        while line := self._process.stdout.readline():
            answer = cast("dict[str, Any]", json.loads(line))
            if answer.get("id") == self._id:
                return cast("dict[str, Any]", answer["result"])
        raise RuntimeError("the server ended")

    def call(self, name: str, arguments: dict[str, Any]) -> None:
        """Call a tool and check that it worked."""
        if self.request("tools/call", {"name": name, "arguments": arguments}).get("isError"):
            raise RuntimeError(f"{name} failed")

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        self._process.stdin.flush()


def main() -> None:
    """Run both comparisons and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="Starts of each server, warm.")
    parser.add_argument("--calls", type=int, default=2000, help="Calls of each tool.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ours = [sys.executable, "-c", "from iris_kv.cli import main; main()", "serve", "--workspace", folder]
        floor = [sys.executable, str(HERE / "minimal_server.py")]
        lines = [
            f"Python {platform.python_version()}, {platform.system()}, {os.cpu_count()} cores; medians (ms)",
            f"{'':<34}{'floor':>9}{'iris-kv':>9}{'ratio':>8}{'goal':>8}",
        ]
        warm = _starts(floor, ours, options.rounds, lambda: None)
        lines.append(_row("first tools/list after spawn, warm", *warm, START_GOAL))
        if _drop_page_cache():
            cold = _starts(floor, ours, max(3, options.rounds // 3), lambda: _drop_page_cache() or None)
            lines.append(_row("first tools/list after spawn, cold", *cold, None))
        else:
            lines.append("first tools/list after spawn, cold: not measured, as the page cache may not be dropped here")
        lines.append(_row("get_instruction / no-op call", *_calls(floor, ours, options.calls), CALL_GOAL))
    print("\n".join(lines))


def _starts(
    floor: Sequence[str], ours: Sequence[str], rounds: int, before: Callable[[], object]
) -> tuple[list[float], list[float]]:
    """Start both servers in turn; the first start of each only warms up."""
    taken: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        for command, times in zip((floor, ours), taken, strict=True):
            before()
            with Server(command) as server:
                if number:
                    times.append(server.start_s)
    return taken


def _calls(floor: Sequence[str], ours: Sequence[str], calls: int) -> tuple[list[float], list[float]]:
    """Call both servers in turn, in blocks, so that both see the same machine."""
    taken: tuple[list[float], list[float]] = ([], [])
    with Server(floor) as minimal, Server(ours) as iris:
        arguments: tuple[dict[str, Any], dict[str, Any]] = ({}, {"tag": "research"})
        cases = ((minimal, "nothing", arguments[0]), (iris, "get_instruction", arguments[1]))
        for number in range(calls + 50):
            for (server, name, given), times in zip(cases, taken, strict=True):
                started = time.perf_counter()
                server.call(name, given)
                if number >= 50:
                    times.append(time.perf_counter() - started)
    return taken


def _row(what: str, floor: list[float], ours: list[float], goal: float | None) -> str:
    base, mine = statistics.median(floor) * 1000, statistics.median(ours) * 1000
    shown = "" if goal is None else f"<= {goal}"
    return f"{what:<34}{base:>9.2f}{mine:>9.2f}{mine / base:>8.2f}{shown:>8}"


def _drop_page_cache() -> bool:
    try:
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("1", "ascii")
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main()
