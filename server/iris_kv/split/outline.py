"""The structure of a prompt: sections within sections, down to blocks, as byte spans without a gap.

Headings make sections. So do lines such as `<rules>` ... `</rules>`, which many prompts use in
their place: what stands between them is kept together, and opened only where it is too long or a heading in it is to be kept.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from iris_kv.instruction_file import MAX_BODY_LINES, MAX_BODY_TOKENS, MAX_FILE_BYTES, is_front_matter
from iris_kv.markdown import NEWLINE, Block, blocks

Count = Callable[[bytes], int]
"""Returns the tokens of a part of the source."""

HEADING_TOKENS: Final = 40
"""Of a heading that is put before the block under it in any case."""

_HEADING_LINES: Final = 10
_MAX_DEPTH: Final = 8
_TITLE_WITHIN: Final = 2_000
_LONGEST_BYTES: Final = MAX_FILE_BYTES - 50_000
"""A file may have 1 MB, front matter included."""
_PROSE: Final = frozenset({"paragraph", "front", "heading", "close"})
"""What may be cut at lines where it is too long. A list is cut between its items, a fence or table nowhere."""
_UNDERLINED: Final = re.compile(rb"(?P<head>^[ \t]*\r?\n[^\s~][^\r\n]*\r?\n)(?P<rule>~{8,}$)", re.MULTILINE)
"""A plain text's title over a line of the same length; Markdown would take the line for a fence."""
_UNDERLINE: Final = re.compile(rb"[ \t]*(?:=+|-+)[ \t]*$")
_LINE: Final = re.compile(rb"[^\r\n]*(?:\r\n?|\n)|[^\r\n]+")
_SENTENCE: Final = re.compile(rb".+?(?:[.!?][\"')\]]*\s+|\Z)", re.DOTALL)
_SHORT: Final = re.compile(rb".{1,%d}(?![\x80-\xbf])" % MAX_BODY_TOKENS, re.DOTALL)
"""A token has a byte at least; a cut is between code points."""
_FRONT: Final = re.compile(rb"(?:\xef\xbb\xbf)?---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)\s*", re.DOTALL | re.MULTILINE)
_LONE_CR: Final = re.compile(rb"\r(?!\n)")
_TAG: Final = re.compile(
    # What stands in a fence, a comment or <pre> is no tag; it is passed over whole, to the end where it is not closed.
    rb"^ {0,3}(?:(?P<fence>`{3,}(?=[^`\n]*$)|~{3,})(?:.*?^ {0,3}(?P=fence)[`~]*[ \t]*\r?$|.*)"
    rb"|<!--(?:.*?-->|.*)|<(?P<raw>pre|script|style|textarea)(?=[\s>])(?:.*?</(?P=raw)>|.*))"
    rb"|^(?P<indent> {0,3})<(?P<close>/?)(?P<name>[A-Za-z][\w.:-]*)(?P<rest>[ \t][^<>\r\n]*)?(?<!/)>(?P<after>[ \t]*\r?(?:\n|\Z))",
    re.MULTILINE | re.DOTALL | re.IGNORECASE,
)
_NAMED: Final = re.compile(rb"\s(?:name|id|title)\s*=\s*[\"']?(?P<value>[^\"'\s<>][^\"'<>]*)")
_BLANK: Final = re.compile(rb"(?:[ \t]*(?:\r\n?|\n))*")
_HTML: Final = frozenset(
    ("a", "b", "body", "center", "code", "details", "div", "html", "li", "p", "pre", "span", "table", "ul")
)


@dataclass(frozen=True, eq=False)
class Part:
    """A span of the source: a section with its parts, or a block without any."""

    kind: str
    """`section`, `pair`, `front`, or the kind of a `Block`."""
    start: int
    end: int
    tokens: int
    """The sum of its blocks' tokens, which the whole does not exceed."""
    lines: int
    title: str = ""
    """The heading's or the tag's; `""` for a block that is neither."""
    children: tuple[Part, ...] = ()
    """What it is made of, without a gap; a section starts with its own heading and blocks."""

    @property
    def is_cut(self) -> bool:
        """Whether it is a block that is too long, taken apart into lines or items."""
        return bool(self.children) and self.children[0].kind in {"line", "item"}

    @property
    def fits(self) -> bool:
        """Whether it is short enough for one instruction; a block leaves room for its heading."""
        tokens, lines = (0, 0) if self.kind in {"section", "pair"} else (HEADING_TOKENS, _HEADING_LINES)
        # The last line may have no end.
        return self.tokens <= MAX_BODY_TOKENS - tokens and self.lines < MAX_BODY_LINES - lines


