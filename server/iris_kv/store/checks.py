"""What every backend refuses before it changes anything, and the write it then carries out."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final, NamedTuple

from iris_kv.errors import ConflictError, InvalidArgumentError, TooLargeError
from iris_kv.globs import Glob
from iris_kv.model import EntryInfo, Limits, Provenance, Scope, short_digest
from iris_kv.store.names import check_key

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_TTL_MS: Final = 100 * 366 * 24 * 3_600_000
"""A hundred years: what RFC 3339 can still write down."""

MAX_METADATA_BYTES: Final = 64 * 1024
"""Metadata is not counted in the quota, so it is bounded by itself."""

_MAX_CONTENT_TYPE: Final = 200
_NAME: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_CONTENT_TYPE: Final = re.compile(rf"{_NAME}/{_NAME}(?: *;[ -~]*)?")
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{16,64}")


class PutRequest(NamedTuple):
    """What a put writes besides the bytes."""

    scope: Scope
    key: str
    content_type: str
    limits: Limits
    provenance: Provenance
    ttl_ms: int | None
    metadata: Mapping[str, str]
    if_digest: str | None

    @property
    def effective_ttl_ms(self) -> int | None:
        """Return the TTL asked for, else that of the limits; None: never expires."""
        return self.limits.ttl_ms if self.ttl_ms is None else self.ttl_ms


class Listing(NamedTuple):
    """Which page of which keys is asked for."""

    prefix: str
    cursor: str | None
    limit: int
    pattern: str | None

    def checked(self) -> tuple[str, Glob]:
        """Return what every key on the page starts with, and the pattern that it matches.

        Raises:
            InvalidArgumentError: The limit is under 1, a text is not text, or the pattern is too large.
        """
        check_page(self.limit, self.prefix, self.cursor or "", self.pattern or "")
        glob = Glob("*" if self.pattern is None else self.pattern)
        # Where neither starts with the other no key has both, and the pattern tells.
        return max(self.prefix, glob.prefix if glob.prefix.startswith(self.prefix) else "", key=len), glob


def check_put(request: PutRequest) -> None:
    """Refuse a put that cannot be right, whatever the store holds.

    Raises:
        InvalidArgumentError: The key, content type, TTL, metadata or `if_digest` is malformed.
    """
    check_key(request.key)
    check_if_digest(request.if_digest)
    _check_ttl(request.effective_ttl_ms)
    content_type = request.content_type
    if len(content_type) > _MAX_CONTENT_TYPE or _CONTENT_TYPE.fullmatch(content_type) is None:
        raise InvalidArgumentError(
            f"the content type {content_type[:_MAX_CONTENT_TYPE]!r}",
            f"a content type is a media type such as 'text/markdown', of at most {_MAX_CONTENT_TYPE} ASCII characters",
            "name the media type, or text/plain if there is none",
        )
    if request.metadata:
        _check_metadata(request.metadata)


def check_size(size: int, limits: Limits) -> None:
    """Refuse a value that is over its scope's limit for one value.

    Raises:
        TooLargeError: It is.
    """
    if size > limits.max_value_bytes:
        raise TooLargeError(
            f"the value has {size} bytes or more",
            f"one value of this scope has at most {limits.max_value_bytes} bytes",
            "split it over several keys, or store a file's path instead of its content",
        )


def check_if_digest(if_digest: str | None) -> None:
    """Refuse an `if_digest` that names no generation.

    Raises:
        InvalidArgumentError: It is neither empty nor `sha256:` with 16 to 64 hex digits.
    """
    if if_digest and _DIGEST.fullmatch(if_digest) is None:
        raise InvalidArgumentError(
            f"if_digest is {if_digest[:80]!r}",
            "it is 'sha256:' and 16 to 64 lower-case hex digits, or empty for 'only if absent'",
            "take the digest from a read of the entry",
        )


def check_page(limit: int, *texts: str) -> None:
    """Refuse a page of no entries, and a prefix or cursor that is not text.

    Raises:
        InvalidArgumentError: The limit is under 1, or a text has a lone surrogate.
    """
    if limit < 1:
        raise InvalidArgumentError(f"a limit of {limit}", "a page has at least 1 entry", "give a limit from 1 up")
    for text in texts:
        _check_text(text)


def check_expected(info: EntryInfo | None, if_digest: str | None, scope: Scope, key: str) -> None:
    """Refuse a write whose `if_digest` is not that of the live entry (`info`; None: absent).

    Raises:
        ConflictError: The entry is not what `if_digest` says.
    """
    if if_digest is None:
        return
    if if_digest == "":
        if info is None:
            return
    elif info is not None and info.digest.startswith(if_digest):
        return
    found = "does not exist" if info is None else f"has the digest {short_digest(info.digest)}"
    raise ConflictError(
        f"{key!r} in {scope} {found}, not {if_digest!r}",
        "a write with if_digest happens only over that digest (an empty one: only if absent)",
        "read the entry, merge your change into it, and write again with its digest",
    )


def _check_ttl(ttl_ms: int | None) -> None:
    if ttl_ms is not None and not 0 < ttl_ms <= MAX_TTL_MS:
        raise InvalidArgumentError(
            f"a TTL of {ttl_ms} ms",
            "a TTL is above 0 and at most 100 years; left out, it is the scope's",
            "give another TTL, or none",
        )


def _check_metadata(metadata: Mapping[str, str]) -> None:
    for name, value in metadata.items():
        _check_text(name)
        _check_text(value)
    size = len(json.dumps(dict(metadata), ensure_ascii=False).encode())
    if size > MAX_METADATA_BYTES:
        raise InvalidArgumentError(
            f"the metadata has {size} bytes as JSON",
            f"it has at most {MAX_METADATA_BYTES} bytes",
            "shorten it, or store it as a value",
        )


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidArgumentError(
            "the text has a lone surrogate, which is not text", "only Unicode text can be stored", "take it out"
        ) from None
