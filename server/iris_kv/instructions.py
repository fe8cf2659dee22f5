"""The library of instructions: what the files of several folders say, kept fresh."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final

from iris_kv.errors import NotFoundError
from iris_kv.instruction_file import (
    MAX_BODY_LINES,
    MAX_BODY_TOKENS,
    MAX_FILE_BYTES,
    CheckedFile,
    InstructionSource,
    LibraryError,
    Origin,
    Section,
    Stamp,
    find_sections,
    flaws,
    load_file,
    over_limits,
    same_tag,
    scan_source,
    slug_of,
)
from iris_kv.markdown import NEWLINE
from iris_kv.model import digest_of
from iris_kv.tokens import TokenCounter

__all__ = [
    "MAX_BODY_LINES",
    "MAX_BODY_TOKENS",
    "MAX_FILE_BYTES",
    "Instruction",
    "InstructionLibrary",
    "InstructionSource",
    "LibraryError",
    "Origin",
    "Section",
    "section",
    "spaced_words",
]

_ORDER: Final[tuple[Origin, ...]] = ("workspace", "folder", "shipped")
_MAX_LISTED_CHARS: Final = 2_500
_WORD: Final = re.compile(r"\w+")
_HEADING_LIKE: Final = re.compile(rb"^ {0,3}#{1,6}(?:[ \t].*)?$|[^\n]+\n {0,3}(?:=+|-+)[ \t]*$", re.MULTILINE)


@dataclass(frozen=True)
class Instruction:
    """A Markdown file that tells an agent how to do one kind of task."""

    tag: str
    """The name with underscores."""
    name: str
    description: str
    """One line: what it does and when to use it."""
    essentials: str
    """One line: the rules that hold even if the body was not read; `""` if the file gives none."""
    version: str
    """`""` if the file gives none."""
    order: str
    """Digits: where it stands among those of its origin; `""`, behind these, if the file gives none."""
    references: str
    """The tags that its text refers to, joined by `, `; `""` if the file gives none."""
    digest: str
    """`sha256:` and 64 hex digits of the whole file, its front matter included."""
    origin: Origin
    source: str
    """The label of its source."""
    file: str
    """The source's label, and the file's name in it."""
    path: Path
    raw: bytes = field(repr=False)
    """The whole file."""
    body: bytes = field(repr=False)
    """What follows the front matter, untouched; valid UTF-8."""
    aliases: tuple[str, ...]
    """Other names that `InstructionLibrary.get` takes, unless they are another instruction's tag."""
    flaws: tuple[str, ...]
    """The warnings that need no count of tokens."""
    counter: TokenCounter = field(compare=False, repr=False)
    overrides: str | None = None
    """The version of the shipped instruction that it replaces; None if it replaces none."""

    @cached_property
    def sections(self) -> tuple[Section, ...]:
        """The body's sections in order. Found at the first use: 2 ms for 8 KB, some seconds for 1 MB."""
        return tuple(find_sections(self.body))

    @property
    def is_taken_apart(self) -> bool:
        """Whether sections and tokens were asked for before, so that they cost nothing now."""
        return {"sections", "tokens"} <= self.__dict__.keys()

    @cached_property
    def tokens(self) -> int:
        """The body's tokens, exact or estimated as the library's counter can."""
        return self.counter.count(self.body.decode())

    @cached_property
    def warnings(self) -> tuple[str, ...]:
        """What is allowed but should be mended."""
        return (*over_limits(self.body, self.tokens), *self.flaws)

    @cached_property
    def searched(self) -> tuple[str, str, str, str]:
        """What a search looks in: names, what is said of it, headings, text; see `spaced_words`.

        The headings are found much faster than the sections, and may hold what is none.
        """
        text = NEWLINE.sub(b"\n", self.body)
        headings = b"\n".join(match[0] for match in _HEADING_LIKE.finditer(text)).decode()
        names = f"{self.tag} {self.name}".replace("_", " ")
        about = f"{self.description} {self.essentials}"
        return spaced_words(names), spaced_words(about), spaced_words(headings), spaced_words(text.decode())


