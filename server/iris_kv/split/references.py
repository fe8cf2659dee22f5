"""Where one part of a prompt refers to another: by link, by number, or by a heading's words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from iris_kv.instruction_file import find_sections, slug_of
from iris_kv.split.wording import plain

_ANCHOR: Final = re.compile(r"\]\(#([^)\s]+)|^\s{0,3}\[[^\]]+\]:\s*#(\S+)|href=[\"']#([^\"']+)", re.MULTILINE)
_CUE: Final = re.compile(
    r"(?:\b(?:see|refer to|described in|defined in|listed in|as in|per|follow|under|section|sections|chapter)\b|§)"
    r"[\s:]*(?:also\s+)?(?:the\s+)?(?:section\s+|chapter\s+)?(?P<mark>[\s\"'`*_#§\u201c\u2018\u00ab(\[]*)(?=(?P<named>[^\n]{1,100}))",
    re.IGNORECASE,
)
_PATH_END: Final = re.compile(r"\S*/\S*|\S+\.\w{1,5}\b")
"""A path or a file's name is no heading."""
_HEAD_NUMBER: Final = re.compile(r"(\d+(?:\.\d+)*)[.):]?\s")
_CUE_NUMBER: Final = re.compile(r"\d+(?:\.\d+)*")
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
        for section in find_sections(source):
            heading = Heading(section.title, section.start)
            self._anchors.setdefault(section.slug, heading)
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
        for at, heading in sorted(self._found(text)):
            offset = start + len(text[:at].encode())
            found.setdefault(heading, Reference(offset, heading))
        return list(found.values())

    def _found(self, text: str) -> Iterator[tuple[int, Heading]]:
        for match in _ANCHOR.finditer(text):
            heading = self._anchors.get(slug_of(next(filter(None, match.groups()))))
            if heading is not None:
                yield match.start(), heading
        for match in _CUE.finditer(text):
            is_quoted = bool(match["mark"].strip())
            is_section = match[0].casefold().startswith(("section", "chapter", "\u00a7"))
            heading = self._named(match["named"], is_sure=is_quoted or is_section)
            if heading is not None:
                yield match.start(), heading

    def _named(self, text: str, *, is_sure: bool) -> Heading | None:
        """Return the heading that a text starts with; one of a single word only where a section is surely meant."""
        number = _CUE_NUMBER.match(text)
        if number is not None:
            return self._numbers.get(number[0])
        every = _words(_PATH_END.split(text, maxsplit=1)[0]).split()
        is_sure, words = is_sure or "section" in every, every[: self._most_words]
        titles = (" ".join(words[:n]) for n in range(len(words), 0 if is_sure else 1, -1))
        return next((self._titles[title] for title in titles if title in self._titles), None)


def _words(text: str) -> str:
    return slug_of(plain(text)).replace("-", " ")
