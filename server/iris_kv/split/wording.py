"""What a piece is called and what is said of it, taken from its own text."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from iris_kv.instruction_file import slug_of
from iris_kv.markdown import Block, blocks
from iris_kv.prompts import one_line

RULE_WORD: Final = re.compile(r"\b(?:must|never|always|required|forbidden)\b", re.IGNORECASE)
"""A line with one of these is a rule that a reader should not miss."""

_NAME_CHARS: Final = 48
_DESCRIPTION_CHARS: Final = 280
_TOPICS: Final = 6
_RULES: Final = 2
_SHORTEST_RULE: Final = 12
_LONGEST_RULE: Final = 140
_OPENING_LINES: Final = 3
_PROSE: Final = frozenset({"paragraph", "bullet_list", "ordered_list", "blockquote"})
_NUMBER: Final = re.compile(r"(?:(?:\d+(?:\.\d+)*|[IVX]+)[.):]?\s+)?(?=\S)")
_LINK: Final = re.compile(r"!?\[([^\[\]]{0,300})\](?:\([^()\s]{0,500}(?:\s+\"[^\"]{0,300}\")?\)|\[[^\[\]]{0,300}\])")
_LEAD: Final = re.compile(r"\s*(?:>\s*)*(?:(?:[-*+]|\d+[.)]|#{1,6})\s+)?(?:\[[ xX]\]\s+)?")
_MARKS: Final = re.compile(
    r"(?P<ticks>`{1,3})(?!`)(?P<code>.{1,300}?)(?<!`)(?P=ticks)(?!`)|<!--.{0,300}?-->|[*`]+|__|~~"
    r"|</?(?:a|b|br|center|code|details|div|em|i|img|kbd|p|s|span|strong|sub|summary|sup|u)(?=[\s/>])[^<>]{0,200}>",
    re.IGNORECASE,
)
"""What is not shown; of code, what is. A tag that HTML does not know is a word that is meant."""
_ITEM: Final = re.compile(r"\s*(?:[-*+]|\d+[.)])\s|\s*$")
_BLANK: Final = re.compile(r"\s*$")
_COMMAND: Final = re.compile(r"(?:never|always|do not|don't|you must|must)\b", re.IGNORECASE)
_SHOUTED: Final = re.compile(r"\b(?:MUST|NEVER|ALWAYS|REQUIRED|FORBIDDEN)\b")
_SENTENCE: Final = re.compile(r"(.{12,}?[.!?])(?:\s|$)")
_WHEN: Final = re.compile(
    r"\b(?:use (?:this|it|these)\b[^.,]{0,40}? (?:whenever|when|if)\b|use when\b|when(?:ever)? (?=the user |users |asked |"
    r"you (?:need|write|create|edit|work|are asked)))\s*(?P<clause>[^.,;:]{8,140})",
    re.IGNORECASE,
)
_NEGATION: Final = re.compile(r"\b(?:not|never|no|avoid|except|unless|without|cannot)\b|n['\u2019]t\b", re.IGNORECASE)
_SENTENCE_END: Final = re.compile(r"[.!?;:]\s")


def plain(line: str) -> str:
    """Return a line of Markdown without its marks."""
    shown = _MARKS.sub(lambda mark: mark["code"] or "", _LINK.sub(r"\1", _LEAD.sub("", line, count=1)))
    return " ".join("".join(one if one.isprintable() else " " for one in shown).split())


def tag_of(titles: Sequence[str], number: int) -> str:
    """Return a tag from the first heading; `section_<number>` where that is missing or not in ASCII."""
    title = _named(titles[0]) if titles else ""
    slug = slug_of(title) if any(map(str.isalpha, title)) else ""
    words = slug if slug.isascii() else ""
    while len(words) > _NAME_CHARS:
        words = words.rpartition("-")[0] or words[:_NAME_CHARS]
    return words.replace("-", "_") or f"section_{number}"


def unique(tag: str, taken: set[str]) -> str:
    """Return the tag, or the tag with the first number that is free."""
    numbered = (f"{tag}_{number}" for number in itertools.count(2))
    return next(each for each in itertools.chain([tag], numbered) if each not in taken)


def said_of(text: bytes, titles: Sequence[str], within: str) -> tuple[str, str]:
    """Return a piece's description, and its first two short rules on one line or `""`.

    The description is when to use the piece, as it says itself, else by its headings, that of the
    section `within` which it stands, and its first sentence.
    """
    found = blocks(text)
    lines = list(_prose_lines(text, found))
    topic = "; ".join(dict.fromkeys(named for title in titles[:_TOPICS] if (named := _named(title))))
    if topic and _named(within):
        topic += f" in {_named(within)}"
    about = _sub_topics(found, titles)
    return _description(topic, about, lines[:_OPENING_LINES]), _essentials(lines)


def _description(topic: str, about: str, lines: Sequence[str]) -> str:
    stated = next(itertools.chain.from_iterable(map(_stated, lines)), None)
    if stated is not None:
        said = f"Use when {stated}" + (f" ({topic})." if topic else ".")
        return one_line(said, _DESCRIPTION_CHARS)
    about = about or _first_sentence(lines)
    known = topic or one_line(about, _DESCRIPTION_CHARS) or "what it says"
    rest = f": {about}" if topic and about else ""
    return one_line(f"Use when the task involves {known}{rest}", _DESCRIPTION_CHARS)


def _stated(line: str) -> Iterator[str]:
    """Yield when a text says that it is to be used; "do not use this when ..." says when it is not."""
    for found in _WHEN.finditer(line):
        before = _SENTENCE_END.split(line[: found.start("clause")])[-1]
        if _NEGATION.search(before) is None:
            yield " ".join(found["clause"].split())


def _essentials(lines: Sequence[str]) -> str:
    rules = [line for line in lines if _is_rule(line) and _SHORTEST_RULE <= len(line) <= _LONGEST_RULE]
    return " ".join(rule if rule[-1] in ".!?" else rule + "." for rule in dict.fromkeys(rules[:_RULES]))


def _is_rule(line: str) -> bool:
    return not line.endswith(":") and bool(_COMMAND.match(line) or _SHOUTED.search(line))


def _named(title: str) -> str:
    """Return a heading's words, without marks and number."""
    return _NUMBER.sub("", plain(title), count=1)


