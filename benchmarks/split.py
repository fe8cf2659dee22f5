"""Split real, public instruction documents, verify each, and print what the split saves.

The documents are fetched by name from npm and Debian, and are not committed. Needs npm, and for the
Debian ones apt and dpkg-deb.
"""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple


class Document(NamedTuple):
    """A file in a package of npm or Debian."""

    name: str
    package: str
    path: str
    licence: str


DOCUMENTS: Final = (
    Document("bmad dev-story", "npm:bmad-method@6.12.0", "src/bmm-skills/v6-shims/bmad-dev-story/SKILL.md", "MIT"),
    Document("hooks-automation", "npm:claude-flow@3.43.0", ".claude/skills/hooks-automation/SKILL.md", "MIT"),
    Document("taskmaster rules", "npm:task-master-ai@0.43.1", "dist/assets/rules/taskmaster.mdc", "MIT+Commons Clause"),
    Document("autopilot ADR", "npm:ruflo@3.42.5", "src/ruvocal/docs/adr/ADR-037-AUTOPILOT-CHAT-MODE.md", "MIT"),
    Document(
        "gemini-cli settings", "npm:@google/gemini-cli@0.61.0", "bundle/docs/reference/configuration.md", "Apache-2.0"
    ),
    Document("Git user manual", "deb:git-doc", "usr/share/doc/git-doc/user-manual.txt", "GPL-2"),
    Document(
        "Developer's Reference",
        "deb:developers-reference",
        "usr/share/developers-reference/developers-reference.txt.gz",
        "GPL-2+",
    ),
    Document("Debian Policy", "deb:debian-policy", "usr/share/doc/debian-policy/policy.txt.gz", "GPL-2+"),
)
WIDTHS: Final = (22, 6, 8, 6, 7, 7, 9, 9, 6, 6)
HEADS: Final = ("document", "KB", "before", "core", "core %", "pieces", "standing", "coverage", "reads", "check")


def main() -> None:
    """Split every document and write the table to `split.txt`."""
    lines = ["make bench-split (benchmarks/split.py)", "", _row(HEADS)]
    with tempfile.TemporaryDirectory() as folder:
        for document in DOCUMENTS:
            lines.append(_row(_split(document, Path(folder))))
            print(lines[-1], flush=True)
    lines += ["", *_legend()]
    (Path(__file__).parent / "split.txt").write_text("\n".join(lines) + "\n")


def _split(document: Document, folder: Path) -> tuple[str, ...]:
    source = folder / "prompt.md"
    source.write_bytes(_fetched(document, folder))
    out = folder / document.name.replace(" ", "-")
    report = json.loads(_iris_kv("split", str(source), "--out", str(out), "--json"))
    checked = json.loads(_iris_kv("split", "--verify", str(out), "--json"))
    return (
        document.name,
        f"{report['source_bytes'] / 1000:.0f}",
        f"{report['tokens_before']:,}",
        f"{report['core_tokens']:,}",
        f"{100 * report['core_tokens'] / report['tokens_before']:.1f}",
        str(len(report["pieces"])),
        f"{report['standing_tokens']:,}",
        f"{100 * report['covered_bytes'] / report['source_bytes']:.6g} %",
        str(report["break_even_reads"]),
        "ok" if checked["ok"] else "FAILED",
    )


def _fetched(document: Document, folder: Path) -> bytes:
    kind, _, name = document.package.partition(":")
    if kind == "npm":
        packed = _run(["npm", "pack", "--silent", name], folder).strip()
        return subprocess.run(
            ["tar", "xzOf", packed, f"package/{document.path}"], cwd=folder, capture_output=True, check=True
        ).stdout
    _run(["apt-get", "download", "-qq", name], folder)
    (package,) = folder.glob(f"{name}_*.deb")
    _run(["dpkg-deb", "-x", str(package), name], folder)
    raw = (folder / name / document.path).read_bytes()
    return gzip.decompress(raw) if document.path.endswith(".gz") else raw


def _iris_kv(*arguments: str) -> str:
    return _run([str(Path(sys.executable).with_name("iris-kv")), *arguments], None)


def _run(command: list[str], folder: Path | None) -> str:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


def _row(cells: tuple[Any, ...]) -> str:
    first, *rest = (str(cell) for cell in cells)
    return first.ljust(WIDTHS[0]) + "".join(cell.rjust(width + 1) for cell, width in zip(rest, WIDTHS[1:], strict=True))


def _legend() -> Iterator[str]:
    yield "before: tokens (o200k_base) of the source. core: of the rendered core with its trigger table (at most 3,000,"
    yield "and 12 % from 100 KB up). standing: core, tools and server instructions. reads: instructions that a session"
    yield "may read until it carries more than before. check: iris-kv split --verify."
    yield ""
    for document in DOCUMENTS:
        yield f"{document.name}: {document.package} {document.path} ({document.licence})"


if __name__ == "__main__":
    main()
