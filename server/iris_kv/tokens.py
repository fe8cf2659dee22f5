"""Counting tokens: exact with the extra `tokens`, else an estimate that says so."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from typing import Final, cast

ENCODING: Final = "o200k_base"
WORST_BYTES_PER_TOKEN: Final = 1.4
"""Without the tokenizer a cut assumes this, so that dense text stays within its budget too."""

_PIECE: Final = re.compile(r"[A-Za-z]+|[0-9]+|[^\W\d_]+|[ \t]+|\n+|[^\s]|\s")


class TokenCounter:
    """Count tokens of text in the encoding o200k_base.

    With the extra `tokens` (toktok-rs) the counts are exact. Without it they are estimates:
    `exact` is False, counts shown to people are marked with `~`, and `fitting` is careful.
    """

    def __init__(self, *, exact: bool = True) -> None:
        """Use the tokenizer if it is installed; with `exact` False, estimate in any case."""
        self._toktok = _load_toktok() if exact else None

    @property
    def exact(self) -> bool:
        """Whether the counts are those of the real tokenizer."""
        return self._toktok is not None

    def count(self, text: str) -> int:
        """Return how many tokens the text has; without the tokenizer, an estimate."""
        if self._toktok is not None:
            return self._toktok([text], ENCODING)[0]
        return estimate(text)

    def shown(self, text: str) -> str:
        """Return the count as people and models see it: `812`, or `~800` where it is an estimate."""
        return str(self.count(text)) if self.exact else f"~{self.count(text)}"

    def at_most(self, text: str) -> int:
        """Return a number of tokens that the text does not exceed, whatever it is made of."""
        if self.exact:
            return self.count(text)
        return int(len(text.encode("utf-8", "surrogatepass")) / WORST_BYTES_PER_TOKEN) + 1

    def fitting(self, text: str, max_tokens: int) -> str:
        """Return the longest prefix found that has at most `max_tokens` tokens."""
        if self.at_most(text) <= max_tokens:
            return text
        low, high = 0, len(text)
        while low < high:
            middle = (low + high + 1) // 2
            if self.at_most(text[:middle]) <= max_tokens:
                low = middle
            else:
                high = middle - 1
        return text[:low]

    def warm_up(self) -> None:
        """Load the vocabulary now, which takes 0.3 s of one thread, so that no answer waits for it."""
        self.count("")


def estimate(text: str) -> int:
    """Return about how many tokens a text has, without a tokenizer: the same in every process.

    Rather too many than too few: 1 to 1.3 times the real count over prose, Markdown and code.
    """
    return round(sum(map(_piece_tokens, _PIECE.findall(text))))


def _piece_tokens(piece: str) -> float:
    if not piece.isascii():
        return len(piece.encode("utf-8", "surrogatepass")) / 2.2
    if piece.isalpha():
        return (len(piece) + 6) // 7
    if piece.isdigit():
        return (len(piece) + 2) // 3
    if piece.isspace():
        return 0 if piece == " " else (len(piece) + 15) // 16
    return 0.75


def _load_toktok() -> Callable[[list[str], str], list[int]] | None:
    try:
        module = importlib.import_module("toktok")
    except ImportError:
        return None
    return cast("Callable[[list[str], str], list[int]]", module.batch_count)
