"""Globs over keys, matched in one pass whatever pattern and key are: no backtracking, no regular expression.

`*` stands for any text, `?` for one character, `[abc]`, `[a-z]` and `[!a-z]` for one of, or none of, some;
every other character for itself, and `[*]` for a star. All is compared character by character, `/` included.
The positions that a pattern may be at are the bits of one integer (Baeza-Yates and Gonnet, 1992).
"""

from __future__ import annotations

from typing import Final, NamedTuple

from iris_kv.errors import InvalidArgumentError

MAX_CHARS: Final = 512
MAX_SETS: Final = 16
"""Each set is looked at for each new character."""


class _Set(NamedTuple):
    """What stands between brackets."""

    ranges: tuple[tuple[str, str], ...]
    negated: bool

    def holds(self, char: str) -> bool:
        """Tell whether the set stands for a character."""
        return any(low <= char <= high for low, high in self.ranges) is not self.negated


class Glob:
    """A pattern, ready to be matched with many texts."""

    def __init__(self, pattern: str) -> None:
        """Parse a pattern.

        Raises:
            InvalidArgumentError: It is over 512 characters, or has over 16 sets in brackets.
        """
        self._any = 0
        self._loops = 0
        self._exact: dict[str, int] = {}
        self._sets: list[tuple[int, _Set]] = []
        self.prefix: Final = _literal_start(pattern)
        """What every text that matches starts with."""
        self._end = self._parse(pattern)
        if len(pattern) > MAX_CHARS or len(self._sets) > MAX_SETS:
            raise InvalidArgumentError(
                f"the pattern has {len(pattern)} characters and {len(self._sets)} sets in brackets",
                f"at most {MAX_CHARS} and {MAX_SETS}",
                "shorten it, or list by prefix and filter what comes",
            )
        self._steps: dict[str, int] = {}

    def _parse(self, pattern: str) -> int:
        """Note what each position takes; return the bit of the end."""
        bit, at = 1, 0
        while at < len(pattern):
            char, at = pattern[at], at + 1
            if char == "*":
                self._loops |= bit
                continue
            found = _set(pattern, at) if char == "[" else None
            if found is not None:
                at = found[1]
                self._sets.append((bit, found[0]))
            elif char == "?":
                self._any |= bit
            else:
                self._exact[char] = self._exact.get(char, 0) | bit
            bit <<= 1
        return bit

    def matches(self, text: str) -> bool:
        """Tell whether the pattern stands for the whole text."""
        at = 1
        for char in text:
            at = (at & self._step(char)) << 1 | at & self._loops
            if not at:
                return False
        return bool(at & self._end)

    def _step(self, char: str) -> int:
        """Return the positions that a character leads on from."""
        step = self._steps.get(char)
        if step is None:
            step = self._any | self._exact.get(char, 0)
            for bit, one_of in self._sets:
                step |= bit if one_of.holds(char) else 0
            self._steps[char] = step
        return step


def _literal_start(pattern: str) -> str:
    return pattern[: next((at for at, char in enumerate(pattern) if char in "*?["), len(pattern))]


def _set(pattern: str, at: int) -> tuple[_Set, int] | None:
    """Return the set that starts behind a bracket, and where it ends; None: the bracket is never closed."""
    negated = pattern.startswith("!", at)
    start = at + negated
    # A bracket that closes at once belongs to the set.
    end = pattern.find("]", start + 1)
    if end < 0:
        return None
    ranges: list[tuple[str, str]] = []
    inside = pattern[start:end]
    while inside:
        is_range = len(inside) > 2 and inside[1] == "-"
        ranges.append((inside[0], inside[2 if is_range else 0]))
        inside = inside[3 if is_range else 1 :]
    return _Set(tuple(ranges), negated), end + 1