def _sub_topics(found: Sequence[Block], titles: Sequence[str]) -> str:
    names = [_named(block.title) for block in found if block.kind == "heading" and block.title not in titles]
    return ", ".join(names[:_TOPICS]) if len(names) > 1 else ""


def _first_sentence(lines: Sequence[str]) -> str:
    first = next((line for line in lines if len(line) >= _SHORTEST_RULE), "")
    sentence = _SENTENCE.match(first)
    return (first if sentence is None else sentence[1]).rstrip(": ")


def _prose_lines(text: bytes, found: Sequence[Block]) -> Iterator[str]:
    """Yield the paragraphs and list items, each plain and on one line, without the code in them."""
    for block in found:
        if block.kind in _PROSE:
            lines = _without_fences(text[block.start : block.end].decode().splitlines())
            items = _joined(lines, starts=_ITEM if block.kind.endswith("_list") else _BLANK)
            yield from filter(None, map(plain, items))


def _without_fences(lines: Sequence[str]) -> Iterator[str]:
    in_fence = False
    for line in lines:
        is_fence = line.lstrip().startswith(("```", "~~~"))
        in_fence ^= is_fence
        if not in_fence and not is_fence:
            yield line


def _joined(lines: Iterable[str], starts: re.Pattern[str]) -> Iterator[str]:
    """Yield each line that starts something, with the lines that go on with it."""
    held = ""
    for line in lines:
        if starts.match(line):
            yield held
            held = line
        else:
            held = f"{held} {line.strip()}"
    yield held
