"""Answers lines that are no messages.

The SDK drops a line that does not parse, such as one with half a surrogate pair, which JavaScript
writes without complaint. The client that sent a request in it would wait for good.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Final, Protocol, Self, cast

import anyio
from mcp.shared.message import SessionMessage
from mcp.types import INVALID_REQUEST, PARSE_ERROR, ErrorData, JSONRPCError
from pydantic import ValidationError

_ALLOWED: Final = "a message is one line of JSON in UTF-8, without half surrogate pairs"


class Incoming(Protocol):
    """What comes from the client: messages, and errors for lines that are none."""

    async def receive(self) -> SessionMessage | Exception:
        """Return the next one."""
        ...

    async def aclose(self) -> None:
        """Close the stream."""
        ...


class Outgoing(Protocol):
    """What goes to the client."""

    async def send(self, item: SessionMessage, /) -> None:
        """Send a message."""
        ...


class AnsweredLines:
    """A stream of what comes from the client, where a request that does not parse is refused at once."""

    def __init__(self, incoming: Incoming, outgoing: Outgoing, on_end: Callable[[], None]) -> None:
        """Read from `incoming`, which this closes, refuse through `outgoing`, and tell `on_end` when nothing is left."""
        self._incoming = incoming
        self._outgoing = outgoing
        self._on_end = on_end

    async def receive(self) -> SessionMessage | Exception:
        """Return the next message or error."""
        item = await self._incoming.receive()
        if isinstance(item, ValidationError):
            refusal = _refusal(item)
            if refusal is not None:
                with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
                    await self._outgoing.send(SessionMessage(refusal))
        return item

    async def aclose(self) -> None:
        """Close the incoming stream."""
        await self._incoming.aclose()

    def __aiter__(self) -> Self:
        """Return itself."""
        return self

    async def __anext__(self) -> SessionMessage | Exception:
        """Return the next message or error."""
        try:
            return await self.receive()
        except anyio.EndOfStream:
            self._on_end()
            raise StopAsyncIteration from None

    async def __aenter__(self) -> Self:
        """Return itself."""
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        """Close the incoming stream."""
        await self.aclose()


def _refusal(error: ValidationError) -> JSONRPCError | None:
    """Return the answer to a line that is no message; None where it is no request, or its id is lost."""
    details = error.errors(include_url=False)
    known = [found for detail in details if (found := _request_id(detail["input"])) is not None]
    if not known:
        return None
    code, problem = INVALID_REQUEST, "the line is JSON, but no JSON-RPC 2.0 request"
    if details[0]["type"] == "json_invalid":
        code, problem = PARSE_ERROR, f"the line cannot be read: {details[0]['msg']}"
    text = f"invalid_argument: {problem}; {_ALLOWED}; mend it and send it again"
    return JSONRPCError(jsonrpc="2.0", id=known[0], error=ErrorData(code=code, message=text))


def _request_id(line: object) -> str | int | None:
    """Return the id of a request; Python's parser takes more than the SDK's, half surrogate pairs too."""
    message = line
    if isinstance(line, str):
        try:
            message = cast("object", json.loads(line))
        except (ValueError, RecursionError):
            return None
    if not isinstance(message, dict) or "method" not in message:
        return None
    request_id = cast("dict[str, object]", message).get("id")
    return request_id if isinstance(request_id, str | int) and not isinstance(request_id, bool) else None
