"""The line above a summary that says that it is one, so that a summary is not summarised again.

The line holds a checksum of what stands under it. A text that only looks like a summary, or one
that was edited, is a text like any other. Somebody who computes the checksum gains nothing but
that their own words are kept as they are, in their own role.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final, NamedTuple

_LINE: Final = re.compile(r"\[Summary of (?:an earlier message|([1-9][0-9]{0,8}) earlier messages), ([0-9a-f]{8})\]\n")


class Mark(NamedTuple):
    """A summary as it stands in a conversation."""

    messages: int
    """How many messages it stands for."""
    summary: str

    @property
    def text(self) -> str:
        """Return the summary under its line."""
        what = "an earlier message" if self.messages == 1 else f"{self.messages} earlier messages"
        return f"[Summary of {what}, {self._checksum}]\n{self.summary}"

    @property
    def _checksum(self) -> str:
        seen = f"{self.messages}\n{self.summary}".encode("utf-8", "surrogatepass")
        return hashlib.sha256(seen).hexdigest()[:8]


def mark_in(text: str) -> Mark | None:
    """Return the summary that a text is; None for any other text."""
    line = _LINE.match(text)
    if line is None:
        return None
    mark = Mark(int(line[1] or 1), text[line.end() :])
    return mark if mark.text == text else None
