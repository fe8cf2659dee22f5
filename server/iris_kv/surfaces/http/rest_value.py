"""REST on one value: read it, whole or in part, write it, delete it."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any, Final
from urllib.parse import urlencode

from fastapi import Request
from fastapi.routing import APIRoute
from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as AsgiScope

from iris_kv.errors import InvalidArgumentError
from iris_kv.json_text import JSON
from iris_kv.model import EntryInfo, Frozen, Scope
from iris_kv.settings import Hours
from iris_kv.store.base import Reader
from iris_kv.surfaces.http.problems import problem
from iris_kv.surfaces.http.rest_access import CACHE_PATH, asked, cache_router, visited
from iris_kv.surfaces.http.rest_answers import (
    ENTRY,
    ETAG,
    LOCATION,
    Described,
    answers,
    body,
    example,
    header,
    parameters,
)
from iris_kv.surfaces.http.rest_bodies import (
    NewValue,
    announced_size,
    chunks_of,
    declared_type,
    essence,
    is_small,
    json_body,
    metadata_of,
    whole_body,
)
from iris_kv.surfaces.http.rest_conditions import (
    Span,
    UnsatisfiableError,
    asked_span,
    etag,
    expected_digest,
    is_unchanged,
)
from iris_kv.surfaces.visits import Visit
from iris_kv.workspace import Workspace

_PATH: Final = re.compile(f"{CACHE_PATH}/value".replace("{sandbox}", "(?P<sandbox>[^/]+)"))
_CHUNK: Final = 1 << 17
_RAW: Final = "; or, to store the JSON body itself, add raw=true to the query"
_ENTRY_CHARS: Final = 4_096
_SAFE: Final = {
    "X-Content-Type-Options": "nosniff",
    "Content-Disposition": "attachment",
    "Content-Security-Policy": "sandbox; default-src 'none'",
}
"""So that a stored page can never run as one of the API's own."""

router = cache_router("values")


class Address(Frozen):
    """Which entry."""

    scope: Scope
    key: str = Field(
        min_length=1,
        max_length=512,
        description="1 to 512 bytes of UTF-8 without control characters; no path, and compared byte for byte.",
        examples=["report"],
        json_schema_extra={"pattern": r"^[^\u0000-\u001f\u007f-\u009f]+$"},
    )


class Deleted(EntryInfo):
    """What was deleted."""

    undo: str | None = Field(
        description="How it can be undone; null: not at all.", examples=["POST restore, for 24 hours"]
    )


class WriteAddress(Address):
    """Which entry, and what a raw body does not say of it."""

    raw: bool = Field(default=False, description="The body is the value, even where it is declared application/json.")
    ttl_hours: Hours | None = Field(None, description="Of a raw body. Left out: the scope's default.", examples=[24])
    metadata: str | None = Field(
        None, description="Of a raw body: a JSON object of strings.", examples=['{"kind":"note"}']
    )


class _ValueResponse(Response):
    """Some bytes of an open value, a chunk at a time."""

    def __init__(self, reader: Reader, span: Span, status: int, headers: dict[str, str]) -> None:
        self._reader = reader
        self._span = span
        super().__init__(None, status, headers)

    def init_headers(self, headers: dict[str, str] | None = None) -> None:  # type: ignore[override]
        super().init_headers({"Content-Length": str(self._span.end - self._span.start), **(headers or {})})

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        del scope, receive
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        at, end = self._span
        while at < end:
            chunk = await self._reader.read(at, min(_CHUNK, end - at))
            if not chunk:
                raise OSError("the value's file was cut off while it was read")
            at += len(chunk)
            await send({"type": "http.response.body", "body": chunk, "more_body": at < end})
        if self._span.start == end:
            await send({"type": "http.response.body"})


class _KeptResponse(Response):
    """A response that is made and sent while what it needs is open."""

    def __init__(self, answer: AbstractAsyncContextManager[Response]) -> None:
        self._answer = answer
        super().__init__()

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        async with self._answer as response:
            await response(scope, receive, send)


def _value_headers(info: EntryInfo) -> dict[str, str]:
    """Return all that is known of an entry as headers; they are ASCII whatever its key and metadata are."""
    entry = _ascii(info.model_dump_json(ensure_ascii=True))
    if len(entry) > _ENTRY_CHARS:
        entry = _ascii(info.model_dump_json(ensure_ascii=True, exclude={"metadata"}))
    return {
        "Content-Type": info.content_type,
        "ETag": etag(info),
        "Cache-Control": "private, no-cache",
        "Accept-Ranges": "bytes",
        "Iris-Kv-Entry": entry,
        **_SAFE,
    }


def _ascii(json_text: str) -> str:
    """Return JSON that may stand in a header: the one control character that JSON leaves as it is, escaped."""
    return json_text.replace("\x7f", "\\u007f")