class _Pair(NamedTuple):
    name: str
    start: int
    inner_start: int
    inner_end: int
    end: int


def outline(source: bytes, count: Count) -> Part:
    """Return the structure of a UTF-8 text that is not blank."""
    return _Outliner(source, count).section("section", 0, len(source), "", 0)


class _Outliner:
    def __init__(self, source: bytes, count: Count) -> None:
        self._source = source
        self._lined = _LONE_CR.sub(b"\n", source)
        """The source, with line ends that every pattern knows, at the same places."""
        self._count = count

    def section(self, kind: str, start: int, end: int, title: str, depth: int) -> Part:
        """Return a part that is made of what its text has at the top."""
        return _joined(kind, title, _nested(list(self._units(start, end, depth))))

    def _units(self, start: int, end: int, depth: int) -> Iterator[tuple[int, Part]]:
        """Yield the blocks and pairs of a span in order, each with its heading's level or 0."""
        text = self._lined[start:end]
        found = _blocks(text, at_top=start == 0)
        pairs = {pair.start: pair for pair in _outermost(text, _tags(text, found))}
        by_start = {block.start: block for block in found}
        for at, to in itertools.pairwise([*_cuts(by_start, pairs, len(text)), len(text)]):
            if at in pairs:
                yield 0, self._pair(pairs[at], start, start + to, depth)
            else:
                block = by_start.get(at, Block("paragraph", at, to))
                if block.level > 0 and _is_of_lines(text[at:to]):
                    # An underline below several lines is more often a plain text's rule than a heading.
                    block = Block("paragraph", at, to)
                items = [start + item for item in block.items if at < item < to]
                yield block.level, self._leaf(block.kind, start + at, start + to, block.title, items)

    def _pair(self, pair: _Pair, offset: int, end: int, depth: int) -> Part:
        start, inner_start, inner_end = (offset + at for at in pair[1:4])
        title = _pair_title(pair.name, self._source[inner_start:inner_end])
        leaf = self._leaf("pair", start, end, title)
        if depth == _MAX_DEPTH or not self._source[inner_start:inner_end].strip():
            return leaf
        inner = self.section("pair", inner_start, inner_end, title, depth + 1)
        opened = self._leaf("heading", start, inner_start)
        closed = self._leaf("close", inner_end, end)
        return replace(leaf, children=(opened, *inner.children, closed))

    def _leaf(self, kind: str, start: int, end: int, title: str = "", items: Sequence[int] = ()) -> Part:
        text = self._source[start:end]
        leaf = Part(kind, start, end, self._count(text), len(NEWLINE.findall(text)), title)
        if leaf.fits:
            return leaf
        if items:
            edges = itertools.pairwise([start, *items, end])
            return replace(leaf, children=tuple(self._leaf("item", *edge) for edge in edges))
        if end - start > _LONGEST_BYTES or kind in _PROSE:
            return replace(leaf, children=tuple(self._lines(start, end)))
        return leaf

    def _lines(self, start: int, end: int) -> Iterator[Part]:
        """Yield the lines of a long block; a long line's sentences; a long sentence in short parts."""
        for line in _LINE.finditer(self._source, start, end):
            sentences = [line] if _is_short(line) else _SENTENCE.finditer(self._source, *line.span())
            for sentence in sentences:
                short = [sentence] if _is_short(sentence) else _SHORT.finditer(self._source, *sentence.span())
                for found in short:
                    text = found[0]
                    yield Part("line", *found.span(), self._count(text), len(NEWLINE.findall(text)))


def _is_of_lines(heading: bytes) -> bool:
    """Tell whether a heading is more than one line over its underline; what follows it may be definitions of links."""
    lines = heading.strip().splitlines()
    return not lines[0].lstrip().startswith(b"#") and _UNDERLINE.match(lines[1]) is None


def _is_short(found: re.Match[bytes]) -> bool:
    return found.end() - found.start() <= MAX_BODY_TOKENS


def _blocks(text: bytes, *, at_top: bool) -> list[Block]:
    text = _TAG.sub(_as_rule, _UNDERLINED.sub(_as_heading, text))
    front = _FRONT.match(text) if at_top else None
    if front is None or not is_front_matter(front[1]):
        return blocks(text) or [Block("paragraph", 0, len(text))]
    at = front.end()
    return [Block("front", 0, at), *(_shifted(block, at) for block in blocks(text[at:]))]


