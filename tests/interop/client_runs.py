"""Programs with other people's clients: each connects, lists, reads and calls, and prints what it saw."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.interop.clients.task import KEY, MISSING, TAG, TOKEN, URL, VALUE
from tests.interop.environments import CLIENTS
from tests.interop.report import Report, StepError, expect, expect_in
from tests.interop.servers import Target
from tests.interop.session import FIXED_URIS, TOOLS, shipped_body

SPOKEN = {"sdk": "2026-07-28", "fastmcp": "2026-07-28", "langchain": "2025-11-25", "openai_agents": "2026-07-28"}
"""The clients, each with the protocol version that it agrees on with this server."""

KEY_URI = "iris-kv://cache/artifacts/reports%2F%C3%BCn%C3%AFcode%20%26%20more.md"
RUN_S = 120


def run_client(client: str, python: Path, target: Target, environment: Mapping[str, str], report: Report) -> None:
    """Run one client against one server, and hold what it saw against what there is."""
    name = f"client {client}, {target.name}"
    seen: dict[str, Any] = {}
    with report.step(f"{name}: connects in the protocol version {SPOKEN[client]}"):
        seen = _run(client, python, target, environment)
        expect(seen["spoken"], SPOKEN[client], "the version")
    if not seen:
        return
    with report.step(f"{name}: lists the tools"):
        expect(seen["tools"], TOOLS, "the tools' names")
    with report.step(f"{name}: lists the resources"):
        expect(seen["resources"][: len(FIXED_URIS)], FIXED_URIS, "the URIs that are fixed")
        expect_in(KEY_URI, "\n".join(seen["resources"]), "the URIs")
    with report.step(f"{name}: reads an instruction"):
        expect(seen["read"], shipped_body(TAG), "the text")
    with report.step(f"{name}: calls get_instruction"):
        expect(seen["called"].partition("\n\n")[2], shipped_body(TAG), "the body")
    with report.step(f"{name}: puts an artifact and gets it back"):
        opening, _, rest = seen["got"].partition("\n")
        expect_in(f'key="{KEY}" ', opening, "the opening fence")
        expect(rest.rpartition("\n")[0], VALUE, "the value")
    with report.step(f"{name}: is told what is wrong"):
        expect_in(f"not_found: no entry '{MISSING}'", seen["refused"], "the error")


def _run(client: str, python: Path, target: Target, environment: Mapping[str, str]) -> dict[str, Any]:
    asked = {URL: target.mcp(client)} if target.token is None else {URL: target.mcp(client), TOKEN: target.token}
    done = subprocess.run(
        [str(python), str(CLIENTS / f"with_{client}.py")],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=RUN_S,
        check=False,
        env={**environment, **asked},
    )
    if done.returncode != 0:
        raise StepError("\n".join([f"exit code {done.returncode}", *done.stderr.splitlines()[-10:]]))
    return json.loads(done.stdout)