@dataclass(frozen=True)
class _Held:
    stamp: Stamp | None
    """None: read the file again at the next refresh."""
    instruction: Instruction | None
    """The last good version."""
    problems: tuple[LibraryError, ...]


@dataclass(frozen=True)
class _Folder:
    files: Mapping[str, _Held]
    problems: tuple[LibraryError, ...]


@dataclass(frozen=True)
class _State:
    folders: tuple[_Folder, ...]
    instructions: tuple[Instruction, ...]
    names: Mapping[str, Instruction]
    errors: tuple[LibraryError, ...]


class InstructionLibrary:
    """The instructions of some sources; of two with the same tag the later source's is served.

    Reading is safe from any thread: a refresh replaces the whole state at once.
    """

    def __init__(self, sources: Sequence[InstructionSource], counter: TokenCounter | None = None) -> None:
        """Read the sources for the first time; without a counter, make one."""
        self._sources = tuple(sources)
        self._counter = TokenCounter() if counter is None else counter
        self._refreshing = threading.Lock()
        self._state = _State(tuple(_Folder({}, ()) for _ in self._sources), (), {}, ())
        self.refresh()

    @property
    def instructions(self) -> tuple[Instruction, ...]:
        """What is served: the workspace's, the folders', the shipped ones, each in their own order, else by tag."""
        return self._state.instructions

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags of `instructions`, in the same order."""
        return tuple(instruction.tag for instruction in self._state.instructions)

    @property
    def errors(self) -> tuple[LibraryError, ...]:
        """What is wrong now, by source and file; a file that broke still serves its last good version."""
        return self._state.errors

    def refresh(self) -> bool:
        """Read what changed in the folders; return whether anything served changed.

        Blocks on the file system: 1,000 unchanged files take some milliseconds.
        """
        with self._refreshing:
            old = self._state
            folders = tuple(map(self._rescanned, self._sources, old.folders))
            if folders == old.folders:
                return False
            self._state = new = _merged(self._sources, folders, old)
            return new.instructions != old.instructions

    def get(self, name: str) -> Instruction:
        """Return the instruction with this tag or alias, in any case, with hyphens or underscores.

        Raises:
            NotFoundError: There is none; the text lists the tags, nearest first, with when to use them.
        """
        state = self._state
        for form in (name, name.strip().lower(), _folded(name)):
            if form in state.names:
                return state.names[form]
        raise _unknown_instruction(name, state.instructions)

    def _rescanned(self, source: InstructionSource, before: _Folder) -> _Folder:
        stamps, problems = scan_source(source)
        if stamps is None:
            return _Folder(before.files, problems)
        files = {name: self._held(source, name, stamp, before.files.get(name)) for name, stamp in stamps.items()}
        return _Folder(files, problems)

    def _held(self, source: InstructionSource, name: str, stamp: Stamp | None, before: _Held | None) -> _Held:
        last = None if before is None else before.instruction
        if before is not None and before.stamp is not None and before.stamp == stamp:
            return before
        checked = load_file(source, name)
        if last is None or checked.raw != last.raw:
            last = self._instruction(source, checked) or last
        return _Held(checked.stamp, last, checked.problems)

    def _instruction(self, source: InstructionSource, checked: CheckedFile) -> Instruction | None:
        fields = checked.fields
        if fields is None:
            return None
        path = Path(checked.file)
        stem = path.parent.name if path.name == "SKILL.md" else path.stem
        return Instruction(
            **fields,
            digest=digest_of(checked.raw),
            origin=source.origin,
            source=source.label,
            file=checked.file,
            path=source.folder / checked.name,
            raw=checked.raw,
            body=checked.body,
            aliases=tuple(x for x in dict.fromkeys((fields["name"], stem, stem.lower())) if x != fields["tag"]),
            flaws=tuple(flaws(checked.name, fields["name"], fields["version"])),
            counter=self._counter,
        )


def section(instruction: Instruction, name: str) -> Section:
    """Return the section with this slug or title, in any case.

    Raises:
        NotFoundError: There is none; the text lists the slugs, nearest first.
    """
    sections = instruction.sections
    titles = [(found.title, found) for found in sections]
    ways = [(found.slug, found) for found in sections] + titles + [(title.casefold(), to) for title, to in titles]
    known = dict(reversed(ways))
    for form in (name, " ".join(name.split()).casefold(), slug_of(name)):
        if form in known:
            return known[form]
    slugs = {found.slug: found.slug for found in sections}
    raise NotFoundError(
        f"{instruction.tag} has no section {name[:64]!r}",
        f"its sections are {_nearest(slug_of(name[:64]), slugs)}" if slugs else "it has no sections",
        "call get_instruction with one of them, or without a section" if slugs else "ask for all of it",
    )


def _merged(sources: Sequence[InstructionSource], folders: tuple[_Folder, ...], old: _State) -> _State:
    layers = [_kept(folder) for folder in folders]
    served: dict[str, Instruction] = {}
    shipped: dict[str, str] = {}
    for source, (instructions, _) in zip(sources, layers, strict=True):
        served |= instructions
        if source.origin == "shipped":
            shipped |= {tag: instruction.version for tag, instruction in instructions.items()}
    before = {instruction.tag: instruction for instruction in old.instructions}
    ordered = sorted(served.values(), key=_place)
    final = tuple(_overriding(each, shipped.get(each.tag), before.get(each.tag)) for each in ordered)
    return _State(folders, final, _names(final), tuple(error for _, errors in layers for error in errors))


def _place(found: Instruction) -> tuple[int, float, str]:
    return _ORDER.index(found.origin), float(found.order or "inf"), found.tag


def _kept(folder: _Folder) -> tuple[dict[str, Instruction], list[LibraryError]]:
    """Return the folder's instructions by tag, the first file of each, and what is wrong in it."""
    kept: dict[str, Instruction] = {}
    errors = list(folder.problems)
    for held in folder.files.values():
        errors.extend(held.problems)
        found = held.instruction
        if found is not None and kept.setdefault(found.tag, found) is not found:
            errors.append(same_tag(found.tag, found.file, kept[found.tag].file))
    return kept, errors


