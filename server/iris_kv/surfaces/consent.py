"""Asking the user before something is lost, in both eras of the protocol.

Until 2025-11-25 the server asks while the call runs. From 2026-07-28 on, the call answers that
input is required, and the client calls again with what the user said.
"""

from __future__ import annotations

from typing import Any, Final

import anyio
from mcp.server import ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp.types import (
    CallToolRequestParams,
    ElicitRequest,
    ElicitRequestFormParams,
    ElicitResult,
    InputRequiredResult,
)
from mcp.types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import ValidationError

from iris_kv.errors import ForbiddenError, InvalidArgumentError
from iris_kv.surfaces.arguments import CacheClear

ANSWER_S: Final = 300.0
"""How long is waited for the user: a client that left meanwhile does not say so."""

_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {"delete": {"type": "boolean", "title": "Delete all entries of this scope"}},
    "required": ["delete"],
}


async def consent_to_clear(
    context: ServerRequestContext[Any, Any], params: CallToolRequestParams, wanted: CacheClear, undo_hours: float
) -> InputRequiredResult | None:
    """Return None once the user agreed, or what the client must ask first; `undo_hours` 0: it cannot be undone.

    Raises:
        InvalidArgumentError: The client cannot ask, and `confirm` was not given.
        ForbiddenError: The user did not agree.
    """
    if not _can_ask(context):
        if wanted.confirm:
            return None
        raise InvalidArgumentError(
            f"clearing {wanted.scope} deletes all its entries and was not confirmed",
            "this client cannot ask the user, so confirm must be true",
            "ask the user, and if they agree call cache_clear again with confirm=true",
        )
    undo = f"Each can be restored for {undo_hours:g} hours." if undo_hours else "This cannot be undone."
    question = f"Delete every entry of the scope {wanted.scope!r} of this workspace's cache? {undo}"
    form = ElicitRequestFormParams(message=question, requested_schema=_SCHEMA)
    if context.protocol_version not in MODERN_PROTOCOL_VERSIONS:
        _check_agreed(await _asked(context, question), wanted)
        return None
    # The key binds the answer to the scope that the user was asked about.
    key = f"clear-{wanted.scope}"
    answer = (params.input_responses or {}).get(key)
    if not isinstance(answer, ElicitResult):
        return InputRequiredResult(input_requests={key: ElicitRequest(params=form)})
    _check_agreed(answer, wanted)
    return None


async def _asked(context: ServerRequestContext[Any, Any], question: str) -> ElicitResult:
    try:
        with anyio.fail_after(ANSWER_S):
            return await context.session.elicit_form(question, _SCHEMA, context.request_id)
    except TimeoutError:
        raise ForbiddenError(
            f"the user did not answer within {ANSWER_S:g} s", "nothing was deleted", "call it again once they are there"
        ) from None
    except (MCPError, ValidationError) as error:
        raise ForbiddenError(
            f"the client did not ask the user ({error})", "nothing was deleted", "ask the user in another way"
        ) from None


def _can_ask(context: ServerRequestContext[Any, Any]) -> bool:
    capabilities = context.session.client_capabilities
    elicitation = None if capabilities is None else capabilities.elicitation
    # A bare `elicitation: {}`, the shape before there were modes, means forms.
    return elicitation is not None and (elicitation.form is not None or elicitation.url is None)


def _check_agreed(answer: ElicitResult, wanted: CacheClear) -> None:
    if answer.action == "accept" and answer.content is not None and answer.content.get("delete") is True:
        return
    raise ForbiddenError(
        f"the user did not agree to clear {wanted.scope}", "nothing was deleted", "go on without clearing it"
    )
