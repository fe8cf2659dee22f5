"""Who gets the compact prompt: phases, sticky buckets, an allow list and a kill switch.

First that says something: the kill switch and the flag (both full), the fetch's argument, the allow
list, the phase. A subject's bucket comes from SHA-256 alone, so it is the same in every process, on
every machine and for good, and a higher percentage never takes compact away from anybody.
"""

from __future__ import annotations

import hashlib
import logging
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, get_args

from pydantic import Strict, ValidationError

from iris_kv.errors import InvalidArgumentError
from iris_kv.model import Frozen
from iris_kv.settings import (
    FLAG,
    Percent,
    Phase,
    Settings,
    parsed_toml,
    read_configuration,
    shown_file,
    shown_value,
    unknown_key,
    user_config_path,
)

Variant = Literal["compact", "full"]
VARIANTS: Final[tuple[Variant, ...]] = get_args(Variant)

Reason = Literal["kill_switch", "flag", "argument", "allow_list", "phase_off", "phase_percent", "phase_on"]
REASONS: Final[tuple[Reason, ...]] = get_args(Reason)

FILE: Final = "rollout.toml"
BUCKETS: Final = 1_000_000
"""So that a percentage counts to its fourth decimal."""

_DEFAULTS: Final = "the defaults"
_KEYS: Final[Mapping[str, str]] = {
    "phase": "'off', 'percent' or 'on'",
    "percent": "a number from 0 to 100",
    "allow": 'a list of subjects, such as ["alice"]',
    "kill": "true or false",
}
_KEY_OF: Final = {"kill_switch": "kill", "allow_list": "allow"}
_MAY_KILL: Final = re.compile(r"(?<![a-z])kil+\w*+[\"']?+\s*+[=:]?+\s*+(?!false\b)", re.IGNORECASE)

_log = logging.getLogger(__name__)


class Decision(NamedTuple):
    """Which variant a subject gets, and why."""

    variant: Variant
    reason: Reason


class Rollout(Frozen):
    """A rollout at one moment."""

    phase: Phase = "on"
    percent: float = 0
    """The share of subjects that get compact in the phase `percent`, from 0 to 100."""
    allow: tuple[str, ...] = ()
    """The subjects that get compact in every phase."""
    kill: bool = False
    origins: Mapping[str, str] = {}
    """Which layer or file said each of these, by name."""

    def origin(self, key: str) -> str:
        """Return which layer or file said one of these."""
        return self.origins.get(key, _DEFAULTS)

    def decide(self, *, flag: bool, argument: Variant | None, subject: str | None) -> Decision:
        """Return what a subject gets; one that is not known gets no share of a percentage."""
        if self.kill:
            return Decision("full", "kill_switch")
        if not flag:
            return Decision("full", "flag")
        if argument is not None:
            return Decision(argument, "argument")
        if subject in self.allow:
            return Decision("compact", "allow_list")
        if self.phase == "percent":
            return Decision("compact" if self._reaches(subject) else "full", "phase_percent")
        return Decision("full", "phase_off") if self.phase == "off" else Decision("compact", "phase_on")

    def _reaches(self, subject: str | None) -> bool:
        if subject is None:
            return self.percent == 100
        return bucket(subject) < round(self.percent * BUCKETS / 100)


class Subject(NamedTuple):
    """Who fetches a prompt."""

    source: Literal["configured", "argument", "workspace", "unknown"]
    """What named it; `workspace` is the id of the workspace."""
    name: str | None
    """None where it is unknown: nobody named one, and the store cannot answer."""


def bucket(subject: str) -> int:
    """Return a subject's bucket, from 0 to 999,999: the first eight bytes of a SHA-256, big-endian, modulo."""
    return int.from_bytes(_sha256("iris-kv rollout", subject)[:8], "big") % BUCKETS


def subject_hash(subject: str) -> str:
    """Return the 16 hex digits that stand for a subject where exposures are counted; the bucket does not follow."""
    return _sha256("iris-kv exposure", subject)[:8].hex()


def _sha256(purpose: str, subject: str) -> bytes:
    return hashlib.sha256(f"{purpose}\0{subject}".encode("utf-8", "surrogatepass")).digest()


def check_variant(variant: str) -> Variant:
    """Return a variant's name.

    Raises:
        InvalidArgumentError: There is no such variant.
    """
    for known in VARIANTS:
        if variant == known:
            return known
    raise InvalidArgumentError(f"unknown prompt variant {variant!r}", "compact or full", "take one of the two")


class Choice(Frozen):
    """Which variant a fetch of the prompt gets, and why."""

    variant: Variant
    reason: Reason
    origin: str
    """The layer or file that said so, such as `environment` or `prompts/rollout.toml`; `""` for an argument."""
    note: str
    """What whoever asked should know besides; `""`: nothing."""

    @property
    def shown(self) -> str:
        """The reason and where it comes from, for people."""
        return f"{self.reason} in {self.origin}" if self.origin else self.reason


