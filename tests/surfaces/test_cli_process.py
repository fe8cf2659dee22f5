"""The command line as real processes: what only a process, a pipe, a signal or a terminal can show."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

COMMAND = str(Path(sys.executable).with_name("iris-kv"))
PATIENCE_S = 30

Environment = Mapping[str, str]


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    """Return an environment with a home and a workspace of its own."""
    ours = ("IRIS_KV_", "USE_KV_CACHE_PROMPT", "XDG_", "LC_", "LANG", "PYTHON", "TYPER")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    for name in ("work", "home"):
        (tmp_path / name).mkdir()
    return {**kept, "HOME": str(tmp_path / "home"), "IRIS_KV_WORKSPACE": str(tmp_path / "work")}


@pytest.fixture
def run(environment: Environment, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[bytes]]:
    def start(*command: str | bytes, stdin: bytes = b"", **variables: str) -> subprocess.CompletedProcess[bytes]:
        env = {**environment, **variables}
        return subprocess.run(
            command, env=env, cwd=tmp_path, input=stdin, capture_output=True, timeout=PATIENCE_S, check=False
        )

    return start


Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


class Terminal:
    """A process whose stdin, stdout and stderr are a terminal."""

    def __init__(self, command: list[str], environment: Environment) -> None:
        self._master, slave = pty.openpty()
        # What a shell runs in the background ignores SIGINT, and so would all that it starts.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self.process = subprocess.Popen(
            command,
            env=environment,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        self.seen = ""

    def wait_for(self, text: str) -> None:
        """Read until a text was shown."""
        while text not in self.seen:
            part = self._read()
            assert part, self.seen
            self.seen += part

    def wait_until_it_reads(self) -> None:
        """Wait until the process sleeps: a signal just before a read does not end the read, in any program."""
        deadline = time.monotonic() + PATIENCE_S
        while Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(") ")[2][0] != "S":
            assert time.monotonic() < deadline, self.seen

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def end(self) -> int:
        """Read the rest and return the exit code."""
        while part := self._read():
            self.seen += part
        os.close(self._master)
        return self.process.wait(PATIENCE_S)

    def _read(self) -> str:
        ready, _, _ = select.select([self._master], [], [], PATIENCE_S)
        if not ready:
            self.process.kill()
            raise AssertionError(f"nothing for {PATIENCE_S} s after {self.seen!r}")
        try:
            return os.read(self._master, 65_536).decode()
        except OSError:
            return ""


def initialize() -> str:
    """Return the line with which a client begins."""
    hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello}) + "\n"


def test_serve_answers_a_handshake_and_ends_with_its_client(run: Run) -> None:
    ended = run(COMMAND, "serve", stdin=initialize().encode())

    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["result"]["serverInfo"]["name"] == "iris-kv"
    assert b"reason='IRIS_KV_WORKSPACE'" in ended.stderr


DRIVER = textwrap.dedent("""
    import contextlib, io, json, sys
    from iris_kv.cli import app

    codes = []
    for arguments in json.loads(sys.argv[1]):
        with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO())), contextlib.redirect_stderr(io.StringIO()):
            try:
                app(arguments)
            except SystemExit as ended:
                codes.append(ended.code or 0)
    print(json.dumps({"codes": codes, "modules": sorted({name.split(".")[0] for name in sys.modules})}))
