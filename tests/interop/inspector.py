"""The Inspector's command line: one request to a server, and its answer."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tests.interop.report import StepError, check_log

Era = Literal["legacy", "modern"]

TIMEOUT_S = 60
TOOL_FAILED = 5
"""The Inspector's exit code for an answer with `isError`."""


@dataclass(frozen=True)
class Inspector:
    """Asks one server, in one era of the protocol; each request is a connection of its own."""

    command: Sequence[str]
    era: Era
    server: Sequence[str]
    """The server's command, or the options that name its URL."""
    environment: Mapping[str, str]

    def answer(self, method: str, *options: str) -> dict[str, Any]:
        """Return the result of a request that is to succeed."""
        done = self._run(method, options)
        if done.returncode != 0:
            raise StepError(f"exit code {done.returncode}: {_error(done.stderr)}")
        return _result(done.stdout)

    def refusal(self, method: str, *options: str) -> str:
        """Return the text of the protocol error that a request is to end in."""
        done = self._run(method, options)
        if done.returncode == 0:
            raise StepError(f"no error, but {done.stdout}")
        return _error(done.stderr)

    def call(self, tool: str, /, **arguments: object) -> dict[str, Any]:
        """Return the result of a tool call that is to succeed."""
        return self.answer("tools/call", *_call(tool, arguments))

    def text(self, tool: str, /, **arguments: object) -> str:
        """Return the text of a tool call that is to succeed."""
        return _text(self.call(tool, **arguments))

    def failure(self, tool: str, /, **arguments: object) -> str:
        """Return the text of a tool call that is to answer `isError`."""
        done = self._run("tools/call", _call(tool, arguments))
        result = _result(done.stdout) if done.stdout.strip() else {}
        if done.returncode != TOOL_FAILED or result.get("isError") is not True:
            raise StepError(f"exit code {done.returncode}, result {result}, {_error(done.stderr)}")
        return _text(result)

    def _run(self, method: str, options: Sequence[str]) -> subprocess.CompletedProcess[str]:
        patience = ("--connect-timeout", str(TIMEOUT_S * 500))
        command = [
            *self.command,
            "--protocol-era",
            self.era,
            *patience,
            "--format",
            "json",
            "--method",
            method,
            *options,
        ]
        done = subprocess.run(
            [*command, *self.server],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
            env=dict(self.environment),
        )
        check_log(done.stderr)
        return done


def _call(tool: str, arguments: Mapping[str, object]) -> tuple[str, ...]:
    return ("--tool-name", tool, "--tool-args-json", json.dumps(arguments))


def _result(stdout: str) -> dict[str, Any]:
    return json.loads(stdout)["result"]


def _text(result: Mapping[str, Any]) -> str:
    return "\n".join(block["text"] for block in result["content"])


def _error(stderr: str) -> str:
    """Return the message of the JSON line on stderr, which the server's log may surround."""
    for line in reversed(stderr.splitlines()):
        if line.startswith('{"error"'):
            return json.loads(line)["error"]["message"]
    return stderr[-400:]
