"""What the OpenAPI description says of answers: statuses, headers and problems, as dictionaries that FastAPI merges."""

from __future__ import annotations

from typing import Any, Final

from fastapi.routing import APIRoute
from pydantic import BaseModel

from iris_kv.surfaces.http.problems import MEDIA_TYPE, TYPES

Described = dict[str, Any]

_EVERYWHERE: Final = (401, 403, 404, 422, 429, 500, 503)
_MEANINGS: Final = {
    401: "`unauthorized`: no token, or one that is not valid.",
    403: "`forbidden`: the token lacks the right that the operation needs.",
    404: "`not_found` or `expired`: no such sandbox or entry, or its TTL has run out.",
    409: "`read_only`: the scopes `system` and `instructions` change as files only.",
    412: "`conflict`: what is there is not what the request was to find; nothing was changed.",
    413: "`too_large`: the body is over the limit; nothing was changed.",
    415: "`unsupported_media_type`: the body is of no type that is taken here.",
    416: "`range_not_satisfiable`: the range starts behind the last byte.",
    422: "`invalid_argument`: a parameter or the body is malformed.",
    429: "`too_many_requests`: this token asks too often.",
    500: "`corrupt`: stored bytes do not match their digest and are not served. `internal`: a fault of the server.",
    503: "`busy`, `unavailable` or `uncertain`: try again; a write is safe to repeat.",
    507: "`quota_exceeded`: the scope has no room; nothing was changed.",
}
_EXAMPLE: Final = {
    "type": TYPES + "not_found",
    "title": "Not found",
    "status": 404,
    "detail": "not_found: no entry 'report' in artifacts; keys are compared byte for byte; "
    "list the keys of artifacts and take one of them",
    "code": "not_found",
    "wrong": "no entry 'report' in artifacts",
    "allowed": "keys are compared byte for byte",
    "todo": "list the keys of artifacts and take one of them",
}
DIGEST: Final = "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
ETAG: Final = {"ETag": {"description": "The digest of the value, in quotes.", "schema": {"type": "string"}}}
LOCATION: Final = {"Location": {"description": "Where it can be read.", "schema": {"type": "string"}}}
_RETRY: Final = {"Retry-After": {"description": "Seconds.", "schema": {"type": "string"}}}
_CHALLENGE: Final = {"WWW-Authenticate": {"description": "How to authenticate.", "schema": {"type": "string"}}}
_HEADERS: Final = {401: _CHALLENGE, 503: _RETRY}
ENTRY: Final = {
    "scope": "artifacts",
    "key": "report",
    "digest": DIGEST,
    "size": 5,
    "content_type": "text/plain",
    "created_at": "2026-01-01T00:00:00.000Z",
    "updated_at": "2026-01-01T00:00:00.000Z",
    "expires_at": "2026-01-15T00:00:00.000Z",
    "ttl_ms": 1_209_600_000,
    "version": 1,
    "metadata": {"kind": "note"},
    "provenance": {"author": "user", "face": "rest"},
}


def operation_id(route: APIRoute) -> str:
    """Return the name of an operation for clients that are made from the description."""
    return route.name


def answers(*statuses: int) -> dict[int | str, Described]:
    """Return the problems that an operation may answer with: some of its own, and those of every operation."""
    return {status: _problem(status) for status in sorted({*statuses, *_EVERYWHERE})}


def _problem(status: int) -> Described:
    schema = {"$ref": "#/components/schemas/Problem"}
    found: Described = {
        "description": _MEANINGS[status],
        "content": {MEDIA_TYPE: {"schema": schema, **({"example": _EXAMPLE} if status == 404 else {})}},
    }
    return found | ({"headers": _HEADERS[status]} if status in _HEADERS else {})


def example(value: object) -> Described:
    """Return the content of a JSON answer that has an example."""
    return {"content": {"application/json": {"example": value}}}


def header(name: str, description: str, shown: str) -> Described:
    """Return an optional request header as a parameter."""
    schema = {"type": "string", "examples": [shown]}
    return {"name": name, "in": "header", "required": False, "description": description, "schema": schema}


def body(model: type[BaseModel], shown: object, **more: Described) -> Described:
    """Return a request body that is a model's JSON, or one of `more`, by media type."""
    content = {"application/json": {"schema": model.model_json_schema(), "example": shown}, **more}
    return {"requestBody": {"required": True, "content": content}}
