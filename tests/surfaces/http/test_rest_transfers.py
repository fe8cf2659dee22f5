"""Bodies on a real socket: cut off, slow, too large, and a hundred at once."""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from tests.surfaces.http.conftest import CACHE, Http, OpenHttp
from tests.surfaces.http_process import started

from iris_kv.model import digest_of

MEGABYTE = 1_000_000
VALUE_BYTES = 10 * MEGABYTE
EACH_WAY = 50
MOST_RSS_KB = 300_000
CHUNK = 1 << 18


async def connected(http: Http) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Return a bare connection to the server of a client."""
    return await asyncio.open_connection("127.0.0.1", http.base_url.port)


def request_head(key: str, *headers: str) -> bytes:
    """Return the head of a raw POST."""
    lines = [
        f"POST {CACHE}/value?scope=artifacts&key={key} HTTP/1.1",
        "Host: 127.0.0.1",
        "Content-Type: text/plain",
        *headers,
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def left_over(workspace: Path) -> list[str]:
    """Return the files of the scope that are no manifest."""
    return [each.name for each in (workspace / ".iris/kv-cache/artifacts").iterdir() if each.name != ".index.json"]


async def until_nothing_is_left(workspace: Path) -> None:
    with anyio.fail_after(10):
        while left_over(workspace):
            await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize(
    ("framing", "sent"),
    [
        ("Content-Length: 1000000", b"x" * 400_000),
        ("Content-Length: 10", b""),
        ("Transfer-Encoding: chunked", b"61a80\r\n" + b"x" * 400_000 + b"\r\n"),
    ],
)
async def test_a_body_that_is_cut_off_leaves_nothing(
    open_socket: OpenHttp, workspace: Path, framing: str, sent: bytes
) -> None:
    async with open_socket() as http:
        # The store is open and empty.
        assert (await http.keys())["entries"] == []
        _, writer = await connected(http)
        writer.write(request_head("k", framing) + sent)
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        assert (await http.value("k")).status_code == 404
        await until_nothing_is_left(workspace)


async def test_a_body_that_comes_byte_by_byte_keeps_nobody_waiting(open_socket: OpenHttp) -> None:
    async with open_socket() as http:
        reader, writer = await connected(http)
        writer.write(request_head("slow", "Content-Length: 5"))
        for byte in b"12345":
            assert (await http.put(f"between-{byte}")).status_code == 201
            writer.write(bytes([byte]))
            await writer.drain()
        with anyio.fail_after(10):
            status = await reader.readline()
        assert b" 201 " in status
        assert (await http.value("slow")).content == b"12345"
        writer.close()


async def test_a_body_announced_as_too_large_is_refused_before_it_comes(open_socket: OpenHttp) -> None:
    async with open_socket() as http:
        reader, writer = await connected(http)
        writer.write(request_head("k", "Content-Length: 50000001"))
        await writer.drain()
        with anyio.fail_after(10):
            answer = await reader.read(4_096)
        writer.close()

    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"too_large" in answer


@pytest.mark.parametrize(
    "line", ["GET /api/sandboxes/default/kv-cache/value?scope=task&key=\xe9 HTTP/1.1", "GET /api/\xe9 HTTP/1.1"]
)
async def test_bytes_that_are_no_address_are_refused(open_socket: OpenHttp, line: str) -> None:
    async with open_socket() as http:
        reader, writer = await connected(http)
        writer.write(line.encode("latin-1") + b"\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        with anyio.fail_after(10):
            answer = await reader.read()
        writer.close()

    assert re.match(rb"HTTP/1.1 4[0-9][0-9] ", answer)


# A hundred at once


@pytest.fixture
def process(workspace: Path, tmp_path: Path) -> Iterator[tuple[int, int]]:
    """The real server: its port and its id."""
    env = {
        "IRIS_KV_DURABILITY": "fast",
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "XDG_STATE_HOME": str(tmp_path / "state"),
    }
    with started("--http", "127.0.0.1:0", "--workspace", str(workspace), env=env) as server:
        yield int(server.url.rpartition(":")[2]), server.process.pid


def peak_rss_kb(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0])


async def transfer(port: int, head: str, body: bytes = b"") -> tuple[int, str]:
    """Send a request over a bare connection, as a client's library costs more than the server; return status and digest."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=CHUNK)
    writer.write(f"{head}\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode())
    for at in range(0, len(body), CHUNK):
        writer.write(body[at : at + CHUNK])
        await writer.drain()
    answered = await reader.readuntil(b"\r\n\r\n")
    sha = hashlib.sha256()
    while chunk := await reader.read(CHUNK):
        sha.update(chunk)
    writer.close()
    return int(answered.split()[1]), "sha256:" + sha.hexdigest()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process's memory is read from /proc")
async def test_a_hundred_transfers_of_10_mb_stay_under_300_mb(process: tuple[int, int]) -> None:
    port, pid = process
    value = random.Random(1).randbytes(VALUE_BYTES)
    statuses: list[int] = []

    async def up(scope: str, key: int) -> None:
        head = f"POST {CACHE}/value?scope={scope}&key={key} HTTP/1.1\r\nContent-Type: application/octet-stream"
        statuses.append((await transfer(port, head, value))[0])

    async def down() -> None:
        status, digest = await transfer(port, f"GET {CACHE}/value?scope=project&key=0 HTTP/1.1")
        assert digest == digest_of(value)
        statuses.append(status)

    await up("project", 0)
    before = peak_rss_kb(pid)
    async with anyio.create_task_group() as tasks:
        for n in range(EACH_WAY):
            tasks.start_soon(up, ("task", "artifacts")[n % 2], n % 8)
            tasks.start_soon(down)
    peak = peak_rss_kb(pid)

    print(f"\npeak RSS {before} kB before, {peak} kB after")
    assert len(statuses) == 1 + 2 * EACH_WAY
    assert set(statuses) == {200, 201}
    assert peak < MOST_RSS_KB
