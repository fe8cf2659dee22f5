"""`iris-kv serve` as a process: what stands on its stdout, how it ends, and what a hostile client can do to it."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import pytest

from iris_kv import open_workspace

if TYPE_CHECKING:
    from tests.conftest import OpenFileStore

PATIENCE_S = 30
INITIALIZE = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "raw", "version": "1"}}


class Server:
    """A server process and its pipes; every wait has an end, as a watchdog kills what does not end."""

    def __init__(self, workspace: Path, env: Mapping[str, str], log: Path) -> None:
        self._log = log
        command = [str(Path(sys.executable).with_name("iris-kv")), "serve", "--workspace", str(workspace)]
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, env={**os.environ, **env}
            )
        self.stdin = cast("IO[bytes]", self.process.stdin)
        self.stdout = cast("IO[bytes]", self.process.stdout)
        self._watchdog = threading.Timer(PATIENCE_S, self.process.kill)
        self._watchdog.start()

    def send(self, *lines: Mapping[str, Any] | bytes) -> None:
        for line in lines:
            self.stdin.write((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n")
        self.stdin.flush()

    def call(self, request_id: int | str, tool: str, **arguments: Any) -> None:
        self.send(request(request_id, "tools/call", {"name": tool, "arguments": arguments}))

    def receive(self) -> dict[str, Any]:
        """Return the next message; notifications are passed over."""
        while True:
            line = self.stdout.readline()
            assert line, f"the server ended: {self.log()}"
            message = json.loads(line)
            assert message["jsonrpc"] == "2.0"
            if "id" in message:
                return message

    def answer(self, request_id: int | str, tool: str, **arguments: Any) -> str:
        self.call(request_id, tool, **arguments)
        message = self.receive()
        assert message["id"] == request_id
        return message["result"]["content"][0]["text"]

    def shake_hands(self) -> None:
        self.send(request(0, "initialize", INITIALIZE))
        assert self.receive()["result"]["serverInfo"]["name"] == "iris-kv"
        self.send({"jsonrpc": "2.0", "method": "notifications/initialized"})

    def log(self) -> str:
        return self._log.read_text()

    def end(self) -> int:
        """Wait for the end and return the exit code."""
        code = self.process.wait(PATIENCE_S)
        self._watchdog.cancel()
        return code


Start = Callable[[], AbstractContextManager[Server]]


def request(request_id: int | str, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}


@pytest.fixture
def start(tmp_path: Path) -> Start:
    folder = tmp_path / "home"
    env = {"HOME": str(folder), "XDG_CONFIG_HOME": f"{folder}/config", "XDG_STATE_HOME": f"{folder}/state"}
    (tmp_path / "work").mkdir()

    @contextmanager
    def started() -> Generator[Server]:
        server = Server(tmp_path / "work", env, tmp_path / "log")
        try:
            yield server
        finally:
            server.process.kill()
            server.end()
            server.stdin.close()
            server.stdout.close()

    return started


# How it ends


def end_of_input(server: Server) -> None:
    server.stdin.close()


def terminate(server: Server) -> None:
    server.process.send_signal(signal.SIGTERM)


def interrupt(server: Server) -> None:
    server.process.send_signal(signal.SIGINT)


def stop_reading(server: Server) -> None:
    server.stdout.close()
    server.send(*(request(n, "tools/list", {}) for n in range(20)))
    server.stdin.close()


@pytest.mark.parametrize("stop", [end_of_input, terminate, interrupt, stop_reading])
async def test_the_server_ends_cleanly_and_keeps_what_it_acknowledged(
    start: Start, tmp_path: Path, stop: Callable[[Server], None]
) -> None:
    with start() as server:
        server.shake_hands()
        assert server.answer(1, "put_artifact", key="k", value="kept").startswith("stored ")
        stop(server)
        code = server.end()
        log = server.log()
    async with open_workspace(tmp_path / "work") as workspace:
        entry = await workspace.get("artifacts", "k")

    assert code == 0
    assert "Traceback" not in log
    assert "level=ERROR" not in log
    assert entry.value == b"kept"


def test_the_end_of_input_before_any_request_is_an_end(start: Start) -> None:
    with start() as server:
        server.stdin.close()
        code = server.end()
        log = server.log()

    assert code == 0
    assert "Traceback" not in log


async def test_a_client_that_dies_while_it_is_written_to_leaves_a_store_that_is_whole(
    start: Start, tmp_path: Path
) -> None:
    with start() as server:
        server.shake_hands()
        server.answer(1, "put_artifact", key="long", value="word " * 10_000)
        for n in range(60):
            server.call(f"get {n}", "get_artifact", key="long")
            server.call(f"put {n}", "put_artifact", key=f"k{n}", value="v" * 1_000)
        server.stdout.close()
        server.stdin.close()
        code = server.end()
        log = server.log()
    async with open_workspace(tmp_path / "work") as workspace:
        found = await workspace.verify("artifacts")
        page = await workspace.list("artifacts")

    assert code == 0
    assert "Traceback" not in log
    assert (found.damaged, found.usage_matches) == ((), True)
    assert {"long": 50_000}.items() <= {info.key: info.size for info in page.entries}.items()


async def test_a_lock_that_a_hung_process_holds_keeps_back_neither_instructions_nor_the_end(
    start: Start, tmp_path: Path, open_file_store: OpenFileStore
) -> None:
    async with open_file_store(tmp_path / "work"):
        pass
    store = tmp_path / "work/.iris/kv-cache/.store"
    (store / "index.db").unlink()
    lock = os.open(store / "lock", os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with start() as server:
            server.shake_hands()
            server.call("put", "put_artifact", key="k", value="v")
            instruction = server.answer("get", "get_instruction", tag="research")
            server.stdin.close()
            code = server.process.wait(8)
            log = server.log()
    finally:
        os.close(lock)

    header, body = instruction.split("\n\n", 1)
    assert " degraded=busy " in header
    assert body.startswith("# Research\n")
    assert code == 0
    assert "Traceback" not in log


# What it says


def test_stdout_carries_messages_only_whatever_the_client_sends(start: Start) -> None:
    call = b'{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":"cache_put","arguments":%s}}'
    put = b'{"scope":"task","key":"k","value":"v"%s}'
    with start() as server:
        server.shake_hands()
        server.send(
            b"",
            b"nonsense",
            b"\xff\xfe\x00",
            b"[]",
            b"{" * 100_000,
            b'{"jsonrpc":"2.0","result":{},"id":99}',
            b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":12345}}',
            b'{"jsonrpc":"2.0","method":"notifications/nothing"}',
            b'{"jsonrpc":"2.0","method":"notifications/initialized"}',
            call % (1, put % b',"metadata":{"a":"\\ud83d"}'),
            b'{"jsonrpc":"2.0","id":2,"method":5}',
            b'{"jsonrpc":"1.0","id":3,"method":"tools/list"}',
            b'{"jsonrpc":"2.0","id":4,"method":"tools/call","params":[1]}',
            b'{"jsonrpc":"2.0","id":5,"method":"nothing/at/all"}',
            b'{"jsonrpc":"2.0","id":6,"method":"tools/call","params":{}}',
            call % (7, put % b',"ttl_hours":NaN'),
            call % (8, put % b',"ttl_hours":1e999'),
            call % (9, b'["scope"]'),
        )
        received = [server.receive() for _ in range(9)]
        server.send(request(10, "ping", {}))
        last = server.receive()
        server.stdin.close()
        rest = server.stdout.read()
        code = server.end()

    answers = {message["id"]: message for message in received}
    codes = {n: answers[n]["error"]["code"] for n in (1, 2, 3, 4, 5, 6, 9)}
    assert codes == {1: -32700, 2: -32600, 3: -32600, 4: -32600, 5: -32601, 6: -32602, 9: -32602}
    assert "without half surrogate pairs" in answers[1]["error"]["message"]
    texts = [answers[n]["result"]["content"][0]["text"].split("; ")[0] for n in (7, 8)]
    assert texts == ["invalid_argument: ttl_hours is nan", "invalid_argument: ttl_hours is inf"]
    assert last == {"jsonrpc": "2.0", "id": 10, "result": {}}
    assert (rest, code) == (b"", 0)


def test_an_argument_of_ten_megabytes_is_kept_and_one_over_the_limit_refused(start: Start) -> None:
    with start() as server:
        server.shake_hands()
        kept = server.answer(1, "put_artifact", key="large", value="ä" * 5_000_000)
        refused = server.answer(2, "put_artifact", key="larger", value="x" * 51_000_000)
        deep = server.answer(3, "put_artifact", key="deep", value=json.dumps("[" * 50_000))
        read = server.answer(4, "get_artifact", key="large")

    assert kept.startswith('stored "large" 10000000 bytes text/plain ')
    assert refused.startswith("too_large: the value has 51000000 bytes or more; one value of this scope has at most")
    assert deep.startswith('stored "deep" 50002 bytes text/plain ')
    assert " bytes=0-" in read.splitlines()[0]


def test_two_hundred_calls_at_once_are_all_answered(start: Start) -> None:
    with start() as server:
        server.shake_hands()
        for n in range(100):
            server.call(f"put {n}", "put_artifact", key=f"k{n % 50}", value=f"value {n % 50}")
            server.call(f"get {n}", "get_instruction", tag="research")
        answers = {message["id"]: message["result"] for message in (server.receive() for _ in range(200))}
        values = [server.answer(n, "get_artifact", key=f"k{n}") for n in range(50)]

    assert len(answers) == 200
    assert not [answer for answer in answers.values() if answer.get("isError")]
    assert [value.splitlines()[1] for value in values] == [f"value {n}" for n in range(50)]


def test_cancelled_calls_leave_the_server_answering_and_the_store_whole(start: Start) -> None:
    with start() as server:
        server.shake_hands()
        for n in range(30):
            server.call(f"put {n}", "put_artifact", key="k", value=f"{n:02}" * 50_000)
            cancelled = {"requestId": f"put {n}", "reason": "changed my mind"}
            server.send({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": cancelled})
        server.send(request("last", "tools/call", {"name": "put_artifact", "arguments": {"key": "last", "value": "v"}}))
        while server.receive()["id"] != "last":
            pass
        server.call("list", "cache_list", scope="artifacts")
        listed = server.receive()["result"]["structuredContent"]["entries"]
        sizes = {entry["key"]: entry["size"] for entry in listed}
        value = server.answer("get", "get_artifact", key="k") if "k" in sizes else ""
        stats = server.answer("stats", "cache_stats", scope="artifacts")

    assert sizes.pop("last") == 1
    assert sizes in ({}, {"k": 100_000})
    assert not value or value.splitlines()[1][:2] * 10 == value.splitlines()[1][:20]
    total = 1 + sum(sizes.values())
    assert stats.startswith(f"artifacts: {1 + len(sizes)} entries, {total} of ")
