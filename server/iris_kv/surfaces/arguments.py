"""The arguments of tools: models, their lean JSON schemas, and errors that a model can act on."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypeVar, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, StrictBool, ValidationError

from iris_kv.errors import InvalidArgumentError
from iris_kv.json_text import json_of
from iris_kv.model import Scope

_NOISE: Final = ("title", "default", "additionalProperties")
_NAME_CHARS: Final = 80
"""How much of a name is compared and repeated: the nearest one to 3 MB takes two seconds to find."""

_A = TypeVar("_A", bound="Arguments")


def _as_text(value: object) -> object:
    return json_of(cast("dict[str, object] | list[object]", value)) if isinstance(value, dict | list) else value


Text = Annotated[str, BeforeValidator(_as_text)]
"""Text; an object or array that a model sends in its place is taken as its JSON."""


class Arguments(BaseModel):
    """The base of the tools' arguments."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class NoArguments(Arguments):
    """No arguments."""


class GetInstruction(Arguments):
    """The arguments of `get_instruction`."""

    tag: str
    section: str | None = None
    offset: int = 0
    max_tokens: int | None = None
    known_digest: str | None = None


class ListInstructions(Arguments):
    """The arguments of `list_instructions`."""

    query: str | None = None


class PutArtifact(Arguments):
    """The arguments of `put_artifact`."""

    key: str
    value: Text | None = None
    from_path: str | None = None
    kind: str | None = None
    ttl_hours: float | None = None


class ReadArguments(Arguments):
    """The arguments of the tools that read a value."""

    pointer: str | None = None
    offset: int = 0
    max_tokens: int | None = None
    known_digest: str | None = None


class MaybeKey(Arguments):
    """An entry of a tool's own scope, or none."""

    key: str | None = None


class GetArtifact(ReadArguments, MaybeKey):
    """The arguments of `get_artifact`; bases behind come first in the schema."""


class PutProjectSummary(Arguments):
    """The arguments of `put_project_summary`."""

    summary: Text
    if_digest: str | None = None


class CacheList(Arguments):
    """The arguments of `cache_list`."""

    scope: Scope
    prefix: str = ""
    cursor: str | None = None


class ScopeKey(Arguments):
    """An entry of any scope."""

    scope: Scope
    key: str


class CacheGet(ReadArguments, ScopeKey):
    """The arguments of `cache_get`."""


class CachePut(Arguments):
    """The arguments of `cache_put`."""

    scope: Literal["project", "task", "artifacts", "system", "instructions"]
    key: str
    value: Text
    content_type: str | None = None
    ttl_hours: float | None = None
    if_digest: str | None = None
    metadata: dict[str, str] | None = None


class CacheDelete(ScopeKey):
    """The arguments of `cache_delete`."""

    if_digest: str | None = None


class CacheStats(Arguments):
    """The arguments of `cache_stats`."""

    scope: Scope | None = None


class CachePrune(Arguments):
    """The arguments of `cache_prune`."""

    scope: Scope | None = None


class CacheClear(Arguments):
    """The arguments of `cache_clear`."""

    scope: Scope
    confirm: StrictBool = False


class CacheHistory(Arguments):
    """The arguments of `cache_history`."""

    scope: Scope
    key: str | None = None


class CacheRestore(ScopeKey):
    """The arguments of `cache_restore`."""

    version: int | None = None
    if_digest: str | None = None


class CacheSeed(Arguments):
    """The arguments of `cache_seed`."""

    force: bool = False


def parsed(tool: str, model: type[_A], given: Mapping[str, object]) -> _A:
    """Return a tool's arguments.

    Raises:
        InvalidArgumentError: Some are missing, unknown or of the wrong form; the text names each.
    """
    try:
        return model.model_validate(given)
    except ValidationError as error:
        problems = [_problem(model, detail) for detail in error.errors(include_url=False)]
        raise InvalidArgumentError(
            f"{tool}: " + ", ".join(dict.fromkeys(problems)),
            f"its arguments are {', '.join(_described(model)) or 'none'}",
            "call it again with these mended",
        ) from None


def lean_schema(model: type[BaseModel], *, keep_closed: bool = False) -> dict[str, Any]:
    """Return a model's JSON schema without what a language model does not need.

    Titles, defaults and nulls are a quarter of pydantic's schema. `keep_closed` is for outputs,
    whose definitions stay as they are but for the titles.
    """
    schema = model.model_json_schema(mode="serialization" if keep_closed else "validation")
    schema.pop("description", None)
    return cast("dict[str, Any]", _lean(schema, () if keep_closed else _NOISE))


def _lean(schema: object, noise: tuple[str, ...]) -> object:
    if isinstance(schema, list):
        return [_lean(item, noise) for item in cast("list[object]", schema)]
    if not isinstance(schema, dict):
        return schema
    node = {key: value for key, value in cast("dict[str, object]", schema).items() if not _is_noise(key, value, noise)}
    if noise and isinstance(node.get("anyOf"), list):
        choices = [choice for choice in cast("list[object]", node["anyOf"]) if choice != {"type": "null"}]
        if len(choices) == 1:
            node = {key: value for key, value in node.items() if key != "anyOf"} | cast("dict[str, object]", choices[0])
    if noise and "enum" in node:
        node.pop("type", None)
    return {key: _lean(value, noise) for key, value in node.items()}


def _is_noise(key: str, value: object, noise: tuple[str, ...]) -> bool:
    if key == "title":
        return isinstance(value, str)
    return key in noise and not (key == "additionalProperties" and isinstance(value, dict))


def _problem(model: type[BaseModel], detail: Mapping[str, Any]) -> str:
    name = ".".join(str(part) for part in detail["loc"])[:_NAME_CHARS]
    if detail["type"] == "missing":
        return f"{name!r} is missing"
    if detail["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, list(model.model_fields), 1)
        return f"{name!r} is unknown" + (f" (did you mean {near[0]!r}?)" if near else "")
    return f"{name!r} is {str(detail['input'])[:60]!r}: {detail['msg']}"


def _described(model: type[BaseModel]) -> list[str]:
    return [name if field.is_required() else f"{name}?" for name, field in model.model_fields.items()]
