"""The programs in the documentation run as they stand, and print what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[2] / "docs"


def blocks(page: str, language: str) -> list[str]:
    """Return the fenced blocks of a page in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)


def run(program: str, folder: Path, **env: str) -> list[str]:
    """Run a program in a folder and return the lines that it printed."""
    ours = ("IRIS_KV_", "USE_KV_CACHE_PROMPT", "XDG_", "OPENAI_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env={**kept, "HOME": str(folder), **env},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout.splitlines()


def test_the_page_on_summaries_does_what_it_says(chat: Any, tmp_path: Path) -> None:
    program = "\n".join(blocks("context.md", "python"))
    (printed,) = blocks("context.md", "text")

    with chat.serve(chat.said("All is settled.")) as server:
        lines = run(program, tmp_path, OPENAI_BASE_URL=server.url, OPENAI_API_KEY="any")

    assert lines == [*printed.splitlines(), "All is settled.", "library summary"]
    assert [request.body["messages"][1]["content"][:20] for request in server.asked] == ["Point 29 is settled."]
