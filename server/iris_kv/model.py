"""The data that passes between the layers: frozen models without any I/O.

The same models are a tool's structured output, REST's JSON and the command line's `--json`.
A time is an integer of milliseconds since the epoch in Python, and RFC 3339 in UTC in JSON.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Final, Literal, Protocol

from pydantic import BaseModel, ConfigDict, PlainSerializer

Scope = Literal["system", "instructions", "project", "task", "artifacts"]
SCOPES: Final[tuple[Scope, ...]] = ("system", "instructions", "project", "task", "artifacts")
CANONICAL_SCOPES: Final[tuple[Scope, ...]] = ("system", "instructions")
"""The scopes that only the seeder writes."""

Author = Literal["canonical", "user", "agent"]
Face = Literal["mcp", "rest", "cli", "library", "seeder"]
Operation = Literal["create", "update", "delete", "expire", "clear"]

SHORT_DIGEST_CHARS: Final = len("sha256:") + 16
"""The length of a digest as models see it: 13 tokens instead of 39."""


DAY_MS: Final = 24 * 3_600_000


def day_of(at_ms: int) -> str:
    """Return a time's day in UTC, such as `2026-01-31`."""
    return f"{datetime.fromtimestamp(at_ms // 1000, UTC):%Y-%m-%d}"


def utc_text(at_ms: int) -> str:
    """Return a time as RFC 3339 in UTC with milliseconds, such as `2026-01-02T03:04:05.678Z`."""
    return f"{_second_text(at_ms // 1000)}.{at_ms % 1000:03d}Z"


@lru_cache(maxsize=256)
def _second_text(at_s: int) -> str:
    return f"{datetime.fromtimestamp(at_s, UTC):%Y-%m-%dT%H:%M:%S}"


Timestamp = Annotated[int, PlainSerializer(utc_text, return_type=str, when_used="json")]
"""Milliseconds since the epoch; RFC 3339 in JSON."""


def digest_of(value: bytes) -> str:
    """Return `sha256:` and the 64 hex digits of the value's SHA-256."""
    return "sha256:" + hashlib.sha256(value).hexdigest()


def short_digest(digest: str) -> str:
    """Return the digest as models see it: `sha256:` and 16 hex digits."""
    return digest[:SHORT_DIGEST_CHARS]


class Clock(Protocol):
    """Where the time comes from; tests hand in one that they move by hand."""

    def now_ms(self) -> int:
        """Return the wall clock's milliseconds since the epoch."""
        ...


class Watch(Protocol):
    """Is told what a workspace does, for its operator; from any thread, and quickly."""

    def read(self, scope: Scope, *, hit: bool) -> None:
        """Note that a value was asked for, and whether it was there."""
        ...

    def waited(self, seconds: float) -> None:
        """Note that a write waited for another process's lock."""
        ...

    def prompted(self, variant: str) -> None:
        """Note that a variant of the system prompt was fetched."""
        ...


class Unwatched:
    """The watch of a workspace that nobody watches."""

    def read(self, scope: Scope, *, hit: bool) -> None:
        """See `Watch`."""

    def waited(self, seconds: float) -> None:
        """See `Watch`."""

    def prompted(self, variant: str) -> None:
        """See `Watch`."""


class Frozen(BaseModel):
    """The base of the data models: immutable, with no room for unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Provenance(Frozen):
    """Who wrote an entry, and through which face."""

    author: Author
    """`canonical` for the seeder, `user` for a person, `agent` for a model."""
    face: Face


class EntryInfo(Frozen):
    """All that is known of an entry but its value."""

    scope: Scope
    key: str
    digest: str
    """`sha256:` and 64 hex digits of the value; also the HTTP ETag."""
    size: int
    """The value's length in bytes."""
    content_type: str
    created_at: Timestamp
    updated_at: Timestamp
    """When it was last written; the same as `created_at` only as long as it was never written over."""
    expires_at: Timestamp | None
    """None: never."""
    ttl_ms: int | None
    """None: never expires."""
    version: int
    """How often the entry was written since it was created, from 1; it goes on behind what is kept of a deleted one."""
    metadata: Mapping[str, str]
    provenance: Provenance


class Entry(Frozen):
    """An entry with its value, verified against its digest."""

    info: EntryInfo
    value: bytes