""")


def test_no_verb_but_serve_demo_and_split_loads_the_sdk_or_rich(run: Run) -> None:
    verbs = [
        ["--help"], ["put", "project", "k", "v"], ["get", "project", "k"], ["list", "project"], ["stats"], ["prune"],
        ["seed"], ["verify"], ["doctor"], ["delete", "project", "k"], ["clear", "task", "--yes"], ["prompt"],
        ["instructions", "list"], ["instructions", "show", "research"], ["config", "--client", "zed"], ["bogus"],
    ]  # fmt: skip

    ended = run(sys.executable, "-c", DRIVER, json.dumps(verbs))

    seen = json.loads(ended.stdout)
    assert seen["codes"] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]
    assert not {"mcp", "mcp_types", "starlette", "rich", "httpx", "uvicorn"} & set(seen["modules"])


def test_help_and_errors_are_the_same_without_rich(run: Run) -> None:
    blocked = "import sys; sys.modules['rich'] = None; from iris_kv.cli import main; main()"

    for arguments in (["put", "--help"], ["get", "--bogus"]):
        with_rich = run(COMMAND, *arguments)
        without = run(sys.executable, "-c", blocked, *arguments, TYPER_USE_RICH="0")
        assert with_rich.stdout == without.stdout.replace(b"Usage: -c", b"Usage: iris-kv")
        assert with_rich.returncode == without.returncode
        assert b"\xe2\x95\xad" not in with_rich.stdout + with_rich.stderr


@pytest.mark.parametrize("reader", ["head -1", "true"])
def test_a_reader_that_leaves_is_no_error(run: Run, reader: str) -> None:
    value = b"line\n" * 100_000
    run(COMMAND, "put", "project", "long", stdin=value)

    ended = run("bash", "-c", f"{COMMAND} get project long --json | {reader}")
    short = run("bash", "-c", f"{COMMAND} list project | {reader}")

    assert (ended.returncode, ended.stderr) == (0, b"")
    assert (short.returncode, short.stderr) == (0, b"")


def test_bytes_that_are_no_text_are_refused_in_words(run: Run) -> None:
    run(COMMAND, "put", "project", "k", "v")

    ends = [
        run(COMMAND, "get", "project", b"k\xff"),
        run(COMMAND, "put", "project", "k", b"v\xff"),
        run(COMMAND, "get", b"\xff", "k"),
        run(COMMAND, "stats", "--workspace", b"/none/\xff"),
    ]

    assert [ended.returncode for ended in ends] == [2, 2, 2, 2]
    assert all(ended.stderr.startswith(b"iris-kv: invalid_argument: ") for ended in ends), ends
    assert all(ended.stderr.count(b"\n") == 1 for ended in ends)


def test_a_workspace_whose_name_is_no_text_works(run: Run, tmp_path: Path) -> None:
    workspace = os.fsencode(tmp_path) + b"/\xe9t\xe9"
    os.mkdir(workspace)
    run(COMMAND, "put", "project", "k", "v", "--workspace", workspace)

    assert run(COMMAND, "get", "project", "k", "--workspace", workspace).stdout == b"v"
    assert json.loads(run(COMMAND, "doctor", "--json", "--workspace", workspace).stdout)["workspace"].endswith(
        "t\udce9"
    )


def test_output_is_utf_8_whatever_the_locale_says(run: Run) -> None:
    run(COMMAND, "put", "project", "ключ", "Grüße", PYTHONIOENCODING="latin-1")

    listed = run(COMMAND, "list", "project", "--json", PYTHONIOENCODING="latin-1")
    missing = run(COMMAND, "get", "project", "ключи", "--json", PYTHONIOENCODING="ascii")

    assert json.loads(listed.stdout.decode())[0]["key"] == "ключ"
    assert "ключи" in json.loads(missing.stderr.decode())["error"]["wrong"]


def test_a_dotenv_that_cannot_be_parsed_is_passed_over_quietly(run: Run, tmp_path: Path) -> None:
    (tmp_path / "work" / ".env").write_text("set -e\nif true; then\n")

    ended = run(COMMAND, "put", "project", "k", "v")

    assert (ended.returncode, ended.stderr) == (0, b"")


def test_a_current_folder_that_was_deleted_is_told_in_words(run: Run, tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()

    ended = run("bash", "-c", f"cd gone && rmdir ../gone && unset IRIS_KV_WORKSPACE && {COMMAND} stats")

    assert (ended.returncode, ended.stdout) == (2, b"")
    assert ended.stderr.startswith(b"iris-kv: invalid_argument: the current folder was deleted")


def test_putting_from_a_terminal_says_so_and_an_interrupt_ends_it_quietly(environment: Environment) -> None:
    terminal = Terminal([COMMAND, "put", "project", "k"], environment)

    terminal.wait_for("end it with Ctrl-D on a new line\r\n")
    terminal.wait_until_it_reads()
    terminal.process.send_signal(signal.SIGINT)

    assert terminal.end() == 130
    assert terminal.seen == "reading the value from the terminal; end it with Ctrl-D on a new line\r\n"


def test_an_interrupt_while_another_process_writes_ends_quietly(run: Run, environment: Environment) -> None:
    run(COMMAND, "put", "project", "k", "v")
    lock = Path(environment["IRIS_KV_WORKSPACE"], ".iris", "kv-cache", ".store", "lock")
    with lock.open("r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        terminal = Terminal([COMMAND, "put", "project", "k", "w"], environment)
        terminal.wait_for("writing 1 B … 1 s\r\n")
        terminal.process.send_signal(signal.SIGINT)
        fcntl.flock(held, fcntl.LOCK_UN)

    assert terminal.end() in (0, 130)
    assert "Traceback" not in terminal.seen
    assert run(COMMAND, "verify").returncode == 0


@pytest.mark.parametrize(("answer", "code", "left"), [("y\n", 0, 0), ("n\n", 1, 1)])
def test_clear_asks_on_a_terminal(run: Run, environment: Environment, answer: str, code: int, left: int) -> None:
    run(COMMAND, "put", "project", "k", "v")

    terminal = Terminal([COMMAND, "clear", "project"], environment)
    terminal.wait_for("[y/N]: ")
    terminal.type(answer)

    assert terminal.end() == code
    assert f"Delete every entry of project in {environment['IRIS_KV_WORKSPACE']}?" in terminal.seen
    assert len(json.loads(run(COMMAND, "list", "project", "--json").stdout)) == left


def test_a_binary_value_is_not_printed_on_a_terminal(run: Run, environment: Environment) -> None:
    run(COMMAND, "put", "project", "k", stdin=b"\x00\xff")

    terminal = Terminal([COMMAND, "get", "project", "k"], environment)

    assert terminal.end() == 2
    assert "add --output FILE" in terminal.seen


def test_serve_on_a_terminal_says_who_should_start_it(environment: Environment) -> None:
    terminal = Terminal([COMMAND, "serve"], environment)

    terminal.wait_for("a client starts this server and talks to it in JSON")
    terminal.type(initialize())
    terminal.wait_for('"serverInfo"')
    terminal.process.send_signal(signal.SIGINT)

    assert terminal.end() == 0
