"""`iris-kv serve --http` as a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Self, cast

PATIENCE_S = 120
COMMAND = str(Path(sys.executable).with_name("iris-kv"))


class HttpProcess:
    """A server process with an environment of its own; a watchdog kills what does not end."""

    def __init__(self, *arguments: str, env: Mapping[str, str], patience_s: float = PATIENCE_S) -> None:
        self.process = subprocess.Popen(
            [COMMAND, "serve", *arguments], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=dict(env)
        )
        self._stderr = cast("IO[str]", self.process.stderr)
        self._watchdog = threading.Timer(patience_s, self.process.kill)
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.end(signal.SIGKILL)


def started(*arguments: str, env: Mapping[str, str]) -> HttpProcess:
    """Start a server with this process' environment and what is added to it."""
    return HttpProcess(*arguments, env={**os.environ, **env})
