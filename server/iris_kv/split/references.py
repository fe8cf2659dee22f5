"""Where one part of a prompt refers to another: by link, by number, or by a heading's words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Final, NamedTuple

from iris_kv.instruction_file import find_sections, slug_of
from iris_kv.split.wording import plain

_ANCHOR: Final = re.compile(
    r"\]\(#([^)\s]{1,300})|^ {0,3}\[[^\]\n]{1,300}\]:[ \t]{0,9}#(\S{1,300})|href=[\"']#([^\"'\n]{1,300})", re.MULTILINE
)
_SECTION: Final = r"\b(?:sections?|chapters?)\b|§"
_GAP: Final = r"[ \t:]{0,9}(?:\r?\n[ \t]{0,9})?"
"""Bounded, as is all that is repeated here: what a match starts with may stand a million times in a row."""
_CUE: Final = re.compile(
    rf"(?:\b(?:see|refer to|described in|defined in|listed in|as in|per|follow|under)\b|{_SECTION}){_GAP}"
    rf"(?:also{_GAP})?(?:the{_GAP})?(?:(?:{_SECTION}){_GAP})?"
    r"(?P<mark>[\"'`*_#\u201c\u2018\u00ab(\[ \t]{0,9})(?=(?P<named>[^\n]{1,100}))",
    re.IGNORECASE,
)
_DIGITS: Final = r"\d{1,4}(?:\.\d{1,4}){0,8}"
_NUMBERED: Final = re.compile(
    rf"(?:{_SECTION}){_GAP}(?P<numbers>{_DIGITS}(?:(?:,|{_GAP}(?:and|or|to|&|-|\u2013)){{1,2}}{_GAP}{_DIGITS}\b){{0,20}})",
    re.IGNORECASE,
)
_PATH_END: Final = re.compile(r"\S*/\S*|\S+\.\w{1,5}\b")
"""A path or a file's name is no heading."""
_HEAD_NUMBER: Final = re.compile(rf"({_DIGITS})[.):]?\s")
_NUMBER: Final = re.compile(_DIGITS)
_SHORTEST_TITLE: Final = 4


class Heading(NamedTuple):
    """A heading of the source, and where its line starts, in bytes."""

    title: str
    start: int


class Reference(NamedTuple):
    """A place that refers to a heading; both by bytes of the source."""

    start: int
    heading: Heading


class Index:
    """The headings of a source, found by anchor, number and words."""

    def __init__(self, source: bytes) -> None:
        """Index every heading of the source."""
        self._anchors: dict[str, Heading] = {}
        self._numbers: dict[str, Heading] = {}
        self._titles: dict[str, Heading] = {}
        self._most_words = 0
        copies = Counter[str]()
        for section in find_sections(source):
            heading = Heading(section.title, section.start)
            slug = slug_of(section.title)
            # A second heading of a title is `title-1` where Markdown is shown, not `title-2` as in our sections.
            self._anchors.setdefault(f"{slug}-{copies[slug]}" if copies[slug] else slug, heading)
            copies[slug] += 1
            number = _HEAD_NUMBER.match(section.title)
            if number is not None:
                self._numbers.setdefault(number[1], heading)
            words = _words(section.title[number.end() :] if number else section.title)
            if len(words) >= _SHORTEST_TITLE:
                self._titles.setdefault(words, heading)
                self._most_words = max(self._most_words, words.count(" ") + 1)

    def references(self, source: bytes, start: int, end: int) -> list[Reference]:
        """Return the references in a span, each heading once, in order."""
        text = source[start:end].decode()
        found: dict[Heading, Reference] = {}
        seen, offset = 0, start
        for at, heading in sorted(self._found(text)):
            if heading not in found:
                seen, offset = at, offset + len(text[seen:at].encode())
                found[heading] = Reference(offset, heading)
        return list(found.values())

    def _found(self, text: str) -> Iterator[tuple[int, Heading]]:
        for match in _ANCHOR.finditer(text):
            yield from self._known(match.start(), self._anchors.get(slug_of(next(filter(None, match.groups())))))
        for match in _NUMBERED.finditer(text):
            for number in _NUMBER.findall(match["numbers"]):
                yield from self._known(match.start(), self._numbers.get(number))
        for match in _CUE.finditer(text):
            is_quoted = bool(match["mark"].strip())
            is_section = re.match(_SECTION, match[0], re.IGNORECASE) is not None
            yield from self._known(match.start(), self._named(match["named"], is_sure=is_quoted or is_section))

    def _known(self, at: int, heading: Heading | None) -> Iterator[tuple[int, Heading]]:
        if heading is not None:
            yield at, heading

    def _named(self, text: str, *, is_sure: bool) -> Heading | None:
        """Return the heading that a text starts with; one of a single word only where a section is surely meant."""
        text = _HEAD_NUMBER.sub("", text, count=1) if _HEAD_NUMBER.match(text) else text
        every = _words(_PATH_END.split(text, maxsplit=1)[0]).split()
        is_sure, words = is_sure or "section" in every, every[: self._most_words]
        titles = (" ".join(words[:n]) for n in range(len(words), 0 if is_sure else 1, -1))
        return next((self._titles[title] for title in titles if title in self._titles), None)


def _words(text: str) -> str:
    return slug_of(plain(text)).replace("-", " ")
