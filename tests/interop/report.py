"""The report of a run: one line for each step, and a count at the end."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

LINES = 12
"""How much of a failure is shown."""


class StepError(AssertionError):
    """A step found something else than it wanted; the text says what."""


@dataclass
class Report:
    """What passed and failed so far; steps may come from several threads."""

    passed: int = 0
    failed: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def step(self, name: str) -> Generator[None]:
        """Run a step; what it raises is reported, and the run goes on."""
        try:
            yield
        except (AssertionError, LookupError, TypeError, ValueError, OSError, subprocess.SubprocessError) as error:
            self._note(name, f"{type(error).__name__}: {error}")
        else:
            self._note(name, None)

    def _note(self, name: str, problem: str | None) -> None:
        with self._lock:
            if problem is None:
                self.passed += 1
                print(f"ok      {name}", flush=True)
                return
            self.failed += 1
            shown = "\n".join(f"        {line[:400]}" for line in problem.splitlines()[:LINES])
            print(f"FAILED  {name}\n{shown}", flush=True)

    def summary(self) -> str:
        """Return the last line of a run."""
        return f"interop: {self.passed} passed, {self.failed} failed"


def expect(found: object, wanted: object, what: str) -> None:
    """Compare what was found with what was wanted.

    Raises:
        StepError: They differ.
    """
    if found != wanted:
        raise StepError(f"{what}:\nfound  {found!r}\nwanted {wanted!r}")


def expect_in(wanted: str, text: str, what: str) -> None:
    """Look for a piece of text.

    Raises:
        StepError: It is not there.
    """
    if wanted not in text:
        raise StepError(f"{what} lacks {wanted!r}:\n{text}")


def check_log(log: str) -> None:
    """Look for errors in the server's log: no request, however wrong, may cause one.

    Raises:
        StepError: There is one.
    """
    _, found, rest = log.partition(" level=ERROR ")
    if found:
        raise StepError(f"the server logged an error: {rest}")
