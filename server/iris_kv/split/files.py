"""The files that a plan becomes: the core, the instructions, a copy of the source, and the manifest."""

from __future__ import annotations

import errno
import itertools
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Literal

from pydantic import ValidationError

from iris_kv.errors import ConflictError, InvalidArgumentError, NotFoundError, UnavailableError
from iris_kv.model import Frozen, digest_of
from iris_kv.split.division import Span
from iris_kv.split.plan import Plan, PlannedInstruction
from iris_kv.split.references import Index, Reference
from iris_kv.tokens import ENCODING, TokenCounter

MANIFEST: Final = "manifest.json"
PROMPT: Final = "prompts/system.md"
SOURCE: Final = "source.md"
FOLDER: Final = "instructions"
FIRST_VERSION: Final = "1.0.0"


class SourceRecord(Frozen):
    """The prompt that was split; `source.md` is its copy."""

    name: str
    bytes: int
    digest: str
    tokens: int


class CoreSpan(Frozen):
    """A span of the source that stands in the core."""

    start: int
    end: int
    digest: str
    at: int
    """Where it starts in `prompts/system.md`, in bytes."""


class ReferenceRecord(Frozen):
    """A place in a piece, or in the core, that refers to a heading elsewhere."""

    start: int
    """Where in the source, in bytes."""
    heading: str
    tag: str | None
    """The instruction that has the heading; None: the core."""


class PieceRecord(Frozen):
    """One instruction."""

    tag: str
    file: str
    titles: tuple[str, ...]
    start: int
    end: int
    digest: str
    """Of the span's bytes, which are the file's body."""
    file_digest: str
    """Of the whole file as it was written."""
    tokens: int
    references: tuple[ReferenceRecord, ...]


class Manifest(Frozen):
    """Where every byte of the source went."""

    format: Literal[1]
    source: SourceRecord
    counted_with: Literal["o200k_base", "an estimate"]
    budget: int
    prompt_digest: str
    """Of `prompts/system.md` as it was written."""
    core: tuple[CoreSpan, ...]
    core_references: tuple[ReferenceRecord, ...]
    pieces: tuple[PieceRecord, ...]


def manifest_of(plan: Plan, name: str, counter: TokenCounter) -> Manifest:
    """Return a plan's manifest; `name` is the source's file name."""
    source = plan.source
    finder = _Finder(plan)
    starts = itertools.accumulate(map(len, plan.core_texts), initial=0)
    return Manifest(
        format=1,
        source=SourceRecord(
            name=name, bytes=len(source), digest=digest_of(source), tokens=counter.count(source.decode())
        ),
        counted_with=ENCODING if counter.exact else "an estimate",
        budget=plan.budget,
        prompt_digest=digest_of(plan.prompt),
        core=tuple(
            CoreSpan(start=span.start, end=span.end, digest=digest_of(source[span.start : span.end]), at=at)
            for span, at in zip(plan.core, starts, strict=False)
        ),
        core_references=tuple(each for span in plan.core for each in finder.records(span, None)),
        pieces=tuple(_piece_record(plan, each, order, name, finder, counter) for order, each in _numbered(plan)),
    )


def files_of(plan: Plan, manifest: Manifest) -> Iterator[tuple[str, bytes]]:
    """Yield every file's path in the folder, and its bytes."""
    yield PROMPT, plan.prompt
    yield SOURCE, plan.source
    yield MANIFEST, (manifest.model_dump_json(indent=1) + "\n").encode()
    for (order, instruction), record in zip(_numbered(plan), manifest.pieces, strict=True):
        yield record.file, _instruction_file(plan, instruction, order, manifest.source.name, record.references)


