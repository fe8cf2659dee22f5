"""What stays in the core and what becomes an instruction: spans that cover the source exactly once."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from iris_kv.instruction_file import MAX_BODY_LINES, MAX_BODY_TOKENS
from iris_kv.split.outline import HEADING_TOKENS, Part

_SMALL_TOKENS: Final = 400
_MERGED_TOKENS: Final = 1_200
_HEAD_TOKENS: Final = 120
_SCRAP_TOKENS: Final = 40
_LEAST_SHARE: Final = 0.2
"""Of the room in the core: with less in it, a section that is too long is opened."""


class Span(NamedTuple):
    """A part of the source, by bytes."""

    start: int
    end: int


@dataclass(frozen=True)
class Piece:
    """A span that becomes one instruction."""

    start: int
    end: int
    tokens: int
    lines: int
    titles: tuple[str, ...]
    """The headings that it was put together from; empty where there is none."""
    kind: str
    """The kind of the part that it starts with."""
    within: str = ""
    """The heading of the section that it is a part of; `""` for one that holds most of the source."""

    @property
    def is_own_text(self) -> bool:
        """Whether it is the text between a heading and its first sub-section."""
        return self.kind not in {"section", "pair"}


def sections(part: Part) -> Iterator[Part]:
    """Yield every part that has a title and can be kept by it, in order."""
    if part.title and part.kind in {"section", "pair"}:
        yield part
    for child in part.children:
        yield from sections(child)


def core_parts(root: Part, kept: Sequence[Part], room: int) -> list[Part]:
    """Return what stays in the core, in order: the kept parts, and from the start on what has room.

    A section goes in whole or stays out whole, unless it holds most of the source, or nearly nothing is
    in the core yet.
    """
    taken: list[Part] = []
    left = room - sum(part.tokens for part in kept)
    enough = room * _LEAST_SHARE

    def is_opened(part: Part) -> bool:
        if part.kind == "pair" and part.fits:
            return False
        holds_most = part.end - part.start > root.end // 2
        return not taken or holds_most or (not part.fits and sum(each.tokens for each in taken) < enough)

    def take(part: Part) -> bool:
        """Take what fits of a part; tell whether to go on behind it."""
        nonlocal left
        if part in kept:
            return True
        has_kept = any(part.start <= each.start and each.end <= part.end for each in kept)
        if part.tokens <= left and not has_kept:
            taken.append(part)
            left -= part.tokens
            return True
        if not part.children or not (has_kept or is_opened(part)):
            return False
        return all(map(take, part.children))

    take(root)
    while taken and taken[-1].kind == "heading" and all(part.start != taken[-1].end for part in kept):
        taken.pop()
    return sorted([*taken, *kept], key=lambda part: part.start)


def spans_of(parts: Sequence[Part], source: bytes) -> tuple[Span, ...]:
    """Return the spans of parts in order, joined where nothing or only blank text is between; so at both ends."""
    found: list[Span] = []
    for part in parts:
        reached = found[-1].end if found else 0
        if source[reached : part.start].strip():
            found.append(Span(part.start, part.end))
        else:
            found.append(Span(found.pop().start if found else 0, part.end))
    if found and not source[found[-1].end :].strip():
        found.append(Span(found.pop().start, len(source)))
    return tuple(found)


def pieces(root: Part, core: Sequence[Span], source: bytes) -> list[Piece]:
    """Return what does not stay in the core, as pieces that are read well, in order; none is blank."""
    return _without_scraps(_pieces(root, core, root.end // 2), source)


def _pieces(part: Part, core: Sequence[Span], most: int) -> list[Piece]:
    """Return a part's pieces; a section of over `most` bytes is the whole rather than a context."""
    near = [each for each in core if each.start < part.end and part.start < each.end]
    if any(each.start <= part.start and part.end <= each.end for each in near):
        return []
    if not near and (part.fits or not part.children):
        titles = (part.title,) if part.title else ()
        return [Piece(part.start, part.end, part.tokens, part.lines, titles, part.kind)]
    # The lines of a long paragraph are merged with its neighbours, not first among themselves.
    parts = [each for child in part.children for each in (child.children if child.is_cut else (child,))]
    divided = [_pieces(each, near, most) for each in parts]
    context = part.title if part.end - part.start <= most else ""
    found: list[Piece] = []
    for whole, group in itertools.groupby(divided, key=lambda inner: len(inner) == 1):
        run = [piece for inner in group for piece in inner]
        found += _merged(run, are_chapters=not context) if whole else run
    return [_entitled(piece, part.title, context) for piece in found]


def _entitled(piece: Piece, title: str, context: str) -> Piece:
    titles = piece.titles or ((title,) if title else ())
    return replace(piece, titles=titles, within=piece.within or (context if titles != (title,) else ""))


def _merged(run: Sequence[Piece], *, are_chapters: bool) -> list[Piece]:
    """Return pieces joined that are better read together; chapters, which have no section above, are not alike."""
    found: list[Piece] = []
    for piece in run:
        if found and _belong_together(found[-1], piece, are_chapters=are_chapters):
            found.append(_sum(found.pop(), piece))
        else:
            found.append(piece)
    return found


def _belong_together(before: Piece, piece: Piece, *, are_chapters: bool) -> bool:
    if before.end != piece.start:
        return False
    if before.kind == "heading" and before.tokens <= HEADING_TOKENS and piece.is_own_text:
        return True
    if not _fit(before, piece):
        return False
    if piece.is_own_text or (before.is_own_text and before.tokens <= _HEAD_TOKENS):
        return True
    both_small = max(before.tokens, piece.tokens) <= _SMALL_TOKENS
    return both_small and not are_chapters and before.tokens + piece.tokens <= _MERGED_TOKENS


def _fit(before: Piece, piece: Piece) -> bool:
    return before.tokens + piece.tokens <= MAX_BODY_TOKENS and before.lines + piece.lines < MAX_BODY_LINES


def _sum(before: Piece, piece: Piece) -> Piece:
    kind = before.kind
    if piece.is_own_text or not piece.titles:
        titles = before.titles
    elif before.is_own_text:
        titles, kind = piece.titles, piece.kind
    else:
        titles = (*before.titles, *piece.titles)
    return Piece(before.start, piece.end, before.tokens + piece.tokens, before.lines + piece.lines, titles, kind)


def _without_scraps(found: Sequence[Piece], source: bytes) -> list[Piece]:
    """Return the pieces with what is too short to stand alone joined to a neighbour, and blank text in any case."""

    def is_blank(piece: Piece) -> bool:
        return not source[piece.start : piece.end].strip()

    def is_scrap(piece: Piece) -> bool:
        return piece.tokens < _SCRAP_TOKENS or is_blank(piece)

    kept: list[Piece] = []
    for piece in found:
        before = kept[-1] if kept and kept[-1].end == piece.start else None
        if before is not None and not (_fit(before, piece) or is_blank(before) or is_blank(piece)):
            before = None
        if before is not None and is_scrap(before):
            kept[-1] = replace(_sum(before, piece), titles=piece.titles or before.titles)
        elif before is not None and is_scrap(piece) and piece.kind != "heading":
            kept[-1] = replace(_sum(before, piece), titles=before.titles or piece.titles)
        else:
            kept.append(piece)
    return kept
