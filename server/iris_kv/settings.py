"""Settings in layers, and where the package's own files lie.

Later layers lose: arguments, environment (`IRIS_KV_*`, nested with `__`), the workspace's `.env`
(only `USE_KV_CACHE_PROMPT`), the user's `~/.config/iris-kv/config.toml`, the workspace's
`.iris/config.toml`, defaults. The workspace's file comes with a clone, so it may set only
quotas, TTLs, the profile, the prompt variant and instruction folders inside the workspace.
"""

from __future__ import annotations

import difflib
import os
import re
import reprlib
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from iris_kv.errors import ForbiddenError, InvalidArgumentError, IrisError
from iris_kv.http_settings import HttpSettings
from iris_kv.model import KEEP_NOTHING, Keep, Limits, Scope
from iris_kv.regular import regular_bytes

Profile = Literal["standard", "full"]
Durability = Literal["full", "fast"]
Phase = Literal["off", "percent", "on"]
Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]

FLAG: Final = "USE_KV_CACHE_PROMPT"
ENV_PREFIX: Final = "IRIS_KV_"
MEGABYTE: Final = 1_000_000
HOUR_MS: Final = 3_600_000
MAX_TTL_HOURS: Final = 100 * 365 * 24
MAX_QUOTA_MB: Final = 1_000_000_000
MAX_VERSIONS: Final = 100
MAX_DELETED_HOURS: Final = 30 * 24

_MAX_FILE_BYTES: Final = 1_000_000
_MAX_KEY_PARTS: Final = 32
_SHOWN: Final = reprlib.Repr()
_DEEP: Final = re.compile(rb"(?:[^\s.=\[\]#]+[ \t]*\.[ \t]*){%d}" % _MAX_KEY_PARTS)
"""Dotted keys take the parser quadratic time and memory."""
_KILL: Final = "prompt.kill"
_BOOL: Final = TypeAdapter(bool)
_OUTSIDE_SETTINGS: Final = frozenset({"IRIS_KV_WORKSPACE"})
_SECRET: Final = ("http", "http.jwt_secret")
"""What an error does not repeat: a secret, and the table that holds it."""
_FROM_WORKSPACE: Final = "workspace configuration"
_WORKSPACE_MAY_SET: Final = ("scopes", "history", "max_value_mb", "profile", "prompt.compact", "instructions")

Megabytes = Annotated[float, Field(gt=0, le=MAX_QUOTA_MB, allow_inf_nan=False)]
Hours = Annotated[float, Field(gt=0, le=MAX_TTL_HOURS, allow_inf_nan=False)]
Versions = Annotated[int, Field(ge=0, le=MAX_VERSIONS)]
DeletedHours = Annotated[float, Field(ge=0, le=MAX_DELETED_HOURS, allow_inf_nan=False)]


def _with_home(folder: Path) -> Path:
    if "\0" in str(folder):
        raise ValueError("a path has no NUL")
    return Path(os.path.expanduser(folder))


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SeededScopeSettings(_Table):
    """The quota and the TTL of a scope that holds copies of files, and so has no history."""

    quota_mb: Megabytes
    """Megabytes of 1,000,000 bytes: the sum of the scope's values."""
    ttl_hours: Hours | Literal["never"]
    """The TTL of an entry that names none."""
    renew: bool = False
    """Whether reading an entry starts its TTL anew."""


class HistorySettings(_Table):
    """What is kept of values that are replaced or deleted; it counts in the quota and makes room first."""

    versions: Versions = 3
    """How many replaced versions of each entry; 0: none."""
    deleted_hours: DeletedHours = 24
    """For how long a deleted entry can be restored; 0: it is gone at once, with all that was kept of it."""


class ScopeHistorySettings(_Table):
    """What one scope keeps; None: as `[history]` says."""

    versions: Versions | None = None
    deleted_hours: DeletedHours | None = None


class ScopeSettings(SeededScopeSettings):
    """The settings of a scope that programs write to."""

    history: ScopeHistorySettings = ScopeHistorySettings()


class ScopesSettings(_Table):
    """The settings of the five scopes."""

    system: SeededScopeSettings = SeededScopeSettings(quota_mb=10, ttl_hours="never")
    instructions: SeededScopeSettings = SeededScopeSettings(quota_mb=64, ttl_hours="never")
    project: ScopeSettings = ScopeSettings(quota_mb=20, ttl_hours="never")
    task: ScopeSettings = ScopeSettings(quota_mb=100, ttl_hours=30 * 24, renew=True)
    artifacts: ScopeSettings = ScopeSettings(quota_mb=200, ttl_hours=14 * 24, renew=True)


