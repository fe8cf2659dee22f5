"""Errors of ours as problem details (RFC 9457)."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

from starlette.responses import JSONResponse

from iris_kv.errors import Code, IrisError

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


def problem_response(
    error: IrisError, *, status: int | None = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """Return the answer for an error; `status` where HTTP has a nearer one than the table."""
    code = STATUSES[error.code] if status is None else status
    body = {"type": "about:blank", "title": HTTPStatus(code).phrase, "status": code}
    return JSONResponse(
        {**body, "code": error.code, "detail": str(error)}, code, headers, media_type="application/problem+json"
    )
