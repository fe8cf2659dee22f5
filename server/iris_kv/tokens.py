"""Counting tokens: exact with the extra `tokens`, else an estimate that says so."""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable
from typing import Final, cast

ENCODING: Final = "o200k_base"
WORD_BYTES_PER_TOKEN: Final = 1.4
"""Without the tokenizer a cut assumes this behind the start of a word, and 1 everywhere else."""
ASSUMPTION: Final = (
    f"an assumed {WORD_BYTES_PER_TOKEN} bytes a token in words and 1 elsewhere, as no tokenizer is installed"
)

_PAIRING: Final = b"abcdefghilmnoprstuvwy"
"""Letters of which every pair is a token, as is each behind a space: two that are alone never stand side by side,
so n of them are at most (2n + 1) / 3 tokens. No such set has j, q, x or z, or both g and k."""
_KINDS: Final = bytes(97 if byte in _PAIRING else 32 if byte == 32 else 33 for byte in range(256))
"""Maps those letters to `a` and all else but the space to `!`."""

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
        kinds = text.encode("utf-8", "surrogatepass").translate(_KINDS)
        # A word starts at its space, if it has one; all behind that counts less than 1.
        behind = kinds.count(b"a") - kinds.count(b"!a") - kinds.startswith(b"a")
        return len(kinds) - behind + math.ceil(behind / WORD_BYTES_PER_TOKEN)

    def fitting(self, text: str, max_tokens: int) -> str:
        """Return a prefix that has at most `max_tokens` tokens; the longest, or at most two tokens short of it."""
        low, low_tokens, high, high_tokens = 0, 0, len(text), self.at_most(text)
        if high_tokens <= max_tokens:
            return text
        by_halves = False
        while high - low > 1 and low_tokens < max_tokens - 2:
            # A text is about equally dense throughout, so that a few looks are enough; halves where it is not.
            share = 0.5 if by_halves else (max_tokens - low_tokens) / (high_tokens - low_tokens)
            middle = min(max(low + int((high - low) * share), low + 1), high - 1)
            tokens = self.at_most(text[:middle])
            if tokens <= max_tokens:
                low, low_tokens = middle, tokens
            else:
                high, high_tokens = middle, tokens
            by_halves = not by_halves
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