def _text(description: str) -> Described:
    return {"description": description, "schema": {"type": "string"}}


_VALUE_HEADERS: Final = {
    **ETAG,
    "Accept-Ranges": _text("`bytes`."),
    "Content-Disposition": _text("`attachment`: a stored page is never shown as one of the API's."),
    "Iris-Kv-Entry": _text(
        "The entry as `GET keys` has it, as JSON in ASCII; without its metadata where it is over 4,096 characters."
    ),
}
_BYTES: Final[Described] = {"*/*": {"schema": {}}}
_IF_NONE_MATCH: Final = header("If-None-Match", "304 where the ETag is still this one.", '"sha256:…"')
_IF_MATCH: Final = header("If-Match", "Only over the entry with this ETag; `*`: only over an entry.", '"sha256:…"')


def _value_answers(ok: str) -> dict[int | str, Described]:
    """Return the answers of a read; `ok` describes the whole value."""
    unchanged = {"description": "The client has this value already.", "headers": ETAG}
    return {200: {"description": ok, "headers": _VALUE_HEADERS}, 304: unchanged}


@router.get(
    "/value",
    summary="Read a value",
    response_class=Response,
    responses={
        **_value_answers("The value, byte for byte, verified whole before its first byte is sent."),
        200: {
            **_value_answers("The value, byte for byte, verified whole before its first byte is sent.")[200],
            "content": _BYTES,
        },
        206: {
            "description": "Some of its bytes.",
            "headers": {**_VALUE_HEADERS, "Content-Range": _text("Which.")},
            "content": _BYTES,
        },
        **answers(416),
    },
    openapi_extra=parameters(
        Address,
        _IF_NONE_MATCH,
        header("Range", "One range of bytes; several are answered with all bytes.", "bytes=0-99"),
        header("If-Range", "The range only where the ETag is this one, else all bytes.", '"sha256:…"'),
    ),
)
async def get_value(request: Request) -> Response:  # FastAPI runs plain functions in threads
    """Return a value's bytes with its own content type; what is known of it stands in headers.

    A read renews the TTL of entries in `task` and `artifacts`, also one that is answered with 304.
    """
    return _KeptResponse(_read(request, asked(request, Address)))


@asynccontextmanager
async def _read(request: Request, address: Address) -> AsyncGenerator[Response]:
    async with (
        visited(request, "kv:read", "reading") as visit,
        visit.workspace.open_value(address.scope, address.key) as reader,
    ):
        yield _part(request, reader)


def _part(request: Request, reader: Reader) -> Response:
    """Return what a request asks for of an open value."""
    info = reader.info
    headers = _value_headers(info)
    if is_unchanged(request.headers, info):
        return Response(None, 304, headers)
    try:
        span = asked_span(request.headers, info)
    except UnsatisfiableError:
        text = (
            f"the range {request.headers['range'][:80]!r}",
            f"the value has {info.size} bytes",
            "ask for some of them",
        )
        return problem(416, "range_not_satisfiable", text, {"Content-Range": f"bytes */{info.size}"})
    if span is None:
        return _ValueResponse(reader, Span(0, info.size), 200, headers)
    headers["Content-Range"] = f"bytes {span.start}-{span.end - 1}/{info.size}"
    return _ValueResponse(reader, span, 206, headers)


@router.head(
    "/value",
    summary="Look at an entry",
    response_class=Response,
    responses={**_value_answers("What is known of the entry, in headers."), **answers()},
    openapi_extra=parameters(Address, _IF_NONE_MATCH),
)
async def head_value(request: Request) -> Response:
    """Return the headers of `GET value`. The value is not read, so neither verified nor renewed."""
    address = asked(request, Address)
    async with visited(request, "kv:read", "reading") as visit:
        info = await visit.workspace.head(address.scope, address.key)
    if is_unchanged(request.headers, info):
        return Response(None, 304, _value_headers(info))
    return Response(None, 200, {**_value_headers(info), "Content-Length": str(info.size)})


@router.post(
    "/value",
    summary="Write a value",
    response_model=EntryInfo,
    responses={
        200: {"description": "Written over what was there.", "headers": ETAG, **example({**ENTRY, "version": 2})},
        201: {
            "description": "Created.",
            "headers": {**ETAG, **LOCATION},
            "model": EntryInfo,
            **example(ENTRY),
        },
        **answers(409, 412, 413, 415, 507),
    },
    openapi_extra={
        **parameters(WriteAddress, _IF_MATCH, header("If-None-Match", "`*`: only if there is no entry.", "*")),
        **body(
            NewValue,
            {"value": "hello", "content_type": "text/plain", "ttl_hours": 24, "metadata": {"kind": "note"}},
            **_BYTES,
        ),
    },
)
async def post_value(request: Request) -> Response:
    """Write an entry: a JSON body with the value, or the value itself as the body under its own content type.

    The body is JSON with `value` where it is declared `application/json` and `raw` is not set; every other
    type but a form's is the value, byte for byte, streamed to the disk. JSON that does not parse is refused.
    """
    address = asked(request, WriteAddress)
    async with visited(request, "kv:write", "writing") as visit:
        info = await _write(request, visit, address)
    return _written(request.path_params["sandbox"], info)


