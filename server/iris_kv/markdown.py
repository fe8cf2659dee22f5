"""Markdown taken apart into its top-level blocks, by bytes."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

NEWLINE: Final = re.compile(rb"\r\n?|\n")
"""What ends a line for markdown-it, and nothing else does."""


class Block(NamedTuple):
    """A heading, paragraph, list, fence, table ... with the blank lines behind it."""

    kind: str
    """`heading`, `paragraph`, `bullet_list`, `ordered_list`, `fence`, `code_block`, `table` ..."""
    start: int
    """Where its first line starts, in bytes; 0 for the first block."""
    end: int
    """Where the next block starts, or the text ends."""
    level: int = 0
    """1 to 6 for a heading."""
    title: str = ""
    """A heading's Markdown on one line, without its marks."""
    items: tuple[int, ...] = ()
    """Where the items of a list start."""


def blocks(text: bytes) -> list[Block]:
    """Return the top-level blocks of a UTF-8 text, which they cover without a gap: 2 ms for 8 KB.

    There are none in a text of blank lines and link definitions. What stands inside a list, quote,
    fence or table is part of it. Some seconds for 1 MB.
    """
    # Imported at the first use: it takes 70 ms, and a server starts without it.
    from markdown_it import MarkdownIt  # noqa: PLC0415

    lines = [0, *(match.end() for match in NEWLINE.finditer(text))]
    # A parser for each call: it fills its rule tables at the first use without a lock, and a new one takes 0.15 ms.
    tokens = MarkdownIt("commonmark").enable("table").disable("inline").parse(text.decode())
    found: list[Block] = []
    items: dict[int, list[int]] = {}
    for number, token in enumerate(tokens):
        if token.level == 0 and token.nesting >= 0 and token.map is not None:
            kind = token.type.removesuffix("_open")
            start = lines[token.map[0]]
            if kind == "heading":
                title = " ".join(tokens[number + 1].content.split())
                found.append(Block(kind, start, len(text), int(token.tag[1:]), title))
            else:
                found.append(Block(kind, start, len(text)))
        elif token.level == 1 and token.type == "list_item_open" and token.map is not None:
            items.setdefault(len(found) - 1, []).append(lines[token.map[0]])
    starts = [0, *(block.start for block in found[1:]), len(text)]
    return [
        block._replace(start=starts[at], end=starts[at + 1], items=tuple(items.get(at, ())))
        for at, block in enumerate(found)
    ]
