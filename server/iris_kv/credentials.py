"""Static bearer tokens, kept in the user's configuration folder as SHA-256 only."""

from __future__ import annotations

import difflib
import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
import stat
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final, Literal, NamedTuple

from pydantic import Field, ValidationError

from iris_kv.errors import (
    ConflictError,
    ForbiddenError,
    InvalidArgumentError,
    NotFoundError,
    UnauthorizedError,
    UnavailableError,
)
from iris_kv.model import Clock, Frozen, Timestamp
from iris_kv.policy import Right
from iris_kv.settings import shown_file, user_config_path

PREFIX: Final = "ikv_"
"""What every token starts with, so that people and scanners of secrets recognise one."""
TOKEN: Final = re.compile(PREFIX + "[A-Za-z0-9_-]{43}")
"""The prefix and 256 random bits."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MAX_FILE_BYTES: Final = 16_000_000
_DAY_MS: Final = 24 * 3_600_000


class StaticToken(Frozen):
    """All that is known of a token but the token."""

    name: str
    rights: tuple[Right, ...]
    sandboxes: tuple[str, ...] | None
    """The ids of the sandboxes that it may touch; None: every one."""
    created_at: Timestamp
    expires_at: Timestamp | None
    """None: never."""


class _Kept(Frozen):
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    token: StaticToken


class _File(Frozen):
    version: Literal[1] = 1
    tokens: tuple[_Kept, ...] = ()


class _Read(NamedTuple):
    state: tuple[int, ...] | None
    """What the file's metadata were; None: there was no file."""
    tokens: tuple[_Kept, ...]


def token_file_path() -> Path:
    """Return where the tokens are kept: beside the user's configuration."""
    return user_config_path().with_name("tokens.json")


