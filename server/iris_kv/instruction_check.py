"""What `iris-kv instructions check` says: every file judged, its tokens counted, and compared with Git's HEAD."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from iris_kv.instruction_file import (
    MAX_FILE_BYTES,
    CheckedFile,
    InstructionSource,
    LibraryError,
    check_file,
    find_sections,
    flaws,
    load_file,
    over_limits,
    same_tag,
    scan_source,
)
from iris_kv.model import Frozen
from iris_kv.tokens import TokenCounter

_GIT: Final = "git --no-replace-objects -c core.fsmonitor=false -c core.hooksPath=/dev/null"
_GIT_ENV: Final = {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "GIT_ALLOW_PROTOCOL": "none"}
"""Without a protocol a partial clone cannot fetch what it lacks, by a command that its configuration names."""


class SectionTokens(Frozen):
    """How long one section is, its sub-sections included."""

    slug: str
    tokens: int


class CheckedInstruction(Frozen):
    """What the check found out about one valid instruction."""

    tag: str
    file: str
    """The source's label, and the file's name in it."""
    tokens: int
    """Of the body."""
    sections: tuple[SectionTokens, ...]
    """Largest first."""
    warnings: tuple[str, ...]


class CheckReport(Frozen):
    """What `iris-kv instructions check` says."""

    ok: bool
    """Whether there are no problems; warnings do not count."""
    exact: bool
    """Whether the tokens are counted, not estimated."""
    instructions: tuple[CheckedInstruction, ...]
    problems: tuple[LibraryError, ...]


def check(
    sources: Sequence[InstructionSource], counter: TokenCounter, *, strict: Collection[InstructionSource] = ()
) -> CheckReport:
    """Check every file of some sources, and that what changed since Git's HEAD has a new version.

    Args:
        sources: The folders to check, each by itself.
        counter: Counts the tokens.
        strict: The sources, besides the shipped ones, whose size limits are errors and not warnings.
    """
    reports = [_check_source(each, counter, strict=each.origin == "shipped" or each in strict) for each in sources]
    problems = tuple(itertools.chain.from_iterable(wrong for _, wrong in reports))
    instructions = tuple(itertools.chain.from_iterable(found for found, _ in reports))
    return CheckReport(ok=not problems, exact=counter.exact, instructions=instructions, problems=problems)


def _check_source(
    source: InstructionSource, counter: TokenCounter, *, strict: bool
) -> tuple[list[CheckedInstruction], list[LibraryError]]:
    stamps, wrong = scan_source(source)
    found, problems, first = list[CheckedInstruction](), list(wrong), dict[str, str]()
    committed = _committed(source.folder) if stamps else {}
    for checked in (load_file(source, name) for name in stamps or ()):
        problems.extend(checked.problems)
        if checked.fields is not None:
            tag = checked.fields["tag"]
            if first.setdefault(tag, checked.file) != checked.file:
                problems.append(same_tag(tag, checked.file, first[tag]))
            over = list(over_limits(checked.body, counter.count(checked.body.decode())))
            problems.extend(LibraryError(file=checked.file, problem=each) for each in over if strict)
            problems.extend(_unversioned(source, checked, checked.fields["version"], committed))
            found.append(_counted(checked, checked.fields, counter, [] if strict else over))
    return found, problems


def _counted(
    checked: CheckedFile, fields: Mapping[str, str], counter: TokenCounter, over: Sequence[str]
) -> CheckedInstruction:
    parts = [(each.slug, checked.body[each.start : each.end].decode()) for each in find_sections(checked.body)]
    sections = [SectionTokens(slug=slug, tokens=counter.count(part)) for slug, part in parts]
    return CheckedInstruction(
        tag=fields["tag"],
        file=checked.file,
        tokens=counter.count(checked.body.decode()),
        sections=tuple(sorted(sections, key=lambda each: -each.tokens)),
        warnings=(*over, *flaws(checked.name, fields["name"], fields["version"])),
    )


def _unversioned(
    source: InstructionSource, checked: CheckedFile, version: str, committed: Mapping[str, tuple[str, int]]
) -> Iterator[LibraryError]:
    blob, size = committed.get(checked.name, ("", 0))
    content = b"blob %d\0" % len(checked.raw) + checked.raw
    now = [hashlib.new(name, content, usedforsecurity=False).hexdigest() for name in ("sha1", "sha256")]
    if blob and size <= MAX_FILE_BYTES and blob not in now:
        before = check_file(source, checked.name, _git(source.folder, "cat-file", "blob", blob)).fields
        if before is not None and before["version"] == version:
            if version:
                problem = f"content changed since HEAD, version is still {version}; raise metadata.version"
            else:
                problem = "content changed since HEAD, there is still no version; add metadata.version"
            yield LibraryError(file=checked.file, problem=problem)


def _committed(folder: Path) -> dict[str, tuple[str, int]]:
    """Return blob and size by name of what HEAD has below a folder; nothing where Git cannot tell."""
    found: dict[str, tuple[str, int]] = {}
    for entry in _git(folder, "ls-tree", "-rlz", "HEAD", "./").split(b"\0"):
        about, _, name = entry.partition(b"\t")
        _, kind, blob, size = about.decode().split() or [""] * 4
        if kind == "blob" and size.isdigit():
            found[os.fsdecode(name)] = (blob, int(size))
    return found


def _git(folder: Path, *arguments: str) -> bytes:
    """Return what Git prints, nothing if it fails. The repository may be hostile: no hook, no filter, no fetch."""
    try:
        done = subprocess.run(  # noqa: S603 (no shell, and the arguments are ours)
            [*_GIT.split(), "-c", "safe.bareRepository=explicit", "-C", str(folder), *arguments],
            env={key: value for key, value in os.environ.items() if not key.startswith("GIT_")} | _GIT_ENV,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return b""
    return done.stdout if done.returncode == 0 else b""
