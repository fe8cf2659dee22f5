"""The errors of iris-kv: one tree, each with a code that every face translates by one table.

    IrisError
    ├── InvalidArgumentError   invalid_argument   the request cannot be right as it stands
    ├── NotFoundError          not_found          no such entry, instruction or section
    ├── ExpiredError           expired            it was there, and its TTL has run out
    ├── ConflictError          conflict           the entry is not what `if_digest` said
    ├── QuotaExceededError     quota_exceeded     the scope has no room for the value
    ├── TooLargeError          too_large          one value is over the limit
    ├── ReadOnlyError          read_only          the scope is written by the server alone
    ├── UnauthorizedError      unauthorized       no token, or none that is accepted
    ├── ForbiddenError         forbidden          a link, an owner, a path or a caller that is not trusted
    ├── CorruptError           corrupt            stored bytes do not match their digest
    ├── BusyError              busy               a lock was not to be had in time
    ├── UnavailableError       unavailable        the store cannot be opened or used now
    └── UncertainError         uncertain          a commit failed half-way: a retry is safe

The text of an error may be read by a model: ``code: what was wrong; what is allowed; what to do next``.
"""

from __future__ import annotations

from typing import ClassVar, Literal

Code = Literal[
    "invalid_argument",
    "not_found",
    "expired",
    "conflict",
    "quota_exceeded",
    "too_large",
    "read_only",
    "unauthorized",
    "forbidden",
    "corrupt",
    "busy",
    "unavailable",
    "uncertain",
]


class IrisError(Exception):
    """The base of every error that iris-kv raises on purpose.

    `wrong` says what was wrong, `allowed` what is allowed or true, `todo` what to do next;
    `str()` joins them behind the code. None of them holds a secret or a path outside the workspace.
    """

    code: ClassVar[Code]

    def __init__(self, wrong: str, allowed: str, todo: str) -> None:
        """Say what was wrong, what is allowed, and what to do next."""
        self.wrong = wrong
        self.allowed = allowed
        self.todo = todo
        super().__init__(f"{self.code}: {wrong}; {allowed}; {todo}")


class InvalidArgumentError(IrisError):
    """An argument is missing, malformed or out of range."""

    code = "invalid_argument"


class NotFoundError(IrisError):
    """Nothing stands under the name asked for."""

    code = "not_found"


class ExpiredError(IrisError):
    """The entry was there, and its TTL has run out."""

    code = "expired"


class ConflictError(IrisError):
    """The entry is not the generation that `if_digest` named."""

    code = "conflict"


class QuotaExceededError(IrisError):
    """The scope's quota has no room for the value."""

    code = "quota_exceeded"


class TooLargeError(IrisError):
    """One value is larger than its scope takes."""

    code = "too_large"


class ReadOnlyError(IrisError):
    """The scope is written by the server alone."""

    code = "read_only"


class UnauthorizedError(IrisError):
    """There is no token, or none that is accepted."""

    code = "unauthorized"


class ForbiddenError(IrisError):
    """A link, an owner, a permission, a path or a caller that is not trusted."""

    code = "forbidden"


class CorruptError(IrisError):
    """Stored bytes do not match their digest, or the index cannot be read."""

    code = "corrupt"


class BusyError(IrisError):
    """A lock was not to be had in time."""

    code = "busy"


class UnavailableError(IrisError):
    """The store cannot be opened or used now."""

    code = "unavailable"


class UncertainError(IrisError):
    """A commit failed with its outcome unknown; a retry is safe."""

    code = "uncertain"
