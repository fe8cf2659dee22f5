"""The proof that a split folder still holds the source, or the names of what is lost."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from iris_kv.errors import InvalidArgumentError
from iris_kv.instruction_file import InstructionSource, load_file, scan_source
from iris_kv.model import Frozen, digest_of
from iris_kv.prompts import PromptSource
from iris_kv.split.files import FOLDER, PROMPT, SOURCE, Manifest, PieceRecord, read_manifest

_LABEL: Final = FOLDER


class LostLine(Frozen):
    """A line of the source that an edit lost."""

    line: int
    """Its number in the source, from 1."""
    text: str


class Finding(Frozen):
    """What is wrong with one file, or with the manifest."""

    file: str
    problem: str
    lost: tuple[LostLine, ...] = ()
    """In the order of the source; empty where nothing is lost, or the source's copy is damaged."""


class SplitVerification(Frozen):
    """What `iris-kv split --verify` says."""

    ok: bool
    """Whether the files rebuild the source, byte for byte."""
    source_bytes: int
    rebuilt_bytes: int
    """How many bytes of the source stand unchanged in the files."""
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    """What is no damage: what was added, and front matter that was edited."""


def verify_split(folder: Path) -> SplitVerification:
    """Read every file of a split folder and compare it with the manifest.

    Raises:
        NotFoundError: The folder has no manifest.
        InvalidArgumentError: The manifest is not one of ours.
    """
    return _Verifier(folder, read_manifest(folder)).verify()


class _Verifier:
    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._folder = folder
        self._manifest = manifest
        self._findings: list[Finding] = []
        self._notes: list[str] = []
        self._rebuilt: list[tuple[int, bytes]] = []
        self._source = self._copy()

    def verify(self) -> SplitVerification:
        """Return the result; to be called once."""
        self._check_cover()
        for piece in self._manifest.pieces:
            self._check_piece(piece)
        self._check_core()
        rebuilt = b"".join(part for _, part in sorted(self._rebuilt))
        source = self._manifest.source
        if not self._findings and digest_of(rebuilt) != source.digest:
            self._found("manifest.json", "the spans do not rebuild the source; its digests were changed")
        return SplitVerification(
            ok=not self._findings,
            source_bytes=source.bytes,
            rebuilt_bytes=len(rebuilt),
            findings=tuple(self._findings),
            notes=(*self._notes, *self._added()),
        )

    def _copy(self) -> bytes | None:
        """Return the source's copy if it is what was split."""
        try:
            copy = (self._folder / SOURCE).read_bytes()
        except OSError as error:
            self._found(SOURCE, f"cannot be read ({error.strerror}); put the prompt that was split in its place")
            return None
        if digest_of(copy) != self._manifest.source.digest:
            self._found(SOURCE, "is not the prompt that was split; put that in its place")
            return None
        return copy

    def _check_cover(self) -> None:
        spans = sorted((each.start, each.end) for each in (*self._manifest.core, *self._manifest.pieces))
        ends = [0, *(end for _, end in spans)]
        starts = [*(start for start, _ in spans), self._manifest.source.bytes]
        for end, start in zip(ends, starts, strict=True):
            if end != start:
                what = "are in no span" if end < start else "are in two spans"
                self._found("manifest.json", f"bytes {min(start, end)}-{max(start, end)} of the source {what}")

    def _check_piece(self, piece: PieceRecord) -> None:
        source = InstructionSource(folder=self._folder / FOLDER, origin="folder", label=_LABEL)
        loaded = load_file(source, Path(piece.file).name)
        for each in loaded.problems:
            lost = () if loaded.body else self._lost(piece.start, piece.end, b"")
            self._found(piece.file, each.problem, lost)
        if loaded.fields is None:
            return
        if loaded.fields["tag"] != piece.tag:
            self._found(piece.file, f"its tag was {piece.tag!r} and is {loaded.fields['tag']!r}; mend its name")
        if digest_of(loaded.body) == piece.digest:
            self._rebuilt.append((piece.start, loaded.body))
            if digest_of(loaded.raw) != piece.file_digest:
                self._notes.append(f"the front matter of {piece.file} was edited")
        else:
            self._found(piece.file, "its text is not the source's", self._lost(piece.start, piece.end, loaded.body))

    def _check_core(self) -> None:
        try:
            before = PromptSource(self._folder / PROMPT).parts.before
        except InvalidArgumentError as error:
            before = _bytes_of(self._folder / PROMPT)
            self._found(PROMPT, error.wrong)
        changed = False
        for span in self._manifest.core:
            text = before[span.at : span.at + span.end - span.start]
            if digest_of(text) == span.digest:
                self._rebuilt.append((span.start, text))
            else:
                changed = True
        if changed:
            lost = [line for span in self._manifest.core for line in self._lost(span.start, span.end, before)]
            self._found(PROMPT, "its text is not the source's", tuple(lost))
        elif digest_of(_bytes_of(self._folder / PROMPT)) != self._manifest.prompt_digest:
            self._notes.append(f"text was added to {PROMPT}")

    def _lost(self, start: int, end: int, now: bytes) -> tuple[LostLine, ...]:
        """Return the source's lines in a span that the text does not have as often."""
        if self._source is None:
            return ()
        first = len(_lines(self._source[:start] + b"x"))
        left = Counter(_lines(now))
        found: list[LostLine] = []
        for number, line in zip(itertools.count(first), _lines(self._source[start:end]), strict=False):
            if left[line] > 0:
                left[line] -= 1
            elif line.strip():
                found.append(LostLine(line=number, text=line.decode().rstrip("\r\n")))
        return tuple(found)

    def _added(self) -> Iterator[str]:
        known = {Path(piece.file).name for piece in self._manifest.pieces}
        source = InstructionSource(folder=self._folder / FOLDER, origin="folder", label=_LABEL)
        for name in scan_source(source)[0] or {}:
            if name not in known:
                yield f"{FOLDER}/{name} was added after the split"

    def _found(self, file: str, problem: str, lost: tuple[LostLine, ...] = ()) -> None:
        self._findings.append(Finding(file=file, problem=problem, lost=lost))


def _lines(text: bytes) -> list[bytes]:
    return text.splitlines(keepends=True)


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