class Page(Frozen):
    """Some entries in key order, and where the next page starts."""

    entries: tuple[EntryInfo, ...]
    next_cursor: str | None
    """Opaque; None on the last page."""


class KeptVersion(EntryInfo):
    """A version of an entry that a write replaced or deleted, and that can be restored."""

    replaced_at: Timestamp
    replaced_by: Literal["update", "delete", "clear"]
    kept_until: Timestamp | None
    """When it goes for good; None: once the entry expires, or enough newer versions are kept. A full quota is earlier."""


class History(Frozen):
    """What an entry is, and what is kept of what it was."""

    live: EntryInfo | None
    """None: it is deleted, or expired."""
    kept: tuple[KeptVersion, ...]
    """The newest first."""


class KeptPage(Frozen):
    """Some deleted entries in key order, each as it was last, and where the next page starts."""

    entries: tuple[KeptVersion, ...]
    next_cursor: str | None
    """Opaque; None on the last page."""


class Keep(Frozen):
    """What is kept of values that are replaced or deleted; it counts in the quota and makes room first."""

    versions: int = 0
    """How many replaced versions of each entry."""
    deleted_ms: int = 0
    """For how long a deleted entry and its versions; 0: a deletion takes all with it that is kept of the entry."""


KEEP_NOTHING: Final = Keep()


class Limits(Frozen):
    """What a scope allows, decided inside the store's one atomic step."""

    quota_bytes: int
    """The sum of the sizes of the scope's values, those of kept versions included."""
    max_value_bytes: int
    """The size of one value."""
    ttl_ms: int | None
    """The TTL of an entry that names none; None: never expires."""
    renew: bool
    """Whether reading an entry starts its TTL anew."""
    keep: Keep = KEEP_NOTHING


class Usage(Frozen):
    """What a scope holds, expired entries that were not collected yet included."""

    entries: int
    bytes: int
    kept: int = 0
    """How many replaced and deleted versions are kept; they are in none of the two above."""
    kept_bytes: int = 0


class Removed(Frozen):
    """What a collection or a clear removed."""

    entries: int
    bytes: int


class Damage(Frozen):
    """One entry whose stored bytes are not what its digest says."""

    scope: Scope
    key: str
    problem: str


class Verification(Frozen):
    """What `verify` found."""

    entries: int
    """How many entries were read and hashed."""
    bytes: int
    kept: int = 0
    """How many kept versions were read and hashed, too."""
    damaged: tuple[Damage, ...]
    usage_matches: bool
    """Whether the kept usage equals the sum of the entries."""


class Rebuilt(Frozen):
    """What a rebuild of the index found."""

    entries: int
    """How many entries there are now."""
    versions: int
    """How many older or deleted generations are kept beside them, the recovered ones included."""
    recovered: int
    """How many values that nothing named are kept as deleted versions of keys such as `recovered/plan`."""
    quarantined: int
    """How many files that are no whole value were put aside."""
    damaged: tuple[Damage, ...]
    """The entries whose value is lost or damaged; they stay damaged until they are written again."""

    @property
    def found_anything(self) -> bool:
        """Tell whether there was anything to make the index from."""
        return bool(self.entries or self.versions or self.quarantined or self.damaged)


class Repair(Frozen):
    """What a repair found and did."""

    problem: str | None
    """What was wrong with the index; None: nothing."""
    rebuilt: Rebuilt | None
    """What the rebuild found; None: none was needed."""


class Archived(Frozen):
    """What a backup wrote, or a restore put back."""

    entries: int
    bytes: int
    damaged: tuple[Damage, ...]
    """The entries that are not in the archive, as their values were lost before."""


class Change(Frozen):
    """One change of the store; a `clear` has the key ``""`` and stands for all keys of its scope."""

    scope: Scope
    key: str
    op: Operation
    origin: str
    """The store handle that made it, so that a listener can skip its own."""


class Changes(Frozen):
    """The changes after a position."""

    events: tuple[Change, ...]
    next: str
    """The position to ask from next; opaque."""
    reset: bool
    """The feed was trimmed or replaced: anything may have changed."""


class Activity(Frozen):
    """When a scope was last written or read, and by whom."""

    at: Timestamp
    by: str
    """The face, and the process that it ran in, such as `mcp (pid 4711)`."""