def write_split(folder: Path, files: Sequence[tuple[str, bytes]], *, replace: bool) -> None:
    """Write all files: they are written beside the folder first, and put into it once all are there.

    Args:
        folder: Where they go; it must be new or empty, unless `replace`. A link is followed.
        files: See `files_of`.
        replace: Take the place of what the folder holds.

    Raises:
        ConflictError: The folder holds something and may not be replaced.
        UnavailableError: It cannot be written.
    """
    folder = Path(os.path.realpath(folder))
    if os.path.lexists(folder) and not replace and (not folder.is_dir() or any(folder.iterdir())):
        raise ConflictError(
            f"{folder.name!r} exists and is not an unchanged split",
            "files that a person may have edited are not overwritten",
            "name another folder with --out, or move this one away",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as beside:
            _write_beside(Path(beside), folder, files)
    except OSError as error:
        raise UnavailableError(
            f"{folder.name!r} cannot be written ({error.strerror})",
            "you must be able to write to it and to the folder that it is in",
            "name another folder with --out, or free space",
        ) from None


def _write_beside(beside: Path, folder: Path, files: Sequence[tuple[str, bytes]]) -> None:
    new, old = beside / "new", beside / "old"
    for made in (new / FOLDER, old):
        made.mkdir(parents=True)
    for name, content in files:
        (new / name).parent.mkdir(exist_ok=True)
        (new / name).write_bytes(content)
    # The folder itself stays: somebody may stand in it, or have a link to it.
    for source, target in ((folder, old), (new, folder)):
        for each in list(source.iterdir()):
            each.rename(target / each.name)


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a split.

    Raises:
        NotFoundError: The folder has none.
        InvalidArgumentError: It is not one of ours.
    """
    try:
        if not (folder / MANIFEST).is_file():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except OSError as error:
        raise NotFoundError(
            f"{os.path.basename(os.path.realpath(folder))!r} has no {MANIFEST} that can be read ({error.strerror})",
            "a folder that `iris-kv split` wrote has one",
            "name such a folder",
        ) from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise InvalidArgumentError(
            f"{MANIFEST} is damaged: {where} {first['msg']}",
            "it is as `iris-kv split` wrote it",
            "take it back from Git, or split the prompt again into another folder",
        ) from None


class _Finder:
    """Finds the references of a span to what is not in it."""

    def __init__(self, plan: Plan) -> None:
        self._source = plan.source
        self._index = Index(plan.source)
        self._owners = [(each.span, each.tag) for each in plan.instructions]

    def records(self, span: Span, owner: str | None) -> Iterator[ReferenceRecord]:
        """Yield the references of a span that the instruction `owner` has, None for the core."""
        for reference in self._index.references(self._source, *span):
            tag = self._owner(reference)
            if tag != owner:
                yield ReferenceRecord(start=reference.start, heading=reference.heading.title, tag=tag)

    def _owner(self, reference: Reference) -> str | None:
        at = reference.heading.start
        return next((tag for span, tag in self._owners if span.start <= at < span.end), None)


def _numbered(plan: Plan) -> Iterator[tuple[int, PlannedInstruction]]:
    return enumerate(plan.instructions, 1)


def _piece_record(
    plan: Plan, instruction: PlannedInstruction, order: int, name: str, finder: _Finder, counter: TokenCounter
) -> PieceRecord:
    start, end = instruction.span
    references = tuple(finder.records(instruction.span, instruction.tag))
    return PieceRecord(
        tag=instruction.tag,
        file=f"{FOLDER}/{instruction.tag}.md",
        titles=instruction.titles,
        start=start,
        end=end,
        digest=digest_of(plan.source[start:end]),
        file_digest=digest_of(_instruction_file(plan, instruction, order, name, references)),
        tokens=counter.count(plan.source[start:end].decode()),
        references=references,
    )


def _instruction_file(
    plan: Plan, instruction: PlannedInstruction, order: int, name: str, references: Sequence[ReferenceRecord]
) -> bytes:
    """Return generated front matter and exactly the instruction's span."""
    start, end = instruction.span
    metadata = {
        "version": FIRST_VERSION,
        "order": str(order),
        "essentials": instruction.essentials,
        "references": ", ".join(dict.fromkeys(each.tag for each in references if each.tag is not None)),
        "split-from": f"{name} bytes {start}-{end}",
    }
    lines = [
        "---",
        f"name: {instruction.tag.replace('_', '-')}",
        f"description: {_quoted(instruction.description)}",
        "metadata:",
        *(f"  {key}: {_quoted(value)}" for key, value in metadata.items() if value),
        "---",
    ]
    return ("\n".join(lines) + "\n").encode() + plan.source[start:end]


def _quoted(text: str) -> str:
    """Return a YAML string: a JSON string is one."""
    return json.dumps(text, ensure_ascii=False)
