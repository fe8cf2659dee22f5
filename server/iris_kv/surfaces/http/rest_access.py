"""What every operation of the REST API begins with: a query that is unambiguous, a right, and a visit."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import AsyncGenerator
from enum import Enum
from typing import Annotated, Any, Final, cast
from urllib.parse import parse_qsl, unquote_to_bytes

from fastapi import APIRouter, Depends, Path, Request

from iris_kv.errors import InvalidArgumentError
from iris_kv.policy import Principal, Right, check_right
from iris_kv.surfaces.http.platform import Platform
from iris_kv.surfaces.http.rest_answers import operation_id
from iris_kv.surfaces.visits import Visit

SandboxId = Annotated[
    str,
    Path(pattern=r"^[A-Za-z0-9_-]{1,64}$", description="`default` where the server has one workspace."),
]

_ESCAPED: Final = re.compile(rb"(?:[!-$&-~]|%[0-9A-Fa-f]{2})*+")


def principal_of(request: Request) -> Principal:
    """Return on whose behalf a request comes."""
    return cast("Principal", request.state.principal)


def platform_of(request: Request) -> Platform:
    """Return the platform that an application serves."""
    return cast("Platform", request.app.state.platform)


def unambiguous_query(request: Request) -> None:
    """Refuse a query that two programs may read differently.

    Raises:
        InvalidArgumentError: A parameter comes twice, or the text is not UTF-8 in percent-encoding.
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
    names = [name for name, _ in parse_qsl(raw.decode(), keep_blank_values=True)]
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise InvalidArgumentError(f"the parameter {twice[0][:80]!r} comes twice", "each comes once", "send it once")


def cache_router(*tags: Enum | str) -> APIRouter:
    """Return a router for operations on the cache of a sandbox."""
    return APIRouter(
        prefix="/api/sandboxes/{sandbox}/kv-cache",
        tags=list(tags),
        dependencies=[Depends(unambiguous_query)],
        generate_unique_id_function=operation_id,
    )


def _visiting(right: Right, what: str) -> Any:
    """Return the dependency that opens the sandbox of a request, for a token with a right; `what` names what it does."""

    async def visit(request: Request, sandbox: SandboxId) -> AsyncGenerator[Visit]:
        principal = principal_of(request)
        check_right(principal, right, what)
        async with platform_of(request).visit(principal, sandbox) as found:
            yield found

    return Depends(visit)


Reading = Annotated[Visit, _visiting("kv:read", "reading")]
Writing = Annotated[Visit, _visiting("kv:write", "writing and deleting")]
Administering = Annotated[Visit, _visiting("kv:admin", "administration")]
