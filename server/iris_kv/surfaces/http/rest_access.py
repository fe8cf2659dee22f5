"""What every operation of the REST API begins with: a query that is unambiguous, a right, and a visit."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager
from enum import Enum
from typing import Annotated, Any, Final, TypeVar, cast
from urllib.parse import parse_qsl, unquote_to_bytes

from fastapi import APIRouter, Depends, Path, Request
from pydantic import BaseModel, ValidationError

from iris_kv.errors import InvalidArgumentError
from iris_kv.policy import Principal, Right, check_right
from iris_kv.surfaces.http.platform import Platform
from iris_kv.surfaces.http.problems import invalid_arguments
from iris_kv.surfaces.http.rest_answers import SANDBOX_MEANING, SANDBOX_PATTERN, operation_id
from iris_kv.surfaces.visits import Visit

SandboxId = Annotated[
    str,
    Path(pattern=SANDBOX_PATTERN, description=SANDBOX_MEANING),
]

CACHE_PATH: Final = "/api/sandboxes/{sandbox}/kv-cache"
_M = TypeVar("_M", bound=BaseModel)

_ESCAPED: Final = re.compile(rb"(?:[!-$&-~]|%[0-9A-Fa-f]{2})*+")


def principal_of(request: Request) -> Principal:
    """Return on whose behalf a request comes."""
    return cast("Principal", request.state.principal)


def platform_of(request: Request) -> Platform:
    """Return the platform that an application serves."""
    return cast("Platform", request.app.state.platform)


def query_of(request: Request) -> dict[str, str]:
    """Return the parameters of a request's query.

    Raises:
        InvalidArgumentError: One comes twice, or the text is not UTF-8 in percent-encoding.
    """
    raw = cast("bytes", request.scope["query_string"])
    try:
        text = unquote_to_bytes(raw).decode()
    except UnicodeDecodeError:
        text = None
    if text is None or _ESCAPED.fullmatch(raw) is None:
        raise InvalidArgumentError(
            "the query is not percent-encoded UTF-8",
            "each byte that is not a printable ASCII character is written %XX, and % itself %25",
            "encode keys with a function such as encodeURIComponent or urllib.parse.quote",
        )
    pairs = parse_qsl(raw.decode(), keep_blank_values=True)
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, times in Counter(name for name, _ in pairs).items() if times > 1)
        raise InvalidArgumentError(f"the parameter {twice[:80]!r} comes twice", "each comes once", "send it once")
    return found


async def unambiguous_query(request: Request) -> None:  # FastAPI runs plain functions in threads
    """Refuse a query that two programs may read differently; see `query_of`."""
    query_of(request)


def asked(request: Request, model: type[_M]) -> _M:
    """Return the parameters of a request's query as a model, without FastAPI, which takes as long as the store.

    Raises:
        InvalidArgumentError: They are not this model's, or ambiguous.
    """
    try:
        return model.model_validate(query_of(request))
    except ValidationError as error:
        raise invalid_arguments(error.errors(include_url=False), list(model.model_fields)) from None


def visited(request: Request, right: Right, what: str) -> AbstractAsyncContextManager[Visit]:
    """Open the sandbox that a request's path names, for a token with a right; `what` says what needs it."""
    principal = principal_of(request)
    check_right(principal, right, what)
    return platform_of(request).visit(principal, request.path_params["sandbox"])


def cache_router(*tags: Enum | str) -> APIRouter:
    """Return a router for operations on the cache of a sandbox; `asked` or `unambiguous_query` checks the query."""
    return APIRouter(prefix=CACHE_PATH, tags=list(tags), generate_unique_id_function=operation_id)


def _visiting(right: Right, what: str) -> Any:
    """Return the dependency that opens the sandbox of a request, for a token with a right; `what` names what it does."""

    async def visit(request: Request, sandbox: SandboxId) -> AsyncGenerator[Visit]:
        del sandbox  # declared for the description
        async with visited(request, right, what) as found:
            yield found

    return Depends(visit)


Reading = Annotated[Visit, _visiting("kv:read", "reading")]
Restoring = Annotated[Visit, _visiting("kv:write", "restoring")]
Administering = Annotated[Visit, _visiting("kv:admin", "administration")]
