"""Settings in layers, and where the package's own files lie.

Later layers lose: arguments, environment (`IRIS_KV_*`, nested with `__`), the workspace's `.env`
(only `USE_KV_CACHE_PROMPT`), the user's `~/.config/iris-kv/config.toml`, the workspace's
`.iris/config.toml`, defaults. The workspace's file comes with a clone, so it may set only
quotas, TTLs, the profile, the prompt variant and instruction folders inside the workspace.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from iris_kv.errors import ForbiddenError, InvalidArgumentError
from iris_kv.model import Limits, Scope

Profile = Literal["standard", "full"]
Durability = Literal["full", "fast"]

FLAG: Final = "USE_KV_CACHE_PROMPT"
ENV_PREFIX: Final = "IRIS_KV_"
MEGABYTE: Final = 1_000_000
HOUR_MS: Final = 3_600_000

_OUTSIDE_SETTINGS: Final = frozenset({"IRIS_KV_WORKSPACE"})
_WORKSPACE_MAY_SET: Final = ("scopes", "max_value_mb", "profile", "prompt.compact", "instructions.folders")


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ScopeSettings(_Table):
    """The quota and the TTL of one scope."""

    quota_mb: Annotated[float, Field(gt=0)]
    """Megabytes of 1,000,000 bytes: the sum of the scope's values."""
    ttl_hours: Annotated[float, Field(gt=0)] | Literal["never"]
    """The TTL of an entry that names none."""
    renew: bool = False
    """Whether reading an entry starts its TTL anew."""


class ScopesSettings(_Table):
    """The settings of the five scopes."""

    system: ScopeSettings = ScopeSettings(quota_mb=10, ttl_hours="never")
    instructions: ScopeSettings = ScopeSettings(quota_mb=64, ttl_hours="never")
    project: ScopeSettings = ScopeSettings(quota_mb=20, ttl_hours="never")
    task: ScopeSettings = ScopeSettings(quota_mb=100, ttl_hours=30 * 24, renew=True)
    artifacts: ScopeSettings = ScopeSettings(quota_mb=200, ttl_hours=14 * 24, renew=True)


class PromptSettings(_Table):
    """Which system prompt is served."""

    compact: bool = True
    """True: the core with the trigger table. False: the core with every instruction inlined."""


class InstructionSettings(_Table):
    """Where instructions come from, besides the shipped ones and `.iris/instructions`."""

    folders: tuple[Path, ...] = ()
    """Later folders win over earlier ones; the workspace's own overlay wins over all."""


class Settings(BaseSettings):
    """All that can be configured. `Settings()` is the defaults; `load_settings` reads the layers."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True
    )

    scopes: ScopesSettings = ScopesSettings()
    max_value_mb: Annotated[float, Field(gt=0)] = 50
    """The size of one value, in megabytes of 1,000,000 bytes; a smaller quota of its scope wins."""
    durability: Durability = "full"
    """`full` survives a power cut; `fast` survives the end of the process only."""
    profile: Profile = "standard"
    """Which tools the MCP server offers."""
    trust_owner: bool = False
    """Accept a cache folder that another user owns."""
    prompt: PromptSettings = PromptSettings()
    instructions: InstructionSettings = InstructionSettings()
    origins: Mapping[str, str] = {}
    """Which layer set a setting, by dotted name; what is not listed has its default."""

    def limits(self, scope: Scope) -> Limits:
        """Return what the store enforces for a scope."""
        table = cast("ScopeSettings", getattr(self.scopes, scope))
        quota_bytes = int(table.quota_mb * MEGABYTE)
        return Limits(
            quota_bytes=quota_bytes,
            max_value_bytes=min(int(self.max_value_mb * MEGABYTE), quota_bytes),
            ttl_ms=None if table.ttl_hours == "never" else max(1, int(table.ttl_hours * HOUR_MS)),
            renew=table.renew,
        )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take what the constructor is given and nothing else: the layers are `load_settings`'s work."""
        return (init_settings,)


class _Flag(BaseSettings):
    use_kv_cache_prompt: bool | None = None


class _Layer(NamedTuple):
    name: str
    values: dict[str, Any]


def user_config_path() -> Path:
    """Return the path of the user's configuration file, which need not exist."""
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "iris-kv" / "config.toml"


def load_settings(workspace: Path | None, arguments: Mapping[str, object] | None = None) -> Settings:
    """Return the settings of a workspace, with the layer that set each.

    Args:
        workspace: The workspace's folder; None reads no workspace file.
        arguments: Settings by dotted name, such as `{"prompt.compact": False}`; they win over all.

    Raises:
        InvalidArgumentError: A file or a variable has an unknown key or a bad value.
        ForbiddenError: The workspace's file sets what only its user may set.
    """
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for layer in _layers(workspace, arguments or {}):
        _check_keys(layer)
        for dotted, value in _flattened(layer.values):
            if dotted not in origins:
                origins[dotted] = layer.name
                _plant(merged, dotted, value)
    _complete_scopes(merged)
    try:
        return Settings(**merged, origins=origins)
    except ValidationError as error:
        raise _bad_value(error, origins) from None


def shipped(kind: Literal["instructions", "prompts"]) -> Path:
    """Return the folder of the package's own files, in a wheel and in an editable install alike."""
    package = Path(__file__).resolve().parent
    bundled = package / "bundled" / kind
    return bundled if bundled.is_dir() else package.parents[1] / kind


