"""The examples run as they stand, against real server processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(example: str, folder: Path) -> list[str]:
    """Run an example in the workspace `work` of a folder, and return what it printed."""
    ours = ("IRIS_KV_", "USE_KV_CACHE_PROMPT", "XDG_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    (folder / "work").mkdir(exist_ok=True)

    ended = subprocess.run(
        [sys.executable, str(EXAMPLES / example), "work"],
        env={**kept, "HOME": str(folder)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout.splitlines()


def test_the_agent_follows_an_instruction_and_its_next_session_reads_everything_back(tmp_path: Path) -> None:
    lines = run("agent.py", tmp_path)

    assert lines[1] == "the trigger table names: document_creation, presentation, research, web_development"
    assert lines[2].startswith("known so far: no project summary is stored yet")
    assert lines[3].startswith("the task is research: [tag=research version=")
    assert lines[4].startswith("followed ")
    assert lines[5].startswith('artifact: stored "reports/heat-pumps.md" ')
    steps = lines[4].split()[1]
    task = "Compare heat pumps and gas boilers, and give sources for every claim."
    assert lines[7:] == [
        "read back with get_project_summary: The comparison is written: artifact reports/heat-pumps.md.",
        "read back with get_artifact: - Checklist: done",
        f'read back with cache_get: {{"task": "{task}", "instruction": "research", "done": {steps}, "of": {steps}}}',
        "instructions/research was written by: canonical via seeder",
        "system/prompt/compact was written by: canonical via seeder",
    ]


def test_a_conversation_is_summarised_once_and_only_what_was_edited_again(tmp_path: Path) -> None:
    assert run("summaries.py", tmp_path) == [
        "30 calls, 0 summaries from the store, threshold met: True",
        "43 messages: 13 kept whole, 30 summarised",
        "fewer tokens: True",
        "Point 0 is settled.",
        "-- the program ends, and a new one starts --",
        "0 calls, 30 summaries from the store, threshold met: True",
        "the same messages: True",
        "1 calls, 29 summaries from the store, threshold met: True",
    ]
