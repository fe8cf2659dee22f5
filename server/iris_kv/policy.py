"""Who may do what: pure functions of a principal, a scope or a right, and an action."""

from __future__ import annotations

from typing import Final, Literal, get_args

from iris_kv.errors import ForbiddenError, ReadOnlyError
from iris_kv.model import CANONICAL_SCOPES, Author, Face, Frozen, Provenance, Scope

Action = Literal["read", "write", "delete", "clear"]
Right = Literal["kv:read", "kv:write", "kv:admin"]
"""What a token allows: `kv:admin` includes the others."""
RIGHTS: Final[tuple[Right, ...]] = get_args(Right)


class Principal(Frozen):
    """On whose behalf an operation runs, and through which face it came."""

    author: Author
    face: Face
    name: str = ""
    """The token's name, for the log; `""` where nobody had to give one."""
    rights: frozenset[Right] = frozenset(RIGHTS)
    sandboxes: frozenset[str] | None = None
    """The ids of the sandboxes that it may touch; None: every one."""

    @property
    def provenance(self) -> Provenance:
        """Return what an entry that this principal writes says of its origin."""
        return Provenance(author=self.author, face=self.face)


SEEDER = Principal(author="canonical", face="seeder")


def check_access(principal: Principal, scope: Scope, action: Action) -> None:
    """Refuse an action that the principal may not take on the scope.

    Raises:
        ReadOnlyError: Anyone but the seeder writes to `system` or `instructions`.
    """
    if action == "read" or scope not in CANONICAL_SCOPES or principal.author == "canonical":
        return
    raise ReadOnlyError(
        f"the scope {scope!r} cannot be changed ({action})",
        "it mirrors the instruction and prompt files, which change as files under a person's eyes; "
        "project, task and artifacts can be written",
        "edit the Markdown file in .iris/instructions, or write to another scope",
    )


def check_right(principal: Principal, right: Right, what: str) -> None:
    """Refuse what a token does not allow; `what` names the operation.

    Raises:
        ForbiddenError: The right is missing; the text names it.
    """
    if right not in principal.rights and "kv:admin" not in principal.rights:
        raise ForbiddenError(
            f"{what} needs the scope {right}",
            f"this token has {', '.join(sorted(principal.rights)) or 'none'}",
            "use a token with that scope",
        )


def may_touch(principal: Principal, sandbox: str) -> bool:
    """Tell whether a principal may touch a sandbox at all; where not, it is as if there were none."""
    return principal.sandboxes is None or sandbox in principal.sandboxes
