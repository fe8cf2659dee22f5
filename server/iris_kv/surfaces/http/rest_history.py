"""REST on kept versions: what an entry was, what was deleted, and bringing one back."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import Query, Request, Response
from pydantic import Field

from iris_kv.model import EntryInfo, Frozen, History, KeptPage, Scope
from iris_kv.surfaces.http.rest_access import Reading, Restoring, cache_router
from iris_kv.surfaces.http.rest_answers import ENTRY, ETAG, answers, example, header
from iris_kv.surfaces.http.rest_conditions import etag, expected_digest
from iris_kv.surfaces.http.rest_value import Address

router = cache_router("history")

_KEPT: Final = {**ENTRY, "replaced_at": ENTRY["updated_at"], "replaced_by": "update", "kept_until": None}


class DeletedAsked(Frozen):
    """Which page of what was deleted."""

    scope: Scope
    limit: int = Field(100, ge=1, le=1_000, description="How many at most.")
    cursor: str | None = Field(None, max_length=2_048, description="The `next_cursor` of the page before.")


class Restored(Address):
    """Which version."""

    version: int | None = Field(None, ge=1, le=2**53, description="As `GET history` tells; left out: the newest kept.")


@router.get(
    "/history",
    summary="The versions of an entry",
    responses={
        200: {"description": "The entry, and its kept versions.", **example({"live": ENTRY, "kept": [_KEPT]})},
        **answers(),
    },
)
async def get_history(visit: Reading, asked: Annotated[Address, Query()]) -> History:
    """Return what an entry is and which versions of it are kept, the newest first, without their values.

    Kept are the versions that writes replaced, the newest of each entry, and what was deleted, for a time; the
    settings say how many and how long. They count in the quota, and the oldest go once a write needs the room.
    """
    return await visit.workspace.history(asked.scope, asked.key)


@router.get(
    "/deleted",
    summary="What can be restored",
    responses={200: {"description": "A page.", **example({"entries": [], "next_cursor": None})}, **answers()},
)
async def get_deleted(visit: Reading, asked: Annotated[DeletedAsked, Query()]) -> KeptPage:
    """Return a page of the entries that were deleted or cleared and are kept, each as it was last, in key order."""
    return await visit.workspace.deleted(asked.scope, cursor=asked.cursor, limit=asked.limit)


@router.post(
    "/restore",
    summary="Restore a version",
    responses={
        200: {"description": "The entry.", "headers": ETAG, **example({**ENTRY, "version": 3})},
        **answers(409, 412, 413, 507),
    },
    openapi_extra={
        "parameters": [
            header("If-Match", "Only over the entry with this ETag; `*`: only over an entry.", '"sha256:…"'),
            header("If-None-Match", "`*`: only if there is no entry.", "*"),
        ]
    },
)
async def post_restore(
    request: Request, response: Response, visit: Restoring, asked: Annotated[Restored, Query()]
) -> EntryInfo:
    """Make a kept version the entry again: its value, content type, metadata and author; its TTL counts anew.

    It undoes a write, a deletion or, entry by entry, a clear. What it replaces is kept in its place.
    """
    workspace, scope, key = visit.workspace, asked.scope, asked.key
    if_digest = await expected_digest(request.headers, lambda: workspace.head(scope, key))
    info = await workspace.restore_entry(visit.principal, scope, key, asked.version, if_digest=if_digest)
    response.headers["ETag"] = etag(info)
    response.headers["Cache-Control"] = "no-store"
    return info