class TokenFile:
    """The static tokens of one user. Every method blocks on the file system."""

    def __init__(self, path: Path, clock: Clock) -> None:
        """Use the file at `path`, which need not exist."""
        self._path = path
        self._clock = clock
        self._read = _Read(None, ())

    def tokens(self) -> tuple[StaticToken, ...]:
        """Return all tokens, expired ones included, by name.

        Raises:
            ForbiddenError: Others than its user could have written the file.
            UnavailableError: It cannot be read.
        """
        return tuple(sorted((each.token for each in self._current()), key=lambda token: token.name))

    def find(self, token: str) -> StaticToken:
        """Return what is known of a token; a token that was revoked a moment ago is not found.

        Raises:
            UnauthorizedError: There is no such token, or it has expired.
            ForbiddenError: See `tokens`.
            UnavailableError: See `tokens`.
        """
        digest = _digest(token)
        found: StaticToken | None = None
        for each in self._current():
            # All are compared, so that the time says nothing of which one it was.
            if hmac.compare_digest(each.sha256, digest):
                found = each.token
        if found is None:
            raise UnauthorizedError(
                "the token is not known or was revoked",
                "a token is sent as it was printed by `iris-kv token new`",
                "ask an administrator of this server for a new one",
            )
        if found.expires_at is not None and found.expires_at <= self._clock.now_ms():
            raise UnauthorizedError(
                f"the token {found.name!r} has expired",
                "a token is valid until its expiry",
                "ask an administrator of this server for a new one",
            )
        return found

    def create(
        self, name: str, rights: tuple[Right, ...], sandboxes: tuple[str, ...] | None, expires_days: float | None = None
    ) -> tuple[str, StaticToken]:
        """Make a token; it is returned here and can never be had again.

        Raises:
            InvalidArgumentError: The name is malformed, there is no right, or the expiry is not ahead.
            ConflictError: The name is taken.
            ForbiddenError: See `tokens`.
            UnavailableError: The file cannot be read or written.
        """
        _check(name, rights, expires_days)
        now_ms = self._clock.now_ms()
        expires_at = None if expires_days is None else now_ms + int(expires_days * _DAY_MS)
        made = StaticToken(name=name, rights=rights, sandboxes=sandboxes, created_at=now_ms, expires_at=expires_at)
        token = PREFIX + secrets.token_urlsafe(32)

        def added(kept: tuple[_Kept, ...]) -> tuple[_Kept, ...]:
            if any(each.token.name == name for each in kept):
                raise ConflictError(
                    f"there is a token {name!r}", "a name is used once", f"take another name, or revoke {name!r} first"
                )
            return (*kept, _Kept(sha256=_digest(token), token=made))

        self._change(added)
        return token, made

    def revoke(self, name: str) -> StaticToken:
        """Remove a token; servers refuse it from their next request on.

        Raises:
            NotFoundError: There is none of this name; the text gives the nearest.
            ForbiddenError: See `tokens`.
            UnavailableError: The file cannot be read or written.
        """
        revoked: list[StaticToken] = []

        def without(kept: tuple[_Kept, ...]) -> tuple[_Kept, ...]:
            revoked.extend(each.token for each in kept if each.token.name == name)
            if not revoked:
                raise _no_token(name, [each.token.name for each in kept])
            return tuple(each for each in kept if each.token.name != name)

        self._change(without)
        return revoked[0]

    def _current(self) -> tuple[_Kept, ...]:
        """Return what the file holds now; it is read again only if it changed."""
        try:
            state = _state(os.stat(self._path))
        except (FileNotFoundError, NotADirectoryError):
            state = None
        except OSError as error:
            raise self._unusable("read", error) from None
        if state != self._read.state:
            self._read = self._loaded()
        return self._read.tokens

    def _loaded(self) -> _Read:
        try:
            with open(self._path, "rb", opener=_open_at_once) as file:
                found = os.fstat(file.fileno())
                self._check_trusted(found)
                return _Read(_state(found), _File.model_validate_json(file.read(_MAX_FILE_BYTES)).tokens)
        except (FileNotFoundError, NotADirectoryError):
            return _Read(None, ())
        except (OSError, ValidationError) as error:
            raise self._unusable("read", error) from None

    def _check_trusted(self, found: os.stat_result) -> None:
        is_ours = found.st_uid in (os.geteuid(), 0) and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if not is_ours or not stat.S_ISREG(found.st_mode):
            raise ForbiddenError(
                f"{shown_file(self._path)} could have been written by another user",
                "it is a file of mode 0600 that belongs to the user who runs the server",
                "look at what it grants with `iris-kv token list`, and mend its owner and its mode",
            )

    def _change(self, change: Callable[[tuple[_Kept, ...]], tuple[_Kept, ...]]) -> None:
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _locked(self._path.with_suffix(".lock")):
                changed = _File(tokens=change(self._loaded().tokens))
                _replace(self._path, json.dumps(changed.model_dump(), indent=2).encode() + b"\n")
        except OSError as error:
            raise self._unusable("written", error) from None

    def _unusable(self, what: str, error: Exception) -> UnavailableError:
        # What a file that does not parse holds is not repeated: it may hold what is no hash.
        why = error.strerror if isinstance(error, OSError) else "it is not what `iris-kv token` writes"
        return UnavailableError(
            f"{shown_file(self._path)} cannot be {what}: {why}",
            "the static tokens are kept there, and no such token is accepted meanwhile",
            "mend the file or its permissions, or delete it and make new tokens",
        )


def _check(name: str, rights: tuple[Right, ...], expires_days: float | None) -> None:
    if _NAME.fullmatch(name) is None:
        raise InvalidArgumentError(
            f"the name {name[:80]!r} is malformed",
            "1 to 64 of A-Z, a-z, 0-9, '.', '_' and '-', starting with a letter or a digit",
            "mend the name",
        )
    if not rights:
        raise InvalidArgumentError("the token has no scope", "kv:read, kv:write and kv:admin", "name at least one")
    if expires_days is not None and not 0 < expires_days <= 36_500:
        raise InvalidArgumentError(
            f"the expiry is {expires_days:g} days", "more than 0, at most 36,500", "mend it, or omit it for no expiry"
        )


def _no_token(name: str, names: list[str]) -> NotFoundError:
    near = difflib.get_close_matches(name, names, 5, 0.0)
    known = f"the nearest names are {', '.join(near)}" if near else "there are no tokens"
    return NotFoundError(f"no token {name[:80]!r}", known, "see `iris-kv token list`")


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def _state(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


@contextmanager
def _locked(path: Path) -> Generator[None]:
    """Keep other processes from changing the file between reading and writing."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(handle)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
