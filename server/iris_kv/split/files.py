"""The files that a plan becomes: the core, the instructions, a copy of the source, and the manifest."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Final

from iris_kv.instruction_file import MAX_REFERENCES_CHARS, printable
from iris_kv.model import digest_of
from iris_kv.split.division import Span
from iris_kv.split.manifest import (
    FOLDER,
    MANIFEST,
    PROMPT,
    SOURCE,
    CoreSpan,
    Manifest,
    PieceRecord,
    ReferenceRecord,
    SourceRecord,
)
from iris_kv.split.plan import Plan, PlannedInstruction
from iris_kv.split.references import Index
from iris_kv.tokens import ENCODING, TokenCounter

FIRST_VERSION: Final = "1.0.0"


def manifest_of(plan: Plan, name: str, counter: TokenCounter) -> Manifest:
    """Return a plan's manifest; `name` is the source's file name, of which it keeps what can be shown."""
    name = printable(name)
    source = plan.source
    finder = _Finder(plan)
    starts = itertools.accumulate(map(len, plan.core_texts), initial=0)
    manifest = Manifest(
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
        digest="",
    )
    return manifest.sealed()


def files_of(plan: Plan, manifest: Manifest) -> Iterator[tuple[str, bytes]]:
    """Yield every file's path in the folder, and its bytes."""
    yield PROMPT, plan.prompt
    yield SOURCE, plan.source
    yield MANIFEST, manifest.raw
    for (order, instruction), record in zip(_numbered(plan), manifest.pieces, strict=True):
        yield record.file, _instruction_file(plan, instruction, order, manifest.source.name, record.references)


class _Finder:
    """Finds the references of a span to what is not in it."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._index = Index(plan.source)

    def records(self, span: Span, tag: str | None) -> Iterator[ReferenceRecord]:
        """Yield the references of a span of the instruction `tag`, None for the core."""
        for start, heading in self._index.references(self._plan.source, *span):
            owner = self._plan.owner(heading.start)
            owner_tag = None if owner is None else owner.tag
            if owner_tag != tag:
                yield ReferenceRecord(start=start, heading=heading.title, tag=owner_tag)


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
        "references": _referenced(references),
        "split-from": f"{name} bytes {start}-{end}",
    }
    lines = [
        "---",
        f"name: {_quoted(instruction.tag.replace('_', '-'))}",
        f"description: {_quoted(instruction.description)}",
        "metadata:",
        *(f"  {key}: {_quoted(value)}" for key, value in metadata.items() if value),
        "---",
    ]
    return ("\n".join(lines) + "\n").encode() + plan.source[start:end]


def _referenced(references: Sequence[ReferenceRecord]) -> str:
    """Return the tags that are referred to, as many as front matter may name; the manifest has all."""
    tags = ", ".join(dict.fromkeys(each.tag for each in references if each.tag is not None))
    return tags if len(tags) <= MAX_REFERENCES_CHARS else tags[: MAX_REFERENCES_CHARS + 1].rpartition(",")[0]


def _quoted(text: str) -> str:
    """Return a YAML string: a JSON string is one."""
    return json.dumps(text, ensure_ascii=False)
