"""The URIs of resources. A key is percent-encoded whole, so that every key has one URI."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple
from urllib.parse import parse_qs, quote, unquote

from iris_kv.errors import InvalidArgumentError, NotFoundError
from iris_kv.model import short_digest

SCHEME: Final = "iris-kv://"
STATS: Final = SCHEME + "stats"
INSTRUCTION_TEMPLATE: Final = SCHEME + "instructions/{tag}{?section,offset,max_tokens,known_digest}"
ENTRY_TEMPLATE: Final = SCHEME + "cache/{scope}/{key}{?offset,max_tokens,known_digest}"
PROMPT_TEMPLATE: Final = SCHEME + "prompt/{variant}{?offset,max_tokens,known_digest}"

_PARAMETERS: Final = {
    "instructions": ("section", "offset", "max_tokens", "known_digest"),
    "cache": ("offset", "max_tokens", "known_digest"),
    "prompt": ("offset", "max_tokens", "known_digest"),
    "stats": (),
}

Kind = Literal["instructions", "cache", "prompt", "stats"]


class Target(NamedTuple):
    """What a URI names: `name` is a tag, a key or a variant; `scope` only for an entry."""

    kind: Kind
    name: str = ""
    scope: str = ""
    section: str | None = None
    offset: int = 0
    max_tokens: int | None = None
    known_digest: str | None = None

    @property
    def uri(self) -> str:
        """Return the one canonical URI of the resource, without parameters."""
        if self.kind == "stats":
            return STATS
        if self.kind == "cache":
            return entry_uri(self.scope, self.name)
        return f"{SCHEME}{self.kind}/{quote(self.name, safe='')}"


def entry_uri(scope: str, key: str) -> str:
    """Return the URI of an entry."""
    return f"{SCHEME}cache/{scope}/{quote(key, safe='')}"


def instruction_uri(tag: str) -> str:
    """Return the URI of an instruction."""
    return f"{SCHEME}instructions/{tag}"


def prompt_uri(variant: str) -> str:
    """Return the URI of a rendered prompt."""
    return f"{SCHEME}prompt/{variant}"


def continued(target: Target, offset: int, digest: str) -> str:
    """Return the URI of what follows in the same version of a resource."""
    pairs = [("section", target.section), ("offset", offset), ("max_tokens", target.max_tokens)]
    pairs.append(("known_digest", short_digest(digest)))
    shown = (f"{name}={quote(str(value), safe='')}" for name, value in pairs if value is not None)
    return f"{target.uri}?{'&'.join(shown)}"


def parse(uri: str) -> Target:
    """Return what a URI names.

    Raises:
        NotFoundError: It is none of ours.
        InvalidArgumentError: A parameter is unknown or not a number.
    """
    path, _, query = uri.partition("?")
    kind, _, rest = path.removeprefix(SCHEME).partition("/")
    parameters = _parameters(kind, query) if uri.startswith(SCHEME) else {}
    offset = _number("offset", parameters.get("offset", "0"))
    max_tokens = _number("max_tokens", parameters["max_tokens"]) if "max_tokens" in parameters else None
    slice_ = (offset, max_tokens, parameters.get("known_digest"))
    if uri.startswith(SCHEME):
        if kind == "stats" and not rest:
            return Target("stats")
        if kind == "cache" and "/" in rest:
            scope, _, key = rest.partition("/")
            return Target("cache", _decoded(key), _decoded(scope), None, *slice_)
        if kind == "instructions" and rest:
            return Target("instructions", _decoded(rest), "", parameters.get("section"), *slice_)
        if kind == "prompt" and rest:
            return Target("prompt", _decoded(rest), "", None, *slice_)
    raise NotFoundError(
        f"no resource {uri[:200]!r}",
        f"resources are {INSTRUCTION_TEMPLATE}, {ENTRY_TEMPLATE}, {PROMPT_TEMPLATE} and {STATS}",
        "list the resources and take one of them",
    )


def _parameters(kind: str, query: str) -> dict[str, str]:
    known = _PARAMETERS.get(kind, ())
    found = {name: values[-1] for name, values in parse_qs(query, keep_blank_values=True).items()}
    for name in found:
        if name not in known:
            raise InvalidArgumentError(
                f"unknown parameter {name!r} of {kind if known else repr(kind[:40])}",
                f"known are {', '.join(known) or 'none'}; a ? in a key is written %3F",
                "mend the URI",
            )
    return found


def _number(name: str, text: str) -> int:
    if text.isdecimal() and text.isascii() and len(text) <= 12:
        return int(text)
    raise InvalidArgumentError(f"{name} is {text[:40]!r}", "it is a whole number from 0 up", "mend the URI")


def _decoded(text: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise InvalidArgumentError(
            f"{text[:100]!r} is not percent-encoded UTF-8", "every byte of a key is UTF-8", "mend the URI"
        ) from None
