"""What the store in memory keeps of replaced and deleted values: the plain model of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from iris_kv.model import SCOPES, Entry, Keep, KeptVersion, Scope
from iris_kv.store.base import MAX_DELETED

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Literal


class Held(NamedTuple):
    """One kept version with its value."""

    entry: Entry
    version: KeptVersion
    seq: int
    """Rises from one write to the next; what one clear deletes has the same."""

    @property
    def goes_with_entry(self) -> bool:
        """Whether it is a replaced version, to go once its entry expires."""
        return self.version.replaced_by == "update" and self.version.kept_until is None


class MemoryVersions:
    """Kept versions of all scopes."""

    def __init__(self) -> None:
        """Start with none."""
        self._held: dict[Scope, list[Held]] = {scope: [] for scope in SCOPES}
        self._seq = 0

    def of(self, scope: Scope, key: str) -> list[Held]:
        """Return what is kept of a key, the newest first."""
        return [each for each in reversed(self._held[scope]) if each.version.key == key]

    def all(self, scope: Scope) -> list[Held]:
        """Return what is kept in a scope, the oldest first."""
        return self._held[scope]

    def size(self, scope: Scope) -> int:
        """Return the sum of the sizes of what is kept in a scope."""
        return sum(each.version.size for each in self._held[scope])

    def replace(self, entry: Entry, keep: Keep, now: int) -> None:
        """Keep a live entry that is about to be replaced."""
        scope, key = entry.info.scope, entry.info.key
        if keep.versions:
            self._seq += 1
            self._hold([entry], "update", now, None)
        replaced = [each for each in self.of(scope, key) if each.version.replaced_by == "update"]
        self.drop(scope, replaced[keep.versions :])

    def delete(self, scope: Scope, live: Iterable[Entry], keep: Keep, now: int, op: Literal["delete", "clear"]) -> None:
        """Keep live entries that are about to be deleted, and their versions."""
        deleted = sorted(live, key=lambda entry: entry.info.key)
        keys = {entry.info.key for entry in deleted}
        if not keep.deleted_ms:
            self.drop(scope, [each for each in self._held[scope] if each.version.key in keys or op == "clear"])
            return
        until = now + keep.deleted_ms
        self._held[scope] = [
            _going(each, until) if each.version.key in keys and each.goes_with_entry else each
            for each in self._held[scope]
        ]
        self._seq += 1
        self._hold(deleted, op, now, until)
        for key in keys:
            ended = [each for each in self.of(scope, key) if each.version.replaced_by != "update"]
            self.drop(scope, ended[MAX_DELETED:])

    def _hold(
        self, entries: Iterable[Entry], op: Literal["update", "delete", "clear"], now: int, until: int | None
    ) -> None:
        for entry in entries:
            version = KeptVersion(**dict(entry.info), replaced_at=now, replaced_by=op, kept_until=until)
            self._held[entry.info.scope].append(Held(entry, version, self._seq))

    def take_out(self, held: Held, *, revives: bool) -> None:
        """Keep a version no longer, as it becomes the entry again."""
        scope, key = held.version.scope, held.version.key
        self.drop(scope, [held])
        if revives:
            self._held[scope] = [
                _going(each, None) if each.version.key == key and each.version.replaced_by == "update" else each
                for each in self._held[scope]
            ]

    def end_versions(self, scope: Scope, key: str) -> None:
        """Keep the versions of an entry no longer, as it expires."""
        self.drop(scope, [each for each in self.of(scope, key) if each.goes_with_entry])

    def end_due(self, scope: Scope, now: int) -> None:
        """Keep no longer what was kept long enough."""
        self.drop(scope, [each for each in self._held[scope] if is_over(each.version.kept_until, now)])

    def make_room(self, scope: Scope, live_bytes: int, quota_bytes: int) -> None:
        """Keep the oldest no longer, until all that the scope holds is within its quota."""
        while self._held[scope] and live_bytes + self.size(scope) > quota_bytes:
            self.drop(scope, self._held[scope][:1])

    def drop(self, scope: Scope, held: Iterable[Held]) -> None:
        """Keep some no longer."""
        gone = {id(each) for each in held}
        self._held[scope] = [each for each in self._held[scope] if id(each) not in gone]


def is_over(at_ms: int | None, now: int) -> bool:
    """Tell whether a time has come; None never does."""
    return at_ms is not None and at_ms <= now


def _going(held: Held, until: int | None) -> Held:
    return held._replace(version=held.version.model_copy(update={"kept_until": until}))