def _layers(workspace: Path | None, arguments: Mapping[str, object]) -> Iterator[_Layer]:
    from_arguments: dict[str, Any] = {}
    for dotted, value in arguments.items():
        _plant(from_arguments, dotted, value)
    yield _Layer("argument", from_arguments)
    _check_variables()
    yield _Layer("environment", EnvSettingsSource(Settings)())
    yield _flag_layer("environment " + FLAG, EnvSettingsSource(_Flag)())
    if workspace is not None:
        yield _flag_layer(".env " + FLAG, DotEnvSettingsSource(_Flag, env_file=workspace / ".env")())
    yield _Layer("user configuration", _read_toml(user_config_path()))
    if workspace is not None:
        values = _read_toml(workspace / ".iris" / "config.toml")
        _check_workspace_file(values, workspace)
        yield _Layer("workspace configuration", values)


def _flag_layer(name: str, values: Mapping[str, Any]) -> _Layer:
    flag = values.get("use_kv_cache_prompt")
    return _Layer(name, {} if flag in (None, "") else {"prompt": {"compact": flag}})


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(
            f"{path.name} in {path.parent.name!r} is not TOML: {error}",
            "the file holds tables such as [scopes.task] and [prompt]",
            "mend or delete the file",
        ) from None
    except OSError as error:
        raise InvalidArgumentError(
            f"{path.name} in {path.parent.name!r} cannot be read: {error.strerror}",
            "it must be a file that you may read",
            "mend its permissions or delete it",
        ) from None


def _check_workspace_file(values: Mapping[str, Any], workspace: Path) -> None:
    for dotted, value in _flattened(values):
        if not any(dotted == name or dotted.startswith(name + ".") for name in _WORKSPACE_MAY_SET):
            raise ForbiddenError(
                f".iris/config.toml sets {dotted!r}",
                f"a workspace's file comes with a clone and may set only {', '.join(_WORKSPACE_MAY_SET)}",
                f"move it to {user_config_path().name} in the user's configuration folder iris-kv",
            )
        if dotted == "instructions.folders":
            for folder in cast("list[object]", value if isinstance(value, list) else [value]):
                _check_inside(str(folder), workspace)


def _check_inside(folder: str, workspace: Path) -> None:
    root = workspace.resolve()
    if not (root / folder).resolve().is_relative_to(root):
        raise ForbiddenError(
            f".iris/config.toml names the instruction folder {folder!r}, which is outside the workspace",
            "a workspace's file may name only folders inside the workspace",
            "move the folder into the workspace, or name it with --instructions",
        )


def _check_variables() -> None:
    known = {ENV_PREFIX + name.upper() for name in _fields(Settings)}
    for variable in os.environ:
        if not variable.upper().startswith(ENV_PREFIX) or variable.upper() in _OUTSIDE_SETTINGS:
            continue
        top = variable.upper().split("__", 1)[0]
        if top not in known:
            raise _unknown("environment", variable, [*sorted(known), *sorted(_OUTSIDE_SETTINGS)])


def _check_keys(layer: _Layer) -> None:
    def check(values: Mapping[str, Any], table: type[BaseModel], prefix: str) -> None:
        known = _fields(table)
        for key, value in values.items():
            if key not in known:
                raise _unknown(layer.name, prefix + key, [prefix + name for name in known])
            inner = table.model_fields[key].annotation
            if isinstance(value, dict) and isinstance(inner, type) and issubclass(inner, BaseModel):
                check(cast("dict[str, Any]", value), inner, f"{prefix}{key}.")

    check(layer.values, Settings, "")


def _fields(table: type[BaseModel]) -> list[str]:
    return [name for name in table.model_fields if name != "origins"]


def _unknown(layer: str, key: str, known: list[str]) -> InvalidArgumentError:
    nearest = difflib.get_close_matches(key, known, 1, 0.0)
    return InvalidArgumentError(
        f"unknown setting {key!r} in {layer}", f"known are {', '.join(known)}", f"did you mean {nearest[0]!r}?"
    )


def _bad_value(error: ValidationError, origins: Mapping[str, str]) -> InvalidArgumentError:
    first = error.errors(include_url=False)[0]
    path = [str(part) for part in first["loc"]]
    known = [dotted for dotted in origins if ".".join(path).startswith(dotted)]
    dotted = known[0] if known else ".".join(path)
    return InvalidArgumentError(
        f"{dotted} in {origins.get(dotted, 'the settings')} is {first['input']!r}",
        first["msg"],
        "mend it there, or take it out to get the default",
    )


def _flattened(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flattened(cast("dict[str, Any]", value), f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _plant(tree: dict[str, Any], dotted: str, value: object) -> None:
    *tables, last = dotted.split(".")
    for table in tables:
        tree = tree.setdefault(table, {})
    tree[last] = value


def _complete_scopes(merged: dict[str, Any]) -> None:
    """Fill a partly set scope with its own defaults, which differ from scope to scope."""
    defaults = ScopesSettings().model_dump()
    scopes = merged.get("scopes", {})
    for scope, table in scopes.items():
        if scope in defaults and isinstance(table, dict):
            scopes[scope] = {**defaults[scope], **table}
