"""Who may do what: pure functions of a principal, a scope and an action."""

from __future__ import annotations

from typing import Literal

from iris_kv.errors import ReadOnlyError
from iris_kv.model import CANONICAL_SCOPES, Author, Face, Frozen, Provenance, Scope

Action = Literal["read", "write", "delete", "clear"]


class Principal(Frozen):
    """On whose behalf an operation runs, and through which face it came."""

    author: Author
    face: Face

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
