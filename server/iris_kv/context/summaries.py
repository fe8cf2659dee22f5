"""Summaries, stored ones first, and one call of the summarizer at a time for each message."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import anyio

from iris_kv.context.complaints import Complaints
from iris_kv.context.flights import Flights
from iris_kv.context.shelf import Shelf, Wanted
from iris_kv.errors import IrisError, UnavailableError


class Summarizer(Protocol):
    """Makes summaries: any async function from text to text; `OpenAISummarizer` asks a language model."""

    async def __call__(self, text: str, /) -> str:
        """Return a summary of the text; an exception or an empty answer is a failure."""
        ...


class Summary(NamedTuple):
    """A summary, or why there is none."""

    text: str | None
    error: Exception | None
    is_hit: bool
    """Whether it was there already, or on its way for somebody else."""

    def text_or_raise(self) -> str:
        """Return the text.

        Raises:
            IrisError: The summarizer failed; its own error is the cause.
        """
        if self.text is None:
            # Several callers may wait for one failure; each raises an exception of its own.
            raise _told(self.error) from self.error
        return self.text


class Summaries:
    """Gives summaries of messages."""

    def __init__(self, summarizer: Summarizer, timeout_s: float, complaints: Complaints) -> None:
        """Make what is not stored with a summarizer; `timeout_s` bounds each call of it."""
        self._summarizer = summarizer
        self._timeout_s = timeout_s
        self._complaints = complaints
        self._flights = Flights[Summary]()

    async def get(self, wanted: Wanted, shelf: Shelf) -> Summary:
        """Return a summary from the shelf, else a new one, which is put there; failures are not kept."""
        landed = await self._flights.share((wanted.key, wanted.digest), lambda: self._got(wanted, shelf))
        summary = landed.value
        return summary._replace(is_hit=summary.is_hit or (summary.error is None and not landed.is_own))

    async def _got(self, wanted: Wanted, shelf: Shelf) -> Summary:
        stored = await shelf.read(wanted)
        if stored is not None:
            return Summary(stored, None, is_hit=True)
        try:
            with anyio.fail_after(self._timeout_s):
                made = _checked(await self._summarizer(wanted.text))
        except Exception as error:
            self._complaints.add("a summary could not be made, and the message stays whole", error)
            return Summary(None, error, is_hit=False)
        await shelf.write(wanted, made)
        return Summary(made, None, is_hit=False)


def _checked(answer: object) -> str:
    if isinstance(answer, str) and answer.strip():
        # Half a surrogate pair can be stored nowhere, and the first answer is that of all later ones.
        return answer.encode("utf-8", "replace").decode()
    found = "an empty text" if isinstance(answer, str) else f"a {type(answer).__name__}"
    raise UnavailableError(f"the summarizer answered {found}", "a summary is a text that is not empty", "mend it")


def _told(error: Exception | None) -> IrisError:
    if isinstance(error, IrisError):
        return type(error)(error.wrong, error.allowed, error.todo)
    if isinstance(error, TimeoutError):
        wrong = "the summarizer gave no answer in time"
    else:
        wrong = f"the summarizer failed with {type(error).__name__}"
    return UnavailableError(wrong, "failures are not kept", "see the cause, mend the summarizer and try again")
