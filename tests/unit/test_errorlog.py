"""The errors kept for `doctor`: the newest of all servers, in a file that only their user reads."""

from __future__ import annotations

import logging
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from iris_kv.errorlog import KEPT, ErrorLog, ServerError, described, error_log_path, last_errors

if TYPE_CHECKING:
    from tests.conftest import Clock


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "iris-kv" / "errors.jsonl"


@pytest.fixture
def logger(path: Path, clock: Clock) -> logging.Logger:
    logger = logging.Logger("a server's")  # noqa: LOG001 - one that outlives no test
    logger.addHandler(ErrorLog(path, "/work", clock))
    return logger


def test_errors_are_kept_with_time_process_and_workspace(logger: logging.Logger, path: Path, clock: Clock) -> None:
    logger.error("index %s is broken", "x")
    clock.move(1_000)
    logger.warning("not kept")
    logger.critical("zwei\nlines")

    assert last_errors(path) == (
        ServerError(at=clock.at_ms - 1_000, pid=os.getpid(), workspace="/work", text="index x is broken"),
        ServerError(at=clock.at_ms, pid=os.getpid(), workspace="/work", text="zwei\nlines"),
    )
    assert path.read_bytes().count(b"\n") == 2


def test_an_exception_is_kept_by_its_class_and_text(logger: logging.Logger, path: Path) -> None:
    try:
        raise ValueError("seven")
    except ValueError:
        logger.exception("it failed")

    assert [error.text for error in last_errors(path)] == ["it failed (ValueError: seven)"]


def test_only_the_newest_are_kept(logger: logging.Logger, path: Path) -> None:
    for n in range(3 * KEPT):
        logger.error("%d", n)

    assert [error.text for error in last_errors(path)] == [str(n) for n in range(2 * KEPT, 3 * KEPT)]
    assert path.read_bytes().count(b"\n") <= 2 * KEPT
    assert [each.name for each in path.parent.iterdir()] == ["errors.jsonl"]


def test_nobody_else_may_read_them_even_after_old_ones_were_forgotten(logger: logging.Logger, path: Path) -> None:
    for n in range(2 * KEPT + 1):
        logger.error("%d", n)

    assert (stat.S_IMODE(path.stat().st_mode), stat.S_IMODE(path.parent.stat().st_mode)) == (0o600, 0o700)


def test_a_long_error_is_cut(logger: logging.Logger, path: Path) -> None:
    logger.error("x" * 100_000)

    assert last_errors(path)[0].text == "x" * 2_000


def test_a_damaged_line_is_left_out(logger: logging.Logger, path: Path) -> None:
    logger.error("one")
    with path.open("ab") as file:
        file.write(b'{"at": 1, "half\n\xff\n')
    logger.error("two")

    assert [error.text for error in last_errors(path)] == ["one", "two"]


def test_without_a_file_there_are_no_errors(path: Path) -> None:
    assert last_errors(path) == ()


def test_errors_that_cannot_be_kept_do_not_disturb_the_server(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "file").touch()
    log = ErrorLog(tmp_path / "file" / "errors.jsonl", "/work", clock)

    log.handle(logging.makeLogRecord({"msg": "lost", "levelno": logging.ERROR}))


def test_a_bad_format_string_does_not_end_the_server(
    logger: logging.Logger, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger.error("%d entries", "no")
    logger.error("after")

    assert [error.text for error in last_errors(path)] == ["after"]
    assert "--- Logging error ---" in capsys.readouterr().err


def test_an_error_is_described_in_one_line() -> None:
    error = ServerError(at=1_767_225_600_000, pid=7, workspace="/work", text="broken")

    assert described(error) == "2026-01-01T00:00:00.000Z pid 7 in /work: broken"


def test_they_lie_in_the_users_state_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    at_home = error_log_path()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))

    assert at_home == tmp_path / ".local" / "state" / "iris-kv" / "errors.jsonl"
    assert error_log_path() == tmp_path / "xdg" / "iris-kv" / "errors.jsonl"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become a user that has no home")
def test_a_user_without_a_home_has_none_and_writes_none(tmp_path: Path) -> None:
    code = (
        "import os\n"
        "from iris_kv.errorlog import error_log_path, last_errors\n"
        "from iris_kv.settings import load_settings\n"
        "load_settings(None)\n"  # Python's own files need not be readable for the other user.
        "os.environ.pop('HOME', None)\n"
        "os.setuid(54_321)\n"
        "print(last_errors(error_log_path()), load_settings(None).profile)"
    )

    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={}, capture_output=True, text=True, timeout=30, check=False
    )

    assert (ended.stdout, ended.stderr) == ("() standard\n", "")