async def _write(request: Request, visit: Visit, address: WriteAddress) -> EntryInfo:
    workspace, scope, key = visit.workspace, address.scope, address.key
    declared = declared_type(request)
    if_digest = await expected_digest(request.headers, lambda: workspace.head(scope, key))
    if essence(declared) == JSON and not address.raw:
        _refuse_beside_json(address)
        given = await json_body(request, NewValue, hint=_RAW)
        write = partial(workspace.put, value=given.encoded(), content_type=given.content_type)
        ttl_hours, metadata = given.ttl_hours, given.metadata
    else:
        ttl_hours, metadata = address.ttl_hours, metadata_of(address.metadata)
        write = await _raw_write(request, workspace, declared)
    return await write(visit.principal, scope, key, ttl_hours=ttl_hours, metadata=metadata, if_digest=if_digest)


async def _raw_write(request: Request, workspace: Workspace, declared: str) -> Callable[..., Awaitable[EntryInfo]]:
    """Return what writes a raw body; a small one whole, with one hop to a thread where chunks take four."""
    if is_small(request):
        return partial(workspace.put, value=await whole_body(request), content_type=declared)
    size = announced_size(request)
    return partial(workspace.put_chunks, chunks=chunks_of(request), content_type=declared, size=size)


def _refuse_beside_json(address: WriteAddress) -> None:
    if address.ttl_hours is not None or address.metadata is not None:
        raise InvalidArgumentError(
            "ttl_hours or metadata as a parameter beside a JSON body",
            "they stand in the JSON body",
            "move them there, or send the value raw with raw=true",
        )


def _written(sandbox: str, info: EntryInfo) -> Response:
    headers = {"ETag": etag(info), "Cache-Control": "no-store"}
    is_new = info.created_at == info.updated_at
    if is_new:
        address = urlencode({"scope": info.scope, "key": info.key})
        headers["Location"] = f"/api/sandboxes/{sandbox}/kv-cache/value?{address}"
    return Response(info.model_dump_json(), 201 if is_new else 200, headers, JSON)


@router.delete(
    "/value",
    summary="Delete a value",
    response_model=Deleted,
    responses={
        200: {"description": "What was deleted.", **example({**ENTRY, "undo": "POST restore, for 24 hours"})},
        **answers(409, 412),
    },
    openapi_extra=parameters(Address, _IF_MATCH),
)
async def delete_value(request: Request) -> Response:
    """Delete an entry and return what it was; `undo` says how to get it back."""
    address = asked(request, Address)
    scope, key = address.scope, address.key
    async with visited(request, "kv:write", "deleting") as visit:
        workspace = visit.workspace
        if_digest = await expected_digest(request.headers, lambda: workspace.head(scope, key))
        if if_digest == "":
            raise InvalidArgumentError("If-None-Match on a deletion", "it has If-Match", "leave it out")
        found = await workspace.delete(visit.principal, scope, key, if_digest=if_digest)
        info = Deleted(**dict(found), undo=undo_text(workspace, scope))
    return Response(info.model_dump_json(), 200, {"Cache-Control": "no-store"}, JSON)


def undo_text(workspace: Workspace, scope: Scope) -> str | None:
    """Return how a deletion is undone; None: it cannot be."""
    hours = workspace.undo_hours(scope)
    return f"POST restore, for {hours:g} hours" if hours else None


class ValueOperations:
    """ASGI middleware that answers the operations on one value; FastAPI's way to them takes as long as a small read."""

    def __init__(self, app: ASGIApp, handlers: Mapping[Any, Any]) -> None:
        """Stand in front of an application; `handlers` answer errors as they do there."""
        self._app = app
        routes = [route for route in router.routes if isinstance(route, APIRoute)]
        self._operations = {method: route.endpoint for route in routes for method in route.methods or ()}
        # What nobody foresaw is for the application's outermost layer.
        foreseen = {error: handler for error, handler in handlers.items() if error is not Exception}
        self._answering = ExceptionMiddleware(self._answer, foreseen)

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass it on."""
        found = _PATH.fullmatch(scope["path"]) if scope["type"] == "http" else None
        if found is None:
            await self._app(scope, receive, send)
        else:
            scope["path_params"] = found.groupdict()
            await self._answering(scope, receive, send)

    async def _answer(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        operation = self._operations.get(request.method)
        if operation is None:
            raise HTTPException(405, headers={"Allow": ", ".join(self._operations)})
        request.state.operation = f"rest:{operation.__name__}"
        response = await operation(request)
        await response(scope, receive, send)