class LiveRollout:
    """The rollout as settings and files say now, and the flag over it.

    The files are read at each choice. That takes 40 µs for each instead of 3 µs for a look at its times,
    and sees an edit within one tick of the file system's clock, too. A broken edit keeps what the file
    said before. One that may mean `kill`, or a file that is broken at the first look, kills: full
    prompts are what everybody had before, so that they are the safe side.
    """

    def __init__(self, settings: Settings, files: Sequence[Path]) -> None:
        """Read the files for the first time; earlier ones win, key by key, and settings win over all."""
        self._settings = settings.prompt
        self._origins = settings.origins
        self._reading = threading.Lock()
        self._files = tuple(_File(path) for path in dict.fromkeys(files))
        default = _DEFAULTS if settings.prompt.compact else "the settings"
        self._flag = settings.prompt.compact, settings.origins.get("prompt.compact", default)
        self.read()

    @property
    def flag(self) -> tuple[bool, str]:
        """Whether anybody gets compact without asking for it, and which layer says so."""
        return self._flag

    def set_flag(self, *, compact: bool) -> None:
        """Change the flag; the next choice follows it."""
        self._flag = compact, "set while running"

    @property
    def errors(self) -> tuple[str, ...]:
        """What is wrong with the files, as of the last look."""
        return tuple(file.error for file in self._files if file.error is not None)

    def read(self) -> Rollout:
        """Return the rollout as the files say now."""
        with self._reading:
            self._files = tuple(_looked_at(file) for file in self._files)
            return _merged(dict(self._said()))

    def choose(self, argument: Variant | None, subject: str | None) -> Choice:
        """Return which variant a fetch gets now."""
        rollout = self.read()
        flag, layer = self._flag
        variant, reason = rollout.decide(flag=flag, argument=argument, subject=subject)
        said_by = {"argument": "", "flag": layer}
        origin = said_by[reason] if reason in said_by else rollout.origin(_KEY_OF.get(reason, "phase"))
        note = _note(reason, argument, rollout.phase)
        return Choice(variant=variant, reason=reason, origin=origin, note=note)

    def _said(self) -> Iterator[tuple[str, tuple[object, str]]]:
        """Yield each key with what was said of it and where; of a key's, the last counts."""
        for file in reversed(self._files):
            for key, value in file.values.items():
                yield key, (value, shown_file(file.path))
        for key in _KEYS:
            value = getattr(self._settings, key)
            if value is not None and value is not False:
                yield key, (value, self._origins.get(f"prompt.{key}", "the settings"))


def rollout_files(source: Path) -> tuple[Path, ...]:
    """Return where rollouts are looked for: the user's own file, and the one beside the prompt's source."""
    return user_config_path().with_name(FILE), source.with_name(FILE)


class _File(NamedTuple):
    path: Path
    raw: bytes | None = None
    """What was read last; None: nothing could be."""
    values: Mapping[str, object] = {}
    """What is in force of it, a `kill` that is off left out: it does not undo another's."""
    error: str | None = None
    is_new: bool = True
    """Whether it was never looked at."""


class _Content(Frozen):
    phase: Phase | None = None
    percent: Annotated[Percent, Strict()] | None = None
    allow: tuple[str, ...] | None = None
    kill: bool | None = None


def _looked_at(file: _File) -> _File:
    raw: bytes | None = None
    try:
        raw = read_configuration(file.path)
        if raw == file.raw:
            return file
        return _File(file.path, raw, dict(_checked(file.path, raw)), is_new=False)
    except InvalidArgumentError as error:
        # What cannot be read may be a kill as well as anything.
        values = {**file.values, "kill": True} if file.is_new or raw is None or _may_kill(raw) else file.values
        in_force = "full is served, as it may mean kill" if "kill" in values else "the last good one holds"
        told = f"{error}; until then {in_force}"
        if told != file.error:
            _log.error("the rollout is broken: %s", told)
        return _File(file.path, raw, values, told, is_new=False)


def _may_kill(raw: bytes) -> bool:
    lines = raw.replace(b"\0", b"").decode(errors="replace").splitlines()
    return any(_MAY_KILL.search(line.split("#")[0]) for line in lines)


def _checked(path: Path, raw: bytes) -> Iterator[tuple[str, object]]:
    tree = parsed_toml(path, raw, f"the file sets {', '.join(_KEYS)}")
    for key in tree:
        if key not in _KEYS:
            raise unknown_key(shown_file(path), key, list(_KEYS))
    try:
        content = _Content.model_validate(tree)
    except ValidationError as error:
        key = str(error.errors()[0]["loc"][0])
        raise InvalidArgumentError(
            f"{key} in {shown_file(path)} is {shown_value(tree[key])}", f"it is {_KEYS[key]}", "mend the file"
        ) from None
    for key, value in content:
        if value is not None and value is not False:
            yield key, value


def _merged(said: Mapping[str, tuple[object, str]]) -> Rollout:
    values: dict[str, Any] = {key: value for key, (value, _) in said.items()}
    return Rollout(**values, origins={key: origin for key, (_, origin) in said.items()})


def _note(reason: Reason, argument: Variant | None, phase: Phase) -> str:
    if reason == "argument" and argument == "full" and phase == "on":
        return (
            "full still works and is deprecated, as compact is rolled out to all;"
            f" to go back to full for every fetch, set {FLAG}=false and restart the server"
        )
    if reason == "kill_switch" and argument == "compact":
        return "compact was asked for, but the kill switch gives everybody full; `iris-kv rollout status` says where"
    if reason == "flag" and argument == "compact":
        return f"compact was asked for, but the flag gives everybody full; set {FLAG}=true to have the choice"
    return ""
