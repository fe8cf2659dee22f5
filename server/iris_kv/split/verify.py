"""The proof that a split folder still holds the source, or the names of what is lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from iris_kv.errors import InvalidArgumentError
from iris_kv.instruction_file import InstructionSource, load_file, scan_source
from iris_kv.model import Frozen, digest_of
from iris_kv.prompts import PromptSource
from iris_kv.split.folder import added_to, bytes_of, read_manifest
from iris_kv.split.manifest import FOLDER, MANIFEST, PROMPT, SOURCE, CoreSpan, Manifest, PieceRecord


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
    """Whether the files rebuild the source, byte for byte, and the manifest is as it was written."""
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
        self._files = InstructionSource(folder=folder / FOLDER, origin="folder", label=FOLDER)
        self._names = tuple(scan_source(self._files)[0] or ())
        self._source = self._copy()
        self._missing = self._missing_lines()

    def verify(self) -> SplitVerification:
        """Return the result; to be called once."""
        if self._manifest.sealed() != self._manifest:
            self._found(MANIFEST, "was edited; take it back from Git, or split the prompt again into another folder")
        self._check_cover()
        for piece in self._manifest.pieces:
            self._check_piece(piece)
        self._check_core()
        rebuilt = b"".join(part for _, part in sorted(self._rebuilt))
        added = [f"{name} was added after the split" for name in added_to(self._folder, self._manifest.written)]
        source = self._manifest.source
        if not self._findings and digest_of(rebuilt) != source.digest:
            self._found(MANIFEST, "the spans do not rebuild the source; its digests were changed")
        return SplitVerification(
            ok=not self._findings,
            source_bytes=source.bytes,
            rebuilt_bytes=len(rebuilt),
            findings=tuple(self._findings),
            notes=(*self._notes, *added),
        )

    def _copy(self) -> bytes | None:
        """Return the source's copy if it is what was split."""
        copy = bytes_of(self._folder / SOURCE)
        if copy is None or digest_of(copy) != self._manifest.source.digest:
            problem = "cannot be read" if copy is None else "is not the prompt that was split"
            self._found(SOURCE, f"{problem}; put that prompt in its place, and what is lost can be named")
            return None
        return copy

    def _missing_lines(self) -> Counter[bytes]:
        """Return the lines that the source has more often than all files together; what was moved is not lost."""
        source = self._source or b""
        spans = (*self._manifest.core, *self._manifest.pieces)
        missing = Counter(line for span in spans for line in _lines(source[span.start : span.end]))
        raws = [load_file(self._files, name).raw for name in self._names]
        missing.subtract(line for raw in (*raws, bytes_of(self._folder / PROMPT) or b"") for line in _lines(raw))
        return missing

    def _check_cover(self) -> None:
        spans = sorted((each.start, each.end) for each in (*self._manifest.core, *self._manifest.pieces))
        ends = [0, *(end for _, end in spans)]
        starts = [*(start for start, _ in spans), self._manifest.source.bytes]
        for end, start in zip(ends, starts, strict=True):
            if end != start:
                what = "are in no span" if end < start else "are in two spans"
                self._found(MANIFEST, f"bytes {min(start, end)}-{max(start, end)} of the source {what}")

    def _check_piece(self, piece: PieceRecord) -> None:
        name = Path(piece.file).name
        if name not in self._names:
            self._found(piece.file, "is not there any more", self._lost([piece]))
            return
        loaded = load_file(self._files, name)
        for each in loaded.problems:
            self._found(piece.file, each.problem, self._lost([piece]))
        if loaded.fields is None:
            return
        if loaded.fields["tag"] != piece.tag:
            self._found(piece.file, f"its tag was {piece.tag!r} and is {loaded.fields['tag']!r}; mend its name")
        if digest_of(loaded.body) != piece.digest:
            self._found(piece.file, "its text is not the source's", self._lost([piece]))
            return
        self._rebuilt.append((piece.start, loaded.body))
        if digest_of(loaded.raw) != piece.file_digest:
            self._notes.append(f"the front matter of {piece.file} was edited")

    def _check_core(self) -> None:
        raw = bytes_of(self._folder / PROMPT) or b""
        try:
            before = PromptSource(self._folder / PROMPT).parts.before
        except InvalidArgumentError as error:
            before = raw
            self._found(PROMPT, error.wrong)
        texts = [(span, before[span.at : span.at + span.end - span.start]) for span in self._manifest.core]
        intact = [(span.start, text) for span, text in texts if digest_of(text) == span.digest]
        self._rebuilt += intact
        if len(intact) < len(texts):
            self._found(PROMPT, "its text is not the source's", self._lost(self._manifest.core))
        elif digest_of(raw) != self._manifest.prompt_digest:
            self._notes.append(f"text was added to {PROMPT}")

    def _lost(self, spans: Sequence[CoreSpan | PieceRecord]) -> tuple[LostLine, ...]:
        """Return the lines of spans that stand in no file any more; each is told once."""
        if self._source is None:
            return ()
        found: list[LostLine] = []
        for span in spans:
            first = len(_lines(self._source[: span.start] + b"x"))
            for number, line in enumerate(_lines(self._source[span.start : span.end]), first):
                if self._missing[line] > 0 and line.strip():
                    self._missing[line] -= 1
                    found.append(LostLine(line=number, text=line.decode(errors="replace").rstrip("\r\n")))
        return tuple(found)

    def _found(self, file: str, problem: str, lost: tuple[LostLine, ...] = ()) -> None:
        self._findings.append(Finding(file=file, problem=problem, lost=lost))


def _lines(text: bytes) -> list[bytes]:
    return text.splitlines(keepends=True)
