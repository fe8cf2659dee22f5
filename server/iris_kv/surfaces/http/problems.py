"""Errors as problem details (RFC 9457)."""

from __future__ import annotations

from collections.abc import Mapping
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
    "forbidden": 403,
    "corrupt": 500,
    "busy": 503,
    "unavailable": 503,
    "uncertain": 503,
}


def problem_response(
    error: IrisError, *, status: int | None = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """Return an error as a response.

    Args:
        error: What went wrong.
        status: The status where HTTP has a better one than the table; None: the table's.
        headers: More headers.
    """
    found = STATUSES[error.code] if status is None else status
    body = {"type": "about:blank", "title": error.code, "status": found, "detail": str(error), "code": error.code}
    return JSONResponse(body, found, headers, "application/problem+json")
