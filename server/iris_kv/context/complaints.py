"""What fails where nobody may notice: each kind is logged once, with its traceback."""

from __future__ import annotations

import logging

_log = logging.getLogger(__name__)


class Complaints:
    """Logs a kind of failure in full at its first time, and in a word afterwards."""

    def __init__(self) -> None:
        """Start with nothing said."""
        self._said: set[str] = set()

    def add(self, what: str, error: Exception) -> None:
        """Log that something failed; the traceback is that of the first of its kind."""
        kind = f"{what} ({type(error).__name__})"
        if kind in self._said:
            _log.debug("again: %s", kind)
            return
        self._said.add(kind)
        _log.warning("%s; the next ones are logged at debug only", kind, exc_info=error)
