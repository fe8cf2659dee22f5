"""Node and the two npm packages, installed once into the checkout's cache."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

PACKAGES = {
    "node": "22",
    "@modelcontextprotocol/inspector": "2.12.0",
    "@modelcontextprotocol/conformance": "0.2.0-alpha.12",
}
"""The Inspector and the suite need Node 22.19, which the package `node` brings, whatever Node runs npm."""

INSTALL_S = 600


class Tools(NamedTuple):
    """The command line of each tool, without arguments."""

    inspector: tuple[str, ...]
    conformance: tuple[str, ...]


def installed_tools(folder: Path) -> Tools:
    """Return the tools in a folder, after installing them there where they are missing.

    Raises:
        SystemExit: There is no npm, or it failed; the text says so.
    """
    modules = folder / "node_modules"
    if not _is_installed(modules):
        _install(folder)
    node = str(modules / ".bin" / "node")
    inspector = _script(modules / "@modelcontextprotocol/inspector", "mcp-inspector")
    conformance = _script(modules / "@modelcontextprotocol/conformance", "conformance")
    return Tools(inspector=(node, inspector, "--cli"), conformance=(node, conformance))


def _is_installed(modules: Path) -> bool:
    """Tell whether each package is there in the wanted version; `22` stands for every 22.x."""
    for name, wanted in PACKAGES.items():
        try:
            version = json.loads((modules / name / "package.json").read_text())["version"]
        except (OSError, ValueError, KeyError):
            return False
        if f"{version}.".partition(f"{wanted}.")[0]:
            return False
    return (modules / ".bin" / "node").exists()


def _install(folder: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise SystemExit("interop: npm is not on PATH; install Node.js with npm (Debian: apt-get install nodejs npm)")
    folder.mkdir(parents=True, exist_ok=True)
    print(f"installing {', '.join(PACKAGES)} into {folder}", flush=True)
    options = ("--no-audit", "--no-fund", "--no-package-lock", "--loglevel=error", "--prefix", str(folder))
    wanted = [f"{name}@{version}" for name, version in PACKAGES.items()]
    done = subprocess.run([npm, "install", *options, *wanted], check=False, timeout=INSTALL_S)
    if done.returncode != 0 or not _is_installed(folder / "node_modules"):
        raise SystemExit(f"interop: npm install failed with exit code {done.returncode}")


def _script(package: Path, name: str) -> str:
    return str(package / json.loads((package / "package.json").read_text())["bin"][name])
