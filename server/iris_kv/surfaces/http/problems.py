"""Errors as problem details (RFC 9457): one table for the codes, and handlers for what FastAPI and Starlette raise."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from iris_kv.errors import Code, InvalidArgumentError, IrisError
from iris_kv.model import Frozen

MEDIA_TYPE: Final = "application/problem+json"
TYPES: Final = "/api/docs#problem-"
"""The type of a problem is this and its code: a place on the documentation page."""

STATUSES: Final[Mapping[Code, int]] = {
    "invalid_argument": 422,
    "not_found": 404,
    "expired": 404,
    "conflict": 412,
    "quota_exceeded": 507,
    "too_large": 413,
    "read_only": 409,
    "unauthorized": 401,
    "forbidden": 403,
    "corrupt": 500,
    "busy": 503,
    "unavailable": 503,
    "uncertain": 503,
}
_HTTP_CODES: Final[Mapping[int, str]] = {
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    413: "too_large",
    415: "unsupported_media_type",
    416: "range_not_satisfiable",
    429: "too_many_requests",
    500: "internal",
}
_NAMED: Final = 200
_RETRY_AFTER_S: Final = "1"


class Problem(Frozen):
    """What went wrong, for a program (`code`), a person or a model."""

    type: str
    """Where the documentation tells of problems of this code; a relative reference."""
    title: str
    """The same for every problem of this code."""
    status: int
    """The HTTP status."""
    detail: str
    """`code: what was wrong; what is allowed; what to do next`."""
    code: str
    wrong: str
    allowed: str
    todo: str


def problem_response(
    error: IrisError, *, status: int | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """Return an error of ours as a response; `status` stands in for that of its code."""
    return problem(status or STATUSES[error.code], error.code, (error.wrong, error.allowed, error.todo), headers)


def problem(status: int, code: str, text: tuple[str, str, str], headers: Mapping[str, str] | None = None) -> Response:
    """Return a problem as a response; the text says what was wrong, what is allowed, and what to do next."""
    wrong, allowed, todo = map(_printable, text)
    found = Problem(
        type=TYPES + code,
        title=code.replace("_", " ").capitalize(),
        status=status,
        detail=f"{code}: {wrong}; {allowed}; {todo}",
        code=code,
        wrong=wrong,
        allowed=allowed,
        todo=todo,
    )
    retry = {"Retry-After": _RETRY_AFTER_S} if status == HTTPStatus.SERVICE_UNAVAILABLE else {}
    return Response(
        found.model_dump_json(),
        status,
        {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", **retry, **(headers or {})},
        MEDIA_TYPE,
    )


def _printable(text: str) -> str:
    # A lone surrogate in what a caller sent cannot be written down.
    return text.encode(errors="replace").decode()


def install_problems(app: FastAPI) -> None:
    """Have every error of an application answered as a problem."""
    app.add_exception_handler(IrisError, _of_ours)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _of_http)
    app.add_exception_handler(Exception, _unforeseen)


async def _of_ours(_: Request, error: Exception) -> Response:
    if not isinstance(error, IrisError):
        raise error
    return problem_response(error)


async def _invalid(request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    return problem_response(invalid_arguments(error.errors(), _parameters(request)))


def invalid_arguments(errors: Sequence[Any], known: Sequence[str]) -> InvalidArgumentError:
    """Return pydantic's first complaint as an error that a model can act on; `known` names the arguments."""
    first = errors[0]
    name = ".".join(str(each) for each in first["loc"] if each not in ("query", "path", "header"))[:_NAMED]
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    allowed = f"the arguments are {', '.join(known)}" if known else "there are no arguments"
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, known, 1, 0.0)
        todo = f"did you mean {near[0]!r}?" if near else "leave it out"
        return InvalidArgumentError(f"unknown argument {name!r}{more}", allowed, todo)
    if first["type"] == "missing":
        return InvalidArgumentError(f"the argument {name!r} is missing{more}", allowed, "add it")
    said = f"{name or 'the body'} is {first.get('input')!r:.{_NAMED}}"
    return InvalidArgumentError(f"{said}: {first['msg']}{more}", allowed, "mend it; /api/docs describes each")


def _parameters(request: Request) -> list[str]:
    """Return the names of the query's parameters of the operation that a request asks for."""
    path = getattr(request.scope.get("route"), "path", "")
    operation = request.app.openapi()["paths"].get(path, {}).get(request.method.lower(), {})
    return [each["name"] for each in operation.get("parameters", ()) if each["in"] == "query"]


async def _of_http(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    status, path = error.status_code, request.url.path[:_NAMED]
    if status == HTTPStatus.NOT_FOUND:
        text = f"there is nothing at {path!r}", "/api/openapi.json lists what there is", "mend the path"
    elif status == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = (error.headers or {}).get("Allow", "others")
        text = f"{request.method[:20]} at {path!r}", f"allowed are {allowed}", "take one of them"
    else:
        text = str(error.detail), "/api/openapi.json describes the operation", "mend the request"
    code = _HTTP_CODES.get(status, HTTPStatus(status).phrase.lower().replace(" ", "_"))
    return problem(status, code, text, error.headers)


async def _unforeseen(_: Request, __: Exception) -> Response:
    """Answer what nobody foresaw; it is raised again behind this, and logged with its traceback."""
    return problem(500, "internal", ("the server failed", "its log says why", "try again, or tell who runs it"))
