"""What comes in the bodies of requests: small JSON as a model, and values as chunks that are never all in memory."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from typing import Final, TypeVar, cast

from anyio import to_thread
from fastapi import Request
from pydantic import BaseModel, Field, JsonValue, ValidationError
from starlette.requests import ClientDisconnect

from iris_kv import intake
from iris_kv.errors import InvalidArgumentError, TooLargeError
from iris_kv.json_text import JSON, json_of
from iris_kv.model import Frozen
from iris_kv.settings import Hours
from iris_kv.surfaces.http.problems import invalid_arguments
from iris_kv.surfaces.http.rest_answers import SANDBOX_PATTERN

MAX_JSON_BYTES: Final = 4 * 1024 * 1024
"""Of a body that is read whole, as MCP has it; a larger value is sent raw."""

_CHUNK: Final = 1 << 17
_FORMS: Final = ("application/x-www-form-urlencoded", "multipart/form-data")

_M = TypeVar("_M", bound=BaseModel)


class NewValue(Frozen):
    """A value as JSON."""

    value: str | dict[str, JsonValue] | list[JsonValue] = Field(
        description="Text; an object or array is stored as its JSON text."
    )
    content_type: str | None = Field(
        None, max_length=130, description="Such as text/markdown; left out: JSON where the value is, else text/plain."
    )
    ttl_hours: Hours | None = Field(None, description="Left out: the scope's default.")
    metadata: dict[str, str] | None = Field(None, description="Strings kept with the entry, at most 4,096 bytes.")

    def encoded(self) -> bytes:
        """Return the value's bytes.

        Raises:
            InvalidArgumentError: It is not text, or has a number that JSON cannot express.
        """
        return intake.encoded(self.value if isinstance(self.value, str) else json_of(self.value))


class NewSandbox(Frozen):
    """The sandbox to create."""

    id: str = Field(pattern=SANDBOX_PATTERN, examples=["team-a-7"])


class UnsupportedTypeError(Exception):
    """A body of a type that the operation does not take: `text` says what was wrong, is allowed, and is to be done."""

    def __init__(self, wrong: str, allowed: str, todo: str) -> None:
        """Say what."""
        super().__init__(wrong)
        self.text = (wrong, allowed, todo)


def declared_type(request: Request) -> str:
    """Return the type of a request's body.

    Raises:
        UnsupportedTypeError: There is none, it is malformed, or a form's; or the body is encoded, such as compressed.
    """
    codings = request.headers.getlist("content-encoding")
    if any(each.strip().lower() != "identity" for each in codings):
        raise UnsupportedTypeError(
            f"the header Content-Encoding is {', '.join(codings)[:200]!r}",
            "a value is stored as it comes, and nothing would tell its readers to decode it",
            "send it plain; what is to be stored compressed has a type of its own, such as application/gzip",
        )
    given = ", ".join(request.headers.getlist("content-type"))
    try:
        declared = intake.media_type(given)
    except InvalidArgumentError:
        raise UnsupportedTypeError(
            f"the header Content-Type is {given[:200]!r}",
            "it is a media type such as text/markdown or application/octet-stream",
            "send the header",
        ) from None
    if essence(declared) in _FORMS:
        raise UnsupportedTypeError(
            f"the body is declared a form ({essence(declared)})",
            "a value is the body itself; curl declares a form where nothing is said",
            "send the header Content-Type, such as -H 'Content-Type: text/plain', and curl --data-binary",
        )
    return declared


def essence(declared: str) -> str:
    """Return a content type without its parameters."""
    return declared.split(";", 1)[0].strip()


def announced_size(request: Request) -> int | None:
    """Return how many bytes a body is said to have; None: that is not said."""
    given = request.headers.get("content-length", "")
    return int(given) if given.isascii() and given.isdecimal() and len(given) < 19 else None


def is_small(request: Request) -> bool:
    """Tell whether a body is said to be no more than a chunk."""
    size = announced_size(request)
    return size is not None and size <= _CHUNK


async def whole_body(request: Request) -> bytes:
    """Return a body that is small.

    Raises:
        InvalidArgumentError: The client went away before the body was whole.
    """
    try:
        return await request.body()
    except ClientDisconnect:
        raise _cut_off() from None


async def chunks_of(request: Request) -> AsyncGenerator[bytes]:
    """Yield a body in chunks of some 128 KiB, as each is a hop to a thread for the store.

    Raises:
        InvalidArgumentError: The client went away before the body was whole.
    """
    held = bytearray()
    async for part in _parts(request):
        held += part
        if len(held) >= _CHUNK:
            yield bytes(held)
            held.clear()
    if held:
        yield bytes(held)


async def _parts(request: Request) -> AsyncGenerator[bytes]:
    try:
        async for part in request.stream():
            yield part
    except ClientDisconnect:
        raise _cut_off() from None


def _cut_off() -> InvalidArgumentError:
    return InvalidArgumentError("the body ended before it was whole", "nothing of it was stored", "send it again")


async def json_body(request: Request, model: type[_M], *, hint: str = "") -> _M:
    """Return a JSON body; `hint` says what else could have been meant by one that is not the model's.

    Raises:
        UnsupportedTypeError: It is declared something else.
        TooLargeError: It is over `MAX_JSON_BYTES`.
        InvalidArgumentError: It is not JSON, or not this model's.
    """
    if essence(declared_type(request)) != JSON:
        raise UnsupportedTypeError(
            f"the body is declared {declared_type(request)}", f"it is {JSON}", "send the header Content-Type"
        )
    body = bytearray()
    _check_small(announced_size(request) or 0)
    async for part in _parts(request):
        _check_small(len(body) + len(part))
        body += part
    return await to_thread.run_sync(_parsed, bytes(body), model, hint)


def _check_small(size: int) -> None:
    if size > MAX_JSON_BYTES:
        raise TooLargeError(
            f"the JSON body has {size} bytes or more",
            f"at most {MAX_JSON_BYTES}",
            "send the value raw, with its own Content-Type; JSON with ?raw=true",
        )


def _parsed(body: bytes, model: type[_M], hint: str) -> _M:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        told = invalid_arguments(error.errors(include_url=False), list(model.model_fields))
        raise InvalidArgumentError(told.wrong, told.allowed, told.todo + hint) from None


def metadata_of(text: str | None) -> Mapping[str, str] | None:
    """Return metadata that came as JSON in a parameter.

    Raises:
        InvalidArgumentError: It is no object of strings.
    """
    if text is None:
        return None
    try:
        found: object = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, dict):
        pairs = cast("dict[str, object]", found)
        if all(isinstance(value, str) for value in pairs.values()):
            return cast("dict[str, str]", pairs)
    raise InvalidArgumentError(
        f"metadata is {text[:200]!r}", 'it is a JSON object of strings, such as {"kind":"note"}', "mend it"
    )
