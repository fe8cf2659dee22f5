"""What the OpenAPI description says of answers: statuses, headers and problems, as dictionaries that FastAPI merges."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from iris_kv.surfaces.http.problems import MEDIA_TYPE, TYPES

Described = dict[str, Any]

_SCHEMAS: Final = "#/components/schemas/"
SANDBOX_PATTERN: Final = r"^[A-Za-z0-9_-]{1,64}$"
SANDBOX_MEANING: Final = "`default` where the server has one workspace."
_EVERYWHERE: Final = (400, 401, 403, 404, 422, 429, 500, 503)
PROBLEMS: Final[Mapping[str, Described]] = {
    "invalid_argument": {"status": 422, "description": "A parameter or the body is malformed."},
    "not_found": {"status": 404, "description": "No such sandbox or entry, or none that the token may touch."},
    "expired": {"status": 404, "description": "The entry was there, and its TTL has run out."},
    "conflict": {"status": 412, "description": "What is there is not what was to be found; nothing was changed."},
    "read_only": {"status": 409, "description": "`system` and `instructions` change as files only."},
    "forbidden": {"status": 403, "description": "The token lacks a right, or the cache is not to be trusted."},
    "unauthorized": {"status": 401, "description": "There is no token, or none that is valid."},
    "too_large": {"status": 413, "description": "The body is over the limit; nothing was changed."},
    "quota_exceeded": {"status": 507, "description": "The scope has no room; nothing was changed."},
    "unsupported_media_type": {"status": 415, "description": "The body is of no type that is taken here."},
    "method_not_allowed": {"status": 405, "description": "The path has other methods; `Allow` names them."},
    "range_not_satisfiable": {"status": 416, "description": "The range starts behind the last byte."},
    "too_many_requests": {
        "status": 429,
        "description": "The token asks too often; `Retry-After` says how long to wait.",
    },
    "corrupt": {"status": 500, "description": "Stored bytes do not match their digest, and are not served."},
    "internal": {"status": 500, "description": "A fault of the server, whose log says more."},
    "busy": {"status": 503, "description": "A lock was not to be had in time; try again."},
    "unavailable": {"status": 503, "description": "The cache cannot be opened or used now."},
    "uncertain": {"status": 503, "description": "Whether a write took place is not known; it is safe to repeat."},
}
"""Every code that an answer may have."""
_IN_URL: Final = "`invalid_argument`: there is a token in the URL, where logs keep it."

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
_HEADERS: Final = {401: _CHALLENGE, 429: _RETRY, 503: _RETRY}
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


def schemas_of(*models: type[BaseModel]) -> Described:
    """Return the schemas of models that FastAPI does not see, by name, with those that they refer to."""
    asked: list[tuple[type[BaseModel], Literal["validation"]]] = [(model, "validation") for model in models]
    return models_json_schema(asked, ref_template=_SCHEMAS + "{model}")[1]["$defs"]


def _problem(status: int) -> Described:
    schema = {"$ref": _SCHEMAS + "Problem"}
    found: Described = {
        "description": " ".join(
            f"`{code}`: {each['description']}" for code, each in PROBLEMS.items() if each["status"] == status
        )
        or _IN_URL,
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


def parameters(model: type[BaseModel], *headers: Described) -> Described:
    """Return the parameters of an operation on a sandbox whose query is a model, which FastAPI does not see."""
    described = model.model_json_schema(ref_template=_SCHEMAS + "{model}")
    query: list[Described] = [
        {
            "name": name,
            "in": "query",
            "required": name in described["required"],
            "description": schema.get("description", ""),
            "schema": schema,
        }
        for name, schema in described["properties"].items()
    ]
    schema = {"type": "string", "pattern": SANDBOX_PATTERN}
    sandbox = {"name": "sandbox", "in": "path", "required": True, "description": SANDBOX_MEANING, "schema": schema}
    return {"parameters": [sandbox, *query, *headers]}


def body(model: type[BaseModel], shown: object, **more: Described) -> Described:
    """Return a request body that is a model's JSON, or one of `more`, by media type."""
    content = {"application/json": {"schema": {"$ref": _SCHEMAS + model.__name__}, "example": shown}, **more}
    return {"requestBody": {"required": True, "content": content}}