class PromptSettings(_Table):
    """Which system prompt is served; what is None here is as the rollout files say."""

    source: Annotated[Path, AfterValidator(_with_home)] | None = None
    """The file that the prompt is rendered from; None: the shipped one.

    `~` is the home folder; a relative one starts at the workspace.
    """
    compact: bool = True
    """True: the core with the trigger table, as the rollout goes. False: every instruction inlined, for all."""
    phase: Phase | None = None
    percent: Percent | None = None
    """The share of subjects that get compact in the phase `percent`, from 0 to 100."""
    allow: tuple[str, ...] | None = None
    """The subjects that get compact in every phase."""
    kill: bool = False
    """True, in any layer or file: full for all, whatever else is said."""
    subject: Annotated[str, Field(min_length=1)] | None = None
    """Who fetches the prompt; None: the fetch's argument, else the workspace's id."""


class InstructionSettings(_Table):
    """Where instructions come from, besides the shipped ones and `.iris/instructions`."""

    folders: tuple[Annotated[Path, AfterValidator(_with_home)], ...] = ()
    """Later folders win over earlier ones; the workspace's own overlay wins over all.

    `~` is the home folder; a relative one starts at the workspace.
    """
    shipped: bool | None = None
    """Whether the shipped instructions are served; None: with the shipped prompt only."""


class Settings(BaseSettings):
    """All that can be configured. `Settings()` is the defaults; `load_settings` reads the layers."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True)

    scopes: ScopesSettings = ScopesSettings()
    history: HistorySettings = HistorySettings()
    max_value_mb: Megabytes = 50
    """The size of one value, in megabytes of 1,000,000 bytes; a smaller quota of its scope wins."""
    durability: Durability = "full"
    """`full` survives a power cut; `fast` survives the end of the process only."""
    profile: Profile = "standard"
    """Which tools the MCP server offers."""
    trust_owner: bool = False
    """Accept a cache folder that another user owns."""
    prompt: PromptSettings = PromptSettings()
    instructions: InstructionSettings = InstructionSettings()
    http: HttpSettings = HttpSettings()
    origins: Mapping[str, str] = {}
    """Which layer set a setting, by dotted name; what is not listed has its default."""

    def limits(self, scope: Scope) -> Limits:
        """Return what the store enforces for a scope."""
        table = cast("SeededScopeSettings", getattr(self.scopes, scope))
        quota_bytes = int(table.quota_mb * MEGABYTE)
        return Limits(
            quota_bytes=quota_bytes,
            max_value_bytes=min(int(self.max_value_mb * MEGABYTE), quota_bytes),
            ttl_ms=None if table.ttl_hours == "never" else max(1, int(table.ttl_hours * HOUR_MS)),
            renew=table.renew,
            keep=self._keep(table),
        )

    def _keep(self, table: SeededScopeSettings) -> Keep:
        if not isinstance(table, ScopeSettings):
            return KEEP_NOTHING
        own, common = table.history, self.history
        hours = common.deleted_hours if own.deleted_hours is None else own.deleted_hours
        versions = common.versions if own.versions is None else own.versions
        return Keep(versions=versions, deleted_ms=int(hours * HOUR_MS))

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
        del settings_cls, env_settings, dotenv_settings, file_secret_settings
        return (init_settings,)


class _Flag(BaseSettings):
    use_kv_cache_prompt: bool | None = None


class _Layer(NamedTuple):
    name: str
    values: Mapping[str, object]
    """By dotted name."""


def user_config_path() -> Path:
    """Return the path of the user's configuration file, which need not exist."""
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    # A user without a home has no file of their own, and none in the current folder either.
    return Path(base if os.path.isabs(base) else os.devnull) / "iris-kv" / "config.toml"


def load_settings(workspace: Path | None, arguments: Mapping[str, object] | None = None) -> Settings:
    """Return the settings of a workspace, with the layer that set each.

    Args:
        workspace: The workspace's folder; None reads no workspace file.
        arguments: Settings by dotted name, such as `{"prompt.compact": False}`; they win over all.

    Raises:
        InvalidArgumentError: A file or a variable has an unknown key or a bad value.
        ForbiddenError: The workspace's file sets what only its user may set.
    """
    settings, origins = _merged(_layers(workspace, arguments or {}))
    if workspace is not None and origins.get("instructions.folders") == _FROM_WORKSPACE:
        for folder in settings.instructions.folders:
            _check_inside(f"the instruction folder {str(folder)!r}", folder, workspace)
    return settings


