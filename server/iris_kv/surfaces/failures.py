"""How what goes wrong reaches an MCP client: as a tool's answer, or as an error of the protocol."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from mcp.shared.exceptions import MCPError
from mcp.types import INTERNAL_ERROR, INVALID_PARAMS, CallToolResult, TextContent

from iris_kv.errors import IrisError
from iris_kv.slices import DEFAULT_TOKENS, shortened
from iris_kv.tokens import TokenCounter

_MOST_BYTES: Final = 7_500
"""A token has at least one byte, so that the text of an error stays within the budget of an answer."""
_END_BYTES: Final = 1_000

_LEAST_TOKENS: Final = 200
"""An error takes this much, however small the budget: with less it would not say what to do."""

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


def failure(text: str, counter: TokenCounter, max_tokens: object = None) -> CallToolResult:
    """Return a tool's answer that says what went wrong, within the budget that was asked for, if it was one."""
    try:
        given = int(str(max_tokens).removesuffix(".0"))
    except ValueError:
        given = DEFAULT_TOKENS
    budget = min(max(given, _LEAST_TOKENS), DEFAULT_TOKENS)
    return CallToolResult(content=[TextContent(type="text", text=shortened(text, counter, budget))], is_error=True)


def unforeseen(what: str) -> str:
    """Return the text for an error that is nobody's fault but ours; the traceback is in the log."""
    return (
        f"unavailable: {what} failed in a way that was not foreseen; nothing acknowledged is lost;"
        " try again, and if it stays, look at `iris-kv doctor`"
    )


def invalid(text: str) -> MCPError:
    """Return the protocol's error for a request that cannot be right."""
    return MCPError(INVALID_PARAMS, _bounded(text))


async def translated(work: Callable[[], Awaitable[_T]], *, uri: str | None = None) -> _T:
    """Do some work whose errors become the protocol's."""
    try:
        return await work()
    except IrisError as error:
        raise protocol_error(error, uri) from None
    except MCPError:
        raise
    except Exception:
        _log.exception("a request failed")
        raise MCPError(INTERNAL_ERROR, unforeseen("the request")) from None


def protocol_error(error: IrisError, uri: str | None = None) -> MCPError:
    """Return the protocol's error for one of ours."""
    at_fault = ("invalid_argument", "not_found", "expired", "forbidden")
    data = {"code": error.code} if uri is None or len(uri) > _MOST_BYTES else {"code": error.code, "uri": uri}
    return MCPError(INVALID_PARAMS if error.code in at_fault else INTERNAL_ERROR, _bounded(str(error)), data)


def _bounded(text: str) -> str:
    """Return a text without the middle of what is very long, so that its end still says what to do."""
    raw = text.encode("utf-8", "replace")
    if len(raw) <= _MOST_BYTES:
        return text
    kept = raw[: _MOST_BYTES - _END_BYTES], raw[-_END_BYTES:]
    return " […] ".join(part.decode("utf-8", "ignore") for part in kept)
