"""`iris-kv serve --http` as a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

PATIENCE_S = 120


class HttpProcess:
    """A server process; a watchdog kills what does not end."""

    def __init__(self, *arguments: str, env: Mapping[str, str]) -> None:
        command = [str(Path(sys.executable).with_name("iris-kv")), "serve", *arguments]
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env={**os.environ, **env}
        )
        self._stderr = cast("IO[str]", self.process.stderr)
        self._watchdog = threading.Timer(PATIENCE_S, self.process.kill)
        self._watchdog.daemon = True
        self._watchdog.start()
        self.lines: list[str] = []
        self.url = self._started()
        self._reader = threading.Thread(target=lambda: self.lines.extend(self._stderr), daemon=True)
        self._reader.start()

    def _started(self) -> str:
        for line in self._stderr:
            self.lines.append(line)
            found = re.search(r"serving (http://\S+)", line)
            if found:
                return found[1]
        raise AssertionError(f"the server did not start: {self.lines}")

    def end(self, how: int = signal.SIGTERM) -> int:
        self.process.send_signal(how)
        code = self.process.wait(PATIENCE_S)
        self._watchdog.cancel()
        self._reader.join()
        self._stderr.close()
        return code


@contextmanager
def started(*arguments: str, env: Mapping[str, str]) -> Generator[HttpProcess]:
    server = HttpProcess(*arguments, env=env)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.end(signal.SIGKILL)
