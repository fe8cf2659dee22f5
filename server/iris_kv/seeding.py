"""Mirrors the library and the rendered prompts into the store, and decides what is served.

The process's own library decides: a stored copy is served only where its digest is the library's.
A process seeds only what is absent or came from the same source, and never removes what another
source wrote: windows may run with other folders or other versions of the package.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from anyio import to_thread

from iris_kv.errors import ConflictError, IrisError, NotFoundError
from iris_kv.instructions import Instruction, InstructionLibrary
from iris_kv.model import EntryInfo, Frozen, Limits, Scope, digest_of
from iris_kv.policy import SEEDER
from iris_kv.prompts import PromptSelector
from iris_kv.rollout import VARIANTS, Variant
from iris_kv.store.base import Store

_log = logging.getLogger(__name__)

_PAGE = 500


class SeedReport(Frozen):
    """What a seeding did, by `scope/key`."""

    written: tuple[str, ...]
    unchanged: tuple[str, ...]
    kept: tuple[str, ...]
    """Left alone, as another source wrote them; `force` overwrites them."""
    removed: tuple[str, ...]
    """Came from one of our sources, which does not hold them any more."""


class _Copy(NamedTuple):
    scope: Scope
    key: str
    value: bytes
    source: str
    version: str


async def seed(
    store: Store,
    library: InstructionLibrary,
    prompts: PromptSelector,
    limits: Mapping[Scope, Limits],
    sources: Sequence[str],
    *,
    force: bool = False,
) -> SeedReport:
    """Write the library into `instructions` and the rendered prompts into `system`.

    `sources` are the labels of the library's sources, later ones winning, those included that hold
    nothing now.
    """
    outcome: dict[str, list[str]] = {name: [] for name in SeedReport.model_fields}
    # A large library takes long to render.
    copies = await to_thread.run_sync(lambda: list(_copies(library, prompts, sources)))
    for copy in copies:
        limit = limits[copy.scope]
        outcome[await _seed_one(store, copy, limit, sources, force=force)].append(f"{copy.scope}/{copy.key}")
    outcome["removed"] = await _remove_gone(store, {copy.key for copy in copies}, library, sources)
    report = SeedReport(**{name: tuple(keys) for name, keys in outcome.items()})
    if report.written or report.removed:
        _log.info("seeded written=%s removed=%s", ",".join(report.written), ",".join(report.removed))
    return report


async def degradation(store: Store, scope: Scope, key: str, digest: str) -> str | None:
    """Read the stored copy back and return why it could not be had; None: it is there, or another source's.

    A copy that is absent or differs is no failure: the library, which decides, is served.
    """
    try:
        entry = await store.get(scope, key)
    except NotFoundError:
        return None
    except IrisError as error:
        _log.warning("%s/%s is served from the library: %s", scope, key, error)
        return error.code
    if entry.info.digest != digest:
        _log.debug("%s/%s is another source's; the library is served", scope, key)
    return None


def prompt_key(variant: Variant) -> str:
    """Return the key in `system` of a rendered prompt."""
    return f"prompt/{variant}"


def source_of(instruction: Instruction) -> str:
    """Return what tells sources apart: the label, and for a folder its path."""
    return instruction.source


def _copies(library: InstructionLibrary, prompts: PromptSelector, sources: Sequence[str]) -> Iterator[_Copy]:
    for instruction in library.instructions:
        yield _Copy("instructions", instruction.tag, instruction.raw, source_of(instruction), instruction.version)
    source = ",".join([*sources, prompts.label] if prompts.label else sources)
    for variant in VARIANTS if prompts.is_readable else ():
        yield _Copy("system", prompt_key(variant), prompts.render(variant).encode(), source, "")


async def _seed_one(store: Store, copy: _Copy, limits: Limits, sources: Sequence[str], *, force: bool) -> str:
    held = await _head(store, copy.scope, copy.key)
    if held is not None and held.digest == digest_of(copy.value):
        return "unchanged"
    if held is not None and not force and not _may_replace(held.metadata.get("source"), copy.source, sources):
        return "kept"
    try:
        await store.put(
            copy.scope,
            copy.key,
            copy.value,
            content_type="text/markdown",
            limits=limits,
            provenance=SEEDER.provenance,
            metadata={"source": copy.source, "version": copy.version},
            if_digest="" if held is None else held.digest,
        )
    except ConflictError:
        # Another was faster, such as the background work of this process; mostly it wrote the same.
        held = await _head(store, copy.scope, copy.key)
        return "unchanged" if held is not None and held.digest == digest_of(copy.value) else "kept"
    return "written"


def _may_replace(held: str | None, ours: str, sources: Sequence[str]) -> bool:
    """Tell whether a stored copy is ours, or from a source that would have won if it still had the tag."""
    return held == ours or (held in sources and ours in sources and sources.index(held) > sources.index(ours))


async def _head(store: Store, scope: Scope, key: str) -> EntryInfo | None:
    try:
        return await store.head(scope, key)
    except NotFoundError:
        return None


async def _remove_gone(store: Store, keys: set[str], library: InstructionLibrary, sources: Sequence[str]) -> list[str]:
    broken = bool(library.errors)
    removed: list[str] = []
    cursor: str | None = None
    while True:
        page = await store.list("instructions", cursor=cursor, limit=_PAGE)
        for info in page.entries:
            if info.key not in keys and not broken and info.metadata.get("source") in sources:
                # Another process may be doing the same.
                with suppress(NotFoundError, ConflictError):
                    await store.delete("instructions", info.key, if_digest=info.digest)
                    removed.append(f"instructions/{info.key}")
        cursor = page.next_cursor
        if cursor is None:
            return removed