def settings_at_hand(
    workspace: Path | None, arguments: Mapping[str, object] | None = None
) -> tuple[Settings, IrisError | None]:
    """Return what can be had of the settings whatever is broken, and what is.

    A broken `.iris/config.toml` leaves all other layers standing. If one of these is broken, it may be
    the one that was to kill the rollout: the arguments alone count then, and full is served.
    """
    given = arguments or {}
    try:
        return load_settings(workspace, given), None
    except IrisError as error:
        problem = error
    with suppress(IrisError):
        return _merged(_layers_over_the_workspaces(workspace, given))[0], problem
    killed = _Layer("the broken configuration", {_KILL: True})
    with suppress(IrisError):
        return _merged([_layer("argument", _tree(given)), killed])[0], problem
    return _merged([killed])[0], problem


def _merged(layers: Iterable[_Layer]) -> tuple[Settings, Mapping[str, str]]:
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for layer in layers:
        for dotted, value in layer.values.items():
            # A kill in any layer kills, so that one that is off sets nothing.
            if dotted not in origins and not (dotted == _KILL and _is_off(value)):
                origins[dotted] = layer.name
                _plant(merged, dotted, value)
    _complete_scopes(merged)
    try:
        return Settings(**merged, origins=origins), origins
    except ValidationError as error:
        raise _bad_value(error, origins) from None


def _is_off(value: object) -> bool:
    try:
        return not _BOOL.validate_python(value)
    except ValidationError:
        return False


def shipped(kind: Literal["instructions", "prompts"]) -> Path:
    """Return the folder of the package's own files, in a wheel and in an editable install alike."""
    package = Path(__file__).resolve().parent
    bundled = package / "bundled" / kind
    return bundled if bundled.is_dir() else package.parents[1] / kind


def _layers(workspace: Path | None, arguments: Mapping[str, object]) -> Iterator[_Layer]:
    yield from _layers_over_the_workspaces(workspace, arguments)
    if workspace is not None:
        yield _workspace_layer(workspace)


def _layers_over_the_workspaces(workspace: Path | None, arguments: Mapping[str, object]) -> Iterator[_Layer]:
    yield _layer("argument", _tree(arguments))
    yield _layer("environment", _from_environment())
    yield _flag_layer("environment " + FLAG, EnvSettingsSource(_Flag)())
    if workspace is not None:
        yield _flag_layer(".env " + FLAG, _from_dotenv(workspace / ".env"))
    yield _layer("user configuration", _read_toml(user_config_path()))


def _workspace_layer(workspace: Path) -> _Layer:
    path = workspace / ".iris" / "config.toml"
    if os.path.lexists(path):
        _check_inside("the file", path, workspace)
    layer = _layer(_FROM_WORKSPACE, _read_toml(path))
    for dotted in layer.values:
        if not any(dotted == name or dotted.startswith(name + ".") for name in _WORKSPACE_MAY_SET):
            raise ForbiddenError(
                f".iris/config.toml sets {dotted!r}",
                f"a workspace's file comes with a clone and may set only {', '.join(_WORKSPACE_MAY_SET)}",
                f"move it to {shown_file(user_config_path())} in the user's configuration folder",
            )
    return layer


def _layer(name: str, tree: Mapping[str, Any]) -> _Layer:
    return _Layer(name, dict(_flattened(name, tree, Settings)))


def _flag_layer(name: str, values: Mapping[str, Any]) -> _Layer:
    flag = values.get("use_kv_cache_prompt")
    return _Layer(name, {} if flag in (None, "") else {"prompt.compact": flag})


def _from_environment() -> dict[str, Any]:
    known = {ENV_PREFIX + name.upper() for name in _fields(Settings)}
    for variable in os.environ:
        if not variable.upper().startswith(ENV_PREFIX) or variable.upper() in _OUTSIDE_SETTINGS:
            continue
        if variable.upper().split("__", 1)[0] not in known:
            raise unknown_key("environment", variable, [*sorted(known), *sorted(_OUTSIDE_SETTINGS)])
    try:
        return EnvSettingsSource(Settings, env_ignore_empty=True)()
    except SettingsError as error:
        raise InvalidArgumentError(
            f"the environment cannot be read: {error}",
            "tables and lists are JSON there; one value is set as in IRIS_KV_PROMPT__COMPACT=true",
            "mend the variable, or unset it",
        ) from None


def _from_dotenv(path: Path) -> dict[str, Any]:
    try:
        # It belongs to the project and need not be for us: what we cannot read, such as a pipe, sets nothing.
        regular_bytes(path, _MAX_FILE_BYTES)
        return DotEnvSettingsSource(_Flag, env_file=path)()
    except (OSError, ValueError):
        return {}