def _overriding(found: Instruction, shipped: str | None, before: Instruction | None) -> Instruction:
    if shipped is None or found.origin == "shipped":
        return found
    replaced = dataclasses.replace(found, overrides=shipped)
    return before if before is not None and before == replaced else replaced


def _names(instructions: Sequence[Instruction]) -> dict[str, Instruction]:
    """Return who answers to which name; a tag comes before a name, a name before an alias, exact before folded."""
    exact = [(found.tag, found) for found in instructions] + [(found.name, found) for found in instructions]
    exact += [(alias, found) for found in instructions for alias in found.aliases]
    return dict(reversed(exact + [(_folded(name), found) for name, found in exact]))


def spaced_words(text: str) -> str:
    """Return the casefolded words of a text with a space on both sides of each."""
    return " " + " ".join(_WORD.findall(text.casefold())) + " "


def _folded(name: str) -> str:
    return name.strip().casefold().replace("-", "_")


def _unknown_instruction(name: str, instructions: Sequence[Instruction]) -> NotFoundError:
    lines = {found.tag: f"{found.tag} ({found.description})" for found in instructions}
    return NotFoundError(
        f"no instruction {name[:64]!r}",
        f"there are: {_nearest(_folded(name[:64]), lines)}" if lines else "the library is empty",
        "call get_instruction with one of these tags, or list_instructions with a query to search all",
    )


def _nearest(name: str, lines: Mapping[str, str]) -> str:
    """Return the lines that fit into an answer, those with keys like this name first."""
    ordered = list(dict.fromkeys([*difflib.get_close_matches(name, lines, 10, 0.5), *lines]))
    used = itertools.accumulate(len(lines[key]) + 2 for key in ordered)
    kept = [lines[key] for key, end in zip(ordered, used, strict=True) if end <= _MAX_LISTED_CHARS]
    more = len(lines) - len(kept)
    return ", ".join(kept) + (f" and {more:,} more" if more else "")
