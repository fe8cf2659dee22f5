"""Environments of Python for clients whose dependencies are not ours, made once into the checkout's cache."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from pathlib import Path

CLIENTS = Path(__file__).with_name("clients")
INSTALL_S = 600


def client_python(client: str, cache: Path) -> Path:
    """Return the Python that runs a client, after making its environment where it is not the one that is wanted.

    `clients/CLIENT.txt` pins every package in it, so nothing is resolved. Without that file it is our own.

    Raises:
        subprocess.SubprocessError: pip failed; it said why on stderr.
    """
    pins = CLIENTS / f"{client}.txt"
    if not pins.exists():
        return Path(sys.executable)
    folder = cache / client
    python = folder / "bin" / "python"
    marker = folder / "made-of.txt"
    made_of = f"# {sys.version}\n{pins.read_text()}"
    if not marker.is_file() or marker.read_text() != made_of:
        shutil.rmtree(folder, ignore_errors=True)
        print(f"installing the client {client} into {folder}", flush=True)
        venv.create(folder, symlinks=True)
        # Compiled at their first use instead: most of it is never imported.
        options = ("-qq", "--no-deps", "--no-compile", "--disable-pip-version-check", "--requirement", str(pins))
        command = [sys.executable, "-m", "pip", "--python", str(python), "install", *options]
        subprocess.run(command, check=True, timeout=INSTALL_S)
        marker.write_text(made_of)
    return python