def _read_toml(path: Path) -> dict[str, Any]:
    return parsed_toml(path, read_configuration(path), "the file holds tables such as [scopes.task] and [prompt]")


def read_configuration(path: Path) -> bytes:
    """Return the bytes of a configuration file; none where there is no such file.

    Raises:
        InvalidArgumentError: It cannot be read, or is no regular file of at most 1 MB.
    """
    try:
        return regular_bytes(path, _MAX_FILE_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            raise _unreadable(path, "it is a link that leads nowhere") from None
        return b""
    except (OSError, ValueError) as error:
        raise _unreadable(path, getattr(error, "strerror", None) or str(error)) from None


def parsed_toml(path: Path, raw: bytes, allowed: str) -> dict[str, Any]:
    """Return what the bytes of a configuration file say; `allowed` is what its error says of the content.

    Raises:
        InvalidArgumentError: They are not TOML.
    """
    try:
        _check_depth(raw)
        return tomllib.loads(raw.decode())
    except (ValueError, RecursionError) as error:
        raise InvalidArgumentError(
            f"{shown_file(path)} is not TOML: {error}", allowed, "mend or delete the file"
        ) from None


def shown_file(path: Path) -> str:
    """Return a configuration file as people and models see it: its name and its folder's."""
    return f"{path.parent.name}/{path.name}"


def _unreadable(path: Path, why: str | None) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"{shown_file(path)} cannot be read: {why}",
        f"it is a file of at most {_MAX_FILE_BYTES:,} bytes that you may read",
        "mend its permissions or delete it",
    )


def _check_inside(named: str, path: Path, workspace: Path) -> None:
    if not Path(os.path.realpath(workspace / path)).is_relative_to(os.path.realpath(workspace)):
        raise ForbiddenError(
            f".iris/config.toml: {named} is outside the workspace",
            "a workspace's configuration stays inside the workspace, links included",
            "move it into the workspace, or set it in the user's configuration or with --instructions",
        )


def _fields(table: type[BaseModel]) -> list[str]:
    return [name for name in table.model_fields if name != "origins"]


def unknown_key(layer: str, key: str, known: list[str]) -> InvalidArgumentError:
    """Return the error for a key that a layer or a file does not have."""
    nearest = difflib.get_close_matches(key, known, 1, 0.0)
    return InvalidArgumentError(
        f"unknown setting {key!r} in {layer}", f"known are {', '.join(known)}", f"did you mean {nearest[0]!r}?"
    )


def _check_depth(raw: bytes) -> None:
    if _DEEP.search(raw):
        raise ValueError(f"a key has more than {_MAX_KEY_PARTS} parts")


def shown_value(value: object) -> str:
    """Return a value as errors show it: short, however deep or long it is."""
    return _SHOWN.repr(value)


def _bad_value(error: ValidationError, origins: Mapping[str, str]) -> InvalidArgumentError:
    errors = error.errors(include_url=False)
    paths = [".".join(map(str, each["loc"])) + "." for each in errors]
    dotted = next((name for name in origins if paths[0].startswith(name + ".")), paths[0].rstrip("."))
    # A value of several types has one message for each.
    messages = [each["msg"] for each, path in zip(errors, paths, strict=True) if path.startswith(dotted + ".")]
    return InvalidArgumentError(
        f"{dotted} in {origins.get(dotted, 'the settings')} is {_shown(dotted, errors[0]['input'])}",
        " or ".join(dict.fromkeys(messages)),
        "mend it there, or take it out to get the default",
    )


def _shown(dotted: str, value: object) -> str:
    return "not shown" if dotted in _SECRET else shown_value(value)


def _flattened(
    layer: str, tree: Mapping[str, Any], table: type[BaseModel], prefix: str = ""
) -> Iterator[tuple[str, object]]:
    """Yield a layer's values by dotted name, and refuse what no table has."""
    known = _fields(table)
    for key, value in tree.items():
        dotted = prefix + key
        if key not in known:
            raise unknown_key(layer, dotted, [prefix + name for name in known])
        inner = table.model_fields[key].annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            yield dotted, value
        elif isinstance(value, dict):
            yield from _flattened(layer, cast("dict[str, Any]", value), inner, dotted + ".")
        else:
            raise InvalidArgumentError(
                f"{dotted} in {layer} is {_shown(dotted, value)}",
                f"it is a table of {', '.join(_fields(inner))}",
                "set one of these",
            )


def _tree(arguments: Mapping[str, object]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for dotted, value in arguments.items():
        _plant(tree, dotted, value)
    return tree


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
        scopes[scope] = {**defaults[scope], **table}
