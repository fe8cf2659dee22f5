"""What docs/context.md shows of the rollout is what happens."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from iris_kv.rollout import LiveRollout
from iris_kv.settings import Settings

SECTION = re.search(
    r"^## Rollout\n.*?(?=^## |\Z)",
    (Path(__file__).parents[2] / "docs/context.md").read_text(),
    re.MULTILINE | re.DOTALL,
)
BLOCKS = re.findall(r"^```(toml|sh|text)\n(.*?)^```$", "" if SECTION is None else SECTION[0], re.MULTILINE | re.DOTALL)


def test_the_blocks_do_what_the_text_says(tmp_path: Path) -> None:
    file = tmp_path / "home" / ".config" / "iris-kv" / "rollout.toml"
    file.parent.mkdir(parents=True)
    (tmp_path / "work" / ".iris").mkdir(parents=True)
    ours = ("IRIS_KV_", "USE_KV_CACHE_PROMPT", "XDG_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    printed, shown = "", 0

    for kind, block in BLOCKS:
        if kind == "toml":
            file.write_text(block)
            assert LiveRollout(Settings(), [file]).errors == ()
        elif kind == "sh":
            printed = subprocess.run(
                ["sh", "-euc", block],
                env={**kept, "HOME": str(tmp_path / "home"), "PATH": path},
                cwd=tmp_path / "work",
                capture_output=True,
                text=True,
                timeout=60,
                check=True,
            ).stdout
        else:
            assert block in printed
            shown += 1

    assert [kind for kind, _ in BLOCKS].count("toml") == 5
    assert shown == 2
