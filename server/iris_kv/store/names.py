"""Keys and the names of their value files.

A key is data, never a path: any text of 1 to 512 bytes without control characters. Its value's
file is called `<slug>__<keyhash8>-<seq36>.<ext>`: readable, at most 80 bytes, unique even on
file systems that ignore case or normalise, and never used twice, as the number only grows.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from typing import TYPE_CHECKING, Final

from iris_kv.errors import InvalidArgumentError

if TYPE_CHECKING:
    from iris_kv.model import Scope

MAX_KEY_BYTES: Final = 512
TEMP_PREFIX: Final = ".tmp-"
MANIFEST: Final = ".index.json"

_SLUG_CHARS: Final = 48
_DIGITS: Final = "0123456789abcdefghijklmnopqrstuvwxyz"
_OTHER: Final = "bin"
_EXTENSIONS: Final = {
    "text/plain": "txt",
    "text/markdown": "md",
    "text/html": "html",
    "text/css": "css",
    "text/csv": "csv",
    "text/xml": "xml",
    "text/yaml": "yaml",
    "text/javascript": "js",
    "text/x-python": "py",
    "application/json": "json",
    "application/xml": "xml",
    "application/yaml": "yaml",
    "application/pdf": "pdf",
    "application/zip": "zip",
    "image/gif": "gif",
    "image/jpeg": "jpg",
    "image/png": "png",
    "image/svg+xml": "svg",
    "image/webp": "webp",
}


def check_key(key: str) -> None:
    """Refuse a text that cannot be a key.

    Raises:
        InvalidArgumentError: It is empty, over 512 bytes, or has control characters or lone surrogates.
    """
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise _bad_key("has a lone surrogate, which is not text") from None
    if size == 0:
        raise _bad_key("is empty")
    if size > MAX_KEY_BYTES:
        raise _bad_key(f"has {size} bytes")
    if not key.isprintable() and any(unicodedata.category(char) == "Cc" for char in key):
        raise _bad_key(f"{key!r} has a control character")


def value_file(scope: Scope, key: str, seq: int, content_type: str) -> str:
    """Return the file name of the generation `seq` of a key."""
    return f"{slug(key)}__{_key_hash(scope, key)}-{base36(seq)}.{extension(content_type)}"


def key_hash_of(file: str) -> str:
    """Return the hash of the key in a value file's name."""
    return file.rpartition("__")[2][:8]


def seq_of(file: str) -> int | None:
    """Return the generation number in a value file's name; None for any other name."""
    found = re.fullmatch(r"[a-z0-9-]+__[0-9a-f]{8}-([0-9a-z]{1,13})\.[a-z0-9]+", file)
    return int(found[1], 36) if found else None


def slug(key: str) -> str:
    """Return the readable part of a file name: lower-case ASCII letters, digits and `-`."""
    plain = unicodedata.normalize("NFKD", key).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain)[:_SLUG_CHARS].strip("-") or "key"


def base36(number: int) -> str:
    """Return a number from 0 up in base 36."""
    digits = ""
    while True:
        number, digit = divmod(number, 36)
        digits = _DIGITS[digit] + digits
        if number == 0:
            return digits


def extension(content_type: str) -> str:
    """Return the file extension for a content type; `bin` for those not on the list."""
    return _EXTENSIONS.get(content_type.split(";", 1)[0].strip().lower(), _OTHER)


def content_type_of(suffix: str) -> str | None:
    """Return the content type of a file's suffix such as `.md`; None for one not on the list."""
    wanted = {"jpeg": "jpg", "htm": "html", "yml": "yaml", "markdown": "md", "text": "txt", "log": "txt"}
    bare = suffix.removeprefix(".").lower()
    return next((kind for kind, name in _EXTENSIONS.items() if name == wanted.get(bare, bare)), None)


def _key_hash(scope: Scope, key: str) -> str:
    return hashlib.sha256(f"{scope}\0{key}".encode()).hexdigest()[:8]


def _bad_key(problem: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"the key {problem}",
        f"a key is 1 to {MAX_KEY_BYTES} bytes of UTF-8 without control characters",
        "choose another key",
    )
