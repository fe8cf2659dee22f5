"""The search of `list_instructions`: words of a task in, the best matching instructions out."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from iris_kv.instructions import Instruction, spaced_words

_MOST: Final = 10
_MOST_WORDS: Final = 32
_SECTIONS: Final = 3
_LEAST_SHARE: Final = 0.3
"""What scores less than this share of the best is noise: it has a common word or two."""
_WEIGHTS: Final = (3.0, 2.5, 2.0, 1.5)
"""How much a word counts in tag and name, in what is said of the instruction, in headings, in the text."""
_SHORT: Final = 3
"""A word of so many letters is looked for whole: `an` is not the start of `and`."""
_WORD: Final = re.compile(r"\w+")


class Match(NamedTuple):
    """An instruction that a query found."""

    instruction: Instruction
    sections: tuple[str, ...]
    """The slugs of the sections whose titles have words of the query."""


def best_matches(instructions: Sequence[Instruction], query: str) -> list[Match]:
    """Return the instructions that match a query best, best first; all for a query without a word.

    A word counts where a word starts with it, in any case; a plural counts as its singular. A rare
    word counts more than a common one (the logarithm of how rare it is, as in BM25), and in a tag
    or heading more than in the text. Reads every text at the first query: a second for 1,000 files.
    """
    words = list(dict.fromkeys(_stem(word) for word in _WORD.findall(query.casefold())))[:_MOST_WORDS]
    if not words:
        return [Match(instruction, ()) for instruction in instructions]
    found = [[_weight(instruction, word) for word in words] for instruction in instructions]
    rarity = [_rarity(len(instructions), sum(row[at] > 0 for row in found)) for at in range(len(words))]
    scores = [sum(map(operator.mul, row, rarity)) for row in found]
    least = max(scores, default=0) * _LEAST_SHARE
    ranked = sorted(range(len(scores)), key=lambda at: -scores[at])
    kept = [instructions[at] for at in ranked if scores[at] > 0 and scores[at] >= least]
    return [Match(instruction, _sections(instruction, words)) for instruction in kept[:_MOST]]


def _weight(instruction: Instruction, word: str) -> float:
    return next((w for w, text in zip(_WEIGHTS, instruction.searched, strict=True) if _is_in(word, text)), 0.0)


def _is_in(word: str, text: str) -> bool:
    if not word.isascii():
        # Scripts without spaces between words have no word starts to go by.
        return word in text
    return (f" {word}" if len(word) > _SHORT else f" {word} ") in text


def _rarity(total: int, having: int) -> float:
    return math.log(1 + (total - having + 0.5) / (having + 0.5))


def _stem(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def _sections(instruction: Instruction, words: Sequence[str]) -> tuple[str, ...]:
    titled = ((each.slug, spaced_words(each.title)) for each in instruction.sections)
    return tuple(slug for slug, title in titled if any(_is_in(word, title) for word in words))[:_SECTIONS]
