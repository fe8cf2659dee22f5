"""Breaks the store for ten minutes at random moments, and feeds it anything: `python -m tests.soak [MINUTES]`.

The first pass tries every system call, a hundred kills through `serve` and twenty power cuts; passes
with other seeds follow until the time is over. A seed is printed before its pass, which repeats it with
`pytest tests/faults --soak --seed SEED`.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time

FIRST = ["tests/faults", "tests/property/test_fuzz_inputs.py", "tests/property/test_store_machine.py"]
NEXT = [*FIRST[1:], "tests/faults/test_damage.py", "tests/faults/test_kill.py", "tests/faults/test_race.py"]


def run_pass(paths: list[str], until: float) -> int:
    seed = secrets.randbelow(1_000_000)
    print(f"soak: seed {seed}, {max(0, until - time.monotonic()):.0f} s left", flush=True)
    call = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-n",
        "auto",
        "--soak",
        "--seed",
        str(seed),
        f"--hypothesis-seed={seed}",
        *paths,
    ]
    return subprocess.run(call, check=False, env={**os.environ, "PYTHONHASHSEED": "0"}).returncode


def main() -> int:
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 10
    until = time.monotonic() + 60 * minutes
    failed = run_pass(FIRST, until)
    while not failed and time.monotonic() < until:
        failed = run_pass(NEXT, until)
    return failed


if __name__ == "__main__":
    sys.exit(main())
