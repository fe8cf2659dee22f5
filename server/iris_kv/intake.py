"""What comes in from a caller, checked once: values, files of the workspace, TTLs, digests, content types."""

from __future__ import annotations

import errno
import math
import os
import re
import stat
from collections.abc import AsyncGenerator, AsyncIterable, Mapping
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Final

import aiofiles
from anyio import CapacityLimiter, to_thread

from iris_kv.errors import ForbiddenError, InvalidArgumentError, NotFoundError, UnavailableError
from iris_kv.json_text import JSON, is_json, json_problem
from iris_kv.model import SCOPES, Scope
from iris_kv.reading import is_text
from iris_kv.settings import HOUR_MS, MAX_TTL_HOURS
from iris_kv.slices import Wanted
from iris_kv.store.names import content_type_of

MARKDOWN: Final = "text/markdown"
PLAIN: Final = "text/plain"
BINARY: Final = "application/octet-stream"

_METADATA_BYTES: Final = 4_096
_CHUNK: Final = 1 << 20
_SPOOLED_BYTES: Final = 1 << 18
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{16,64}")
_MEDIA_TYPE: Final = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]{0,63}/[a-z0-9][a-z0-9!#$&^_.+-]{0,63}(;[ -~]{0,100})?")
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def check_scope(scope: str) -> Scope:
    """Return a scope's name.

    Raises:
        InvalidArgumentError: There is no such scope.
    """
    for known in SCOPES:
        if scope == known:
            return known
    raise InvalidArgumentError(f"unknown scope {scope!r}", f"the scopes are {', '.join(SCOPES)}", "take one of them")


def encoded(text: str) -> bytes:
    """Return a text in UTF-8.

    Raises:
        InvalidArgumentError: It has a lone surrogate.
    """
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise InvalidArgumentError(
            "the value has a lone surrogate, which is not text", "a value is Unicode text, or a file", "take it out"
        ) from None


def ttl_ms(ttl_hours: float | None) -> int | None:
    """Return a TTL in milliseconds; None takes the scope's default.

    Raises:
        InvalidArgumentError: It is not above 0, not finite, or over 100 years.
    """
    if ttl_hours is None:
        return None
    if not math.isfinite(ttl_hours) or not 0 < ttl_hours <= MAX_TTL_HOURS:
        raise InvalidArgumentError(
            f"ttl_hours is {ttl_hours:g}",
            f"it is above 0 and at most {MAX_TTL_HOURS}; fractions are allowed",
            "leave it out for the scope's default",
        )
    return max(1, int(ttl_hours * HOUR_MS))


def check_digest(digest: str | None, *, name: str = "if_digest") -> str | None:
    """Return an expected digest; `name` is the argument that it came in.

    Raises:
        InvalidArgumentError: It is neither empty nor a digest.
    """
    if digest is None or digest == "" or _DIGEST.fullmatch(digest):
        return digest
    meaning = " for 'only if absent'" if name == "if_digest" else ""
    raise InvalidArgumentError(
        f"{name} is {digest!r}",
        f"it is sha256: and 16 to 64 hex digits, or empty{meaning}",
        "take the digest of the last answer",
    )


def wanted(offset: int, max_tokens: int | None, known_digest: str | None) -> Wanted:
    """Return which slice a caller wants, and which version the caller has.

    Raises:
        InvalidArgumentError: `known_digest` is no digest.
    """
    return Wanted(offset, max_tokens, check_digest(known_digest, name="known_digest"))


def check_metadata(metadata: Mapping[str, str] | None) -> Mapping[str, str]:
    """Return an entry's metadata.

    Raises:
        InvalidArgumentError: It is over 4,096 bytes.
    """
    size = sum(len(encoded(key)) + len(encoded(value)) for key, value in (metadata or {}).items())
    if size > _METADATA_BYTES:
        raise InvalidArgumentError(
            f"the metadata has {size} bytes", f"at most {_METADATA_BYTES}", "put what is long into the value"
        )
    return metadata or {}


def typed(value: bytes, content_type: str | None) -> str:
    """Return a value's content type: the declared one, else JSON where it parses, else plain text.

    Raises:
        InvalidArgumentError: It is not a media type, or is JSON and the value does not parse.
    """
    if content_type is None:
        if not is_text(value):
            return BINARY
        return JSON if value.lstrip()[:1] in (b"{", b"[") and json_problem(value) is None else PLAIN
    declared = media_type(content_type)
    if is_json(declared):
        _check_json(value, declared)
    return declared


def media_type(content_type: str) -> str:
    """Return a declared content type as it is stored.

    Raises:
        InvalidArgumentError: It is not a media type.
    """
    declared = content_type.strip().lower()
    if not _MEDIA_TYPE.fullmatch(declared):
        raise InvalidArgumentError(
            f"content_type is {content_type!r}", "it is a media type such as text/markdown", "mend it or leave it out"
        )
    return declared


async def json_checked(chunks: AsyncIterable[bytes], declared: str, limiter: CapacityLimiter) -> AsyncGenerator[bytes]:
    """Yield the chunks of a value that is declared JSON, and raise behind the last one where it is none.

    A copy of what is large waits on the disk meanwhile, so that only as many values are in memory at
    once as the limiter lets through.

    Raises:
        InvalidArgumentError: It does not parse.
    """
    with SpooledTemporaryFile(_SPOOLED_BYTES) as copy:
        async for chunk in chunks:
            await to_thread.run_sync(_spool, copy, chunk)
            yield chunk
        await to_thread.run_sync(_check_spooled, copy, declared, limiter=limiter)


def _spool(copy: SpooledTemporaryFile[bytes], chunk: bytes) -> None:
    try:
        copy.write(chunk)
    except OSError as error:
        raise UnavailableError(
            f"there is no room to check the JSON ({error.strerror})",
            "a copy of it waits in the system's folder for temporary files until it is whole",
            "free space there, or declare text/plain",
        ) from None


def _check_spooled(copy: SpooledTemporaryFile[bytes], declared: str) -> None:
    copy.seek(0)
    _check_json(copy.read(), declared)


def _check_json(value: bytes, declared: str) -> None:
    problem = json_problem(value)
    if problem is not None:
        raise InvalidArgumentError(
            f"the value is declared {declared} and does not parse: {problem}",
            "what is declared JSON must be JSON, so that its readers can trust it",
            "mend the JSON, or declare text/plain",
        )


class WorkspaceFile:
    """An open file of the workspace, reached without following a link."""

    def __init__(self, root: Path, path: str) -> None:
        """Open the file; a relative path starts at the workspace.

        Raises:
            ForbiddenError: It is outside the workspace, in the cache, or reached through a link.
            NotFoundError: There is no such file.
        """
        self._handle, self.relative = _open_inside(root, path)
        self.size = os.fstat(self._handle).st_size

    async def content_type(self) -> str:
        """Return the content type by the file's suffix, else by its first bytes."""
        start = await to_thread.run_sync(os.pread, self._handle, _CHUNK, 0)
        by_suffix = content_type_of(self.relative.suffix)
        return by_suffix or (PLAIN if is_text(start, whole=len(start) == self.size) else BINARY)

    async def chunks(self) -> AsyncGenerator[bytes]:
        """Yield the file's bytes."""
        async with aiofiles.open(self._handle, "rb", closefd=False) as file:
            await file.seek(0)
            while chunk := await file.read(_CHUNK):
                yield chunk

    def close(self) -> None:
        """Close the file."""
        os.close(self._handle)


def _open_inside(root: Path, path: str) -> tuple[int, Path]:
    relative = _relative(root, path)
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in relative.parts[:-1]:
            inner = os.open(name, _FOLDER, dir_fd=folder)
            os.close(folder)
            folder = inner
        handle = os.open(relative.name, _FILE, dir_fd=folder)
    except OSError as error:
        raise _path_error(path, error) from None
    finally:
        os.close(folder)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise _outside(path, "is not a regular file")
    return handle, relative


def _relative(root: Path, path: str) -> Path:
    given = Path(path)
    if given.is_absolute():
        for base in (root, root.resolve()):
            if given.is_relative_to(base):
                given = given.relative_to(base)
                break
        else:
            raise _outside(path, "is outside the workspace")
    if not given.parts or ".." in given.parts or "\0" in path or not _is_encodable(path):
        raise _outside(path, "does not name a file inside the workspace")
    if given.parts[0] == ".iris":
        raise _outside(path, "is iris-kv's own")
    return given


def _is_encodable(path: str) -> bool:
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return False
    return True


def _path_error(path: str, error: OSError) -> Exception:
    if error.errno in (errno.ELOOP, errno.ENOTDIR):
        return _outside(path, "goes through a link, or through what is not a folder")
    if error.errno == errno.ENOENT:
        return NotFoundError(
            f"no file {path!r} in the workspace", "from_path starts at the workspace", "check the path"
        )
    return _outside(path, f"cannot be read ({error.strerror})")


def _outside(path: str, problem: str) -> ForbiddenError:
    return ForbiddenError(
        f"from_path {path!r} {problem}",
        "it is a regular file inside the workspace, reached without links, and not in .iris",
        "name such a file, or pass the content as value",
    )