def _as_heading(found: re.Match[bytes]) -> bytes:
    """Return a title over a line of `~` with one of `-`, which is as long and is no fence for Markdown."""
    head, rule = found["head"], found["rule"]
    return head + (b"-" * len(rule) if len(head.strip().decode()) == len(rule) else rule)


def _as_rule(found: re.Match[bytes]) -> bytes:
    """Return a tag's line as a rule of its length: Markdown would take what stands above and below it for one block."""
    if found["name"] is None:
        return found[0]
    indent, after = found["indent"], found["after"]
    return indent + b"*" * (len(found[0]) - len(indent) - len(after)) + after


def _shifted(block: Block, by: int) -> Block:
    items = tuple(by + item for item in block.items)
    return block._replace(start=by + block.start, end=by + block.end, items=items)


def _cuts(by_start: Mapping[int, Block], pairs: Mapping[int, _Pair], size: int) -> list[int]:
    """Return where units start: blocks and pairs, and what follows a pair, but nothing inside one."""
    kept: list[int] = []
    hidden_to = 0
    for cut in sorted({*by_start, *pairs, *(pair.end for pair in pairs.values() if pair.end < size)}):
        if cut >= hidden_to:
            kept.append(cut)
            hidden_to = pairs[cut].end if cut in pairs else hidden_to
    return kept


def _outermost(text: bytes, tags: Iterable[re.Match[bytes]]) -> Iterator[_Pair]:
    """Yield the pairs of tag lines that stand in no other pair."""
    pairs: list[_Pair] = []
    open_tags: list[re.Match[bytes]] = []
    open_names = Counter[bytes]()
    for tag in tags:
        if not tag["close"]:
            open_tags.append(tag)
            open_names[tag["name"]] += 1
        elif open_names[tag["name"]]:
            opened = _closed(open_tags, open_names, tag["name"])
            while pairs and pairs[-1].start > opened.start():
                pairs.pop()
            end = _behind_blank(text, tag.end())
            pairs.append(_Pair(_shown_name(opened), opened.start(), opened.end(), tag.start(), end))
    return iter(pairs)


def _behind_blank(text: bytes, at: int) -> int:
    """Return where the first line that is not blank starts, from a line's start on."""
    blank = _BLANK.match(text, at)
    return at if blank is None else blank.end()


def _shown_name(tag: re.Match[bytes]) -> str:
    """Return the attribute that names one of many alike, as in `<step name="plan">`, else the tag's name."""
    named = _NAMED.search(tag["rest"] or b"")
    return (named["value"] if named else tag["name"]).decode()


def _closed(open_tags: list[re.Match[bytes]], open_names: Counter[bytes], name: bytes) -> re.Match[bytes]:
    """Take the innermost open tag of a name from the stack, and what was left open in it."""
    while True:
        opened = open_tags.pop()
        open_names[opened["name"]] -= 1
        if opened["name"] == name:
            return opened


def _tags(text: bytes, found: list[Block]) -> Iterator[re.Match[bytes]]:
    """Yield the lines of tags at the top; one in a list or quote is a part of that."""
    starts = {_behind_blank(text, block.start) for block in found}
    return (tag for tag in _TAG.finditer(text) if tag["name"] is not None and tag.start() in starts)


def _pair_title(name: str, inner: bytes) -> str:
    """Return the tag's name; for plain HTML, which says nothing, the first heading inside."""
    if name.lower() not in _HTML:
        return name
    start = inner[:_TITLE_WITHIN].decode(errors="ignore").encode()
    return next((block.title for block in blocks(start) if block.kind == "heading"), "")


def _nested(units: list[tuple[int, Part]]) -> list[Part]:
    """Return the units as sections, each from its heading to the next of the same or a higher level."""
    top: list[Part] = []
    open_sections: list[tuple[int, list[Part]]] = [(0, top)]

    def close(level: int) -> None:
        while open_sections[-1][0] >= level:
            _, parts = open_sections.pop()
            open_sections[-1][1].append(_joined("section", parts[0].title, parts))

    for level, part in units:
        if level > 0:
            close(level)
            open_sections.append((level, []))
        open_sections[-1][1].append(part)
    close(1)
    return top


def _joined(kind: str, title: str, parts: list[Part]) -> Part:
    tokens, lines = sum(part.tokens for part in parts), sum(part.lines for part in parts)
    return Part(kind, parts[0].start, parts[-1].end, tokens, lines, title, tuple(parts))
