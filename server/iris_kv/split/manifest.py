"""Where every byte of a split's source went: the data of `manifest.json`, and the files that it names."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from iris_kv.model import Frozen, digest_of

MANIFEST: Final = "manifest.json"
PROMPT: Final = "prompts/system.md"
SOURCE: Final = "source.md"
FOLDER: Final = "instructions"


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
    file: Annotated[str, Field(pattern=rf"^{FOLDER}/[a-z0-9_]{{1,64}}\.md$")]
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
    digest: str
    """Of the file with `""` in this place, so that an edit is seen."""

    @property
    def raw(self) -> bytes:
        """The file `manifest.json`."""
        return (self.model_dump_json(indent=1) + "\n").encode()

    @property
    def written(self) -> dict[str, str]:
        """The path of every file of the split, and its digest as it was written."""
        pieces = {each.file: each.file_digest for each in self.pieces}
        return {
            MANIFEST: digest_of(self.sealed().raw),
            PROMPT: self.prompt_digest,
            SOURCE: self.source.digest,
            **pieces,
        }

    def sealed(self) -> Manifest:
        """Return the manifest with its own digest."""
        return self.model_copy(update={"digest": digest_of(self.model_copy(update={"digest": ""}).raw)})
