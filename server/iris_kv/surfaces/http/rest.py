"""The REST administration API: the operations on whole scopes and on sandboxes, and its description."""

from __future__ import annotations

from bisect import bisect_right
from typing import Annotated, Any, Final

from anyio import to_thread
from fastapi import APIRouter, Depends, FastAPI, Query, Request
from fastapi.openapi.utils import get_openapi
from pydantic import Field
from starlette.responses import JSONResponse, Response

from iris_kv.errors import InvalidArgumentError
from iris_kv.globs import MAX_CHARS
from iris_kv.instruction_reading import ServedInstructions, served_instructions
from iris_kv.model import Frozen, Page, Removed, Scope
from iris_kv.policy import check_right
from iris_kv.rollout_status import RolloutStatus, rollout_status
from iris_kv.seeding import SeedReport
from iris_kv.store.base import COUNTER_DAYS, MAX_COMPARED
from iris_kv.surfaces.http import rest_history, rest_value
from iris_kv.surfaces.http.problems import Problem, install_problems, problem
from iris_kv.surfaces.http.rest_access import (
    Administering,
    Reading,
    cache_router,
    platform_of,
    principal_of,
    unambiguous_query,
)
from iris_kv.surfaces.http.rest_answers import (
    ENTRY,
    LOCATION,
    PROBLEMS,
    answers,
    body,
    example,
    operation_id,
    schemas_of,
)
from iris_kv.surfaces.http.rest_bodies import NewSandbox, NewValue, UnsupportedTypeError, json_body
from iris_kv.surfaces.http.rest_docs import install_docs
from iris_kv.workspace import Stats

OPENAPI_PATH: Final = "/api/openapi.json"
_DESCRIPTION: Final = """The caches of sandboxes: keys and values, what they hold, and what is served with them.

Errors are problem details (RFC 9457) with `code`, `wrong`, `allowed` and `todo`. A digest is `sha256:` and 64 hex
digits, and an ETag is a digest in quotes. Times are RFC 3339 in UTC. A token has some of the rights `kv:read`,
`kv:write` and `kv:admin` (which includes the others), for some sandboxes; any other sandbox does not exist for it."""

_cache = cache_router("cache")
_guidance = cache_router("guidance")
_sandboxes = APIRouter(
    prefix="/api/sandboxes",
    generate_unique_id_function=operation_id,
    tags=["sandboxes"],
)


class Listed(Frozen):
    """Which keys."""

    scope: Scope
    prefix: str = Field("", max_length=512, description="Only keys that start with it.")
    pattern: str | None = Field(
        None,
        max_length=MAX_CHARS,
        description="Only keys that this glob stands for: `*` any text, `?` one character, `[a-z]` and `[!a-z]` one of"
        f" or none of some, `[*]` a star. A page ends after {MAX_COMPARED:,} keys were compared, too, so it may have"
        " few entries, or none, and still a `next_cursor`.",
        examples=["*.md"],
    )
    include_expired: bool = Field(default=False, description="Expired ones that were not collected yet, too.")
    limit: int = Field(100, ge=1, le=1_000, description="How many at most.")
    cursor: str | None = Field(None, max_length=2_048, description="The `next_cursor` of the page before.")


class Pruned(Frozen):
    """Where to remove expired entries."""

    scope: Scope | None = Field(None, description="Left out: all scopes.")


class Seeded(Frozen):
    """How to seed."""

    force_refresh: bool = Field(default=False, description="Overwrite what another source wrote, too.")


class Cleared(Frozen):
    """Which scope to clear."""

    scope: Scope
    confirm: bool = Field(default=False, description="Must be true, as this deletes every entry of the scope.")


class Clearing(Removed):
    """What a clear removed."""

    undo: str | None
    """How each entry can be restored; null: not at all."""


class Asked(Frozen):
    """Whose rollout."""

    subject: str | None = Field(None, max_length=512, description="Left out: as a fetch that names nobody.")
    days: int = Field(7, ge=1, le=COUNTER_DAYS, description="Of how many days, today included, exposures are told.")


class SandboxesAsked(Frozen):
    """Which page of sandboxes."""

    limit: int = Field(100, ge=1, le=1_000, description="How many at most.")
    cursor: str | None = Field(None, max_length=64, description="The `next_cursor` of the page before.")


class Sandbox(Frozen):
    """A sandbox."""

    id: str


class SandboxPage(Frozen):
    """Some sandboxes in order of their ids, and where the next page starts."""

    sandboxes: tuple[Sandbox, ...]
    next_cursor: str | None
    """None on the last page."""


@_cache.get("/stats", summary="What a sandbox holds", response_description="What it holds.", responses=answers())
async def get_stats(visit: Reading) -> Stats:
    """Return entries, bytes, quota and TTL of each scope, and which prompt is served."""
    return await visit.workspace.stats()


@_cache.get(
    "/keys",
    summary="List keys",
    responses={200: {"description": "A page.", **example({"entries": [ENTRY], "next_cursor": None})}, **answers()},
)
async def get_keys(visit: Reading, asked: Annotated[Listed, Query()]) -> Page:
    """Return a page of a scope's entries, without their values, in the byte order of their keys."""
    return await visit.workspace.list(
        asked.scope,
        prefix=asked.prefix,
        cursor=asked.cursor,
        limit=asked.limit,
        include_expired=asked.include_expired,
        pattern=asked.pattern,
    )


@_cache.post("/prune", summary="Remove expired entries", response_description="What was removed.", responses=answers())
async def post_prune(visit: Administering, asked: Annotated[Pruned, Query()]) -> Removed:
    """Remove expired entries; those that reads renew two minutes after they expired."""
    return await visit.workspace.prune(asked.scope)


@_cache.post(
    "/seed-instructions", summary="Seed instructions", response_description="What the seeding did.", responses=answers()
)
async def post_seed_instructions(visit: Administering, asked: Annotated[Seeded, Query()]) -> SeedReport:
    """Write the instructions and the rendered prompts into the scopes `instructions` and `system`."""
    return await visit.workspace.seed(force=asked.force_refresh)


@_cache.delete(
    "/clear-scope", summary="Clear a scope", response_description="What was removed.", responses=answers(409)
)
async def delete_clear_scope(visit: Administering, asked: Annotated[Cleared, Query()]) -> Clearing:
    """Delete every entry of a scope; `confirm` must be true. `GET deleted` lists what `POST restore` brings back."""
    if not asked.confirm:
        raise InvalidArgumentError(
            f"clear-scope of {asked.scope!r} without confirm",
            "it deletes every entry of the scope, and confirm=true says that this is wanted",
            "add confirm=true",
        )
    removed = await visit.workspace.clear(visit.principal, asked.scope)
    return Clearing(**dict(removed), undo=rest_value.undo_text(visit.workspace, asked.scope))


@_guidance.get(
    "/instructions", summary="The instructions served", response_description="The instructions.", responses=answers()
)
async def get_instructions(visit: Reading) -> ServedInstructions:
    """Return each instruction served now, and what is wrong with files; its text is a value of `instructions`."""
    await visit.workspace.freshen()
    return await to_thread.run_sync(served_instructions, visit.workspace.library, visit.workspace.counter)


@_guidance.get("/rollout", summary="Who gets which prompt", response_description="The rollout.", responses=answers())
async def get_rollout(visit: Reading, asked: Annotated[Asked, Query()]) -> RolloutStatus:
    """Return how the compact prompt is rolled out, what a subject gets and why, and what was fetched."""
    return await rollout_status(visit.workspace, asked.subject, asked.days)


@_sandboxes.get("", summary="List sandboxes", response_description="A page.", responses=answers())
async def get_sandboxes(request: Request, asked: Annotated[SandboxesAsked, Query()]) -> SandboxPage:
    """Return a page of the sandboxes that the token may touch."""
    principal = principal_of(request)
    check_right(principal, "kv:read", "listing sandboxes")
    ids = await platform_of(request).ids(principal)
    start = 0 if asked.cursor is None else bisect_right(ids, asked.cursor)
    page = ids[start : start + asked.limit]
    is_last = start + asked.limit >= len(ids)
    return SandboxPage(sandboxes=tuple(Sandbox(id=each) for each in page), next_cursor=None if is_last else page[-1])


@_sandboxes.post(
    "",
    status_code=201,
    summary="Create a sandbox",
    responses={201: {"description": "Created.", "headers": LOCATION}, **answers(412, 413, 415)},
    openapi_extra=body(NewSandbox, {"id": "team-a-7"}),
)
async def post_sandbox(request: Request, response: Response) -> Sandbox:
    """Create an empty sandbox; 412 where there is one of this id."""
    principal = principal_of(request)
    check_right(principal, "kv:admin", "creating a sandbox")
    wanted = await json_body(request, NewSandbox)
    await platform_of(request).create(principal, wanted.id)
    response.headers["Location"] = f"/api/sandboxes/{wanted.id}/kv-cache/stats"
    return Sandbox(id=wanted.id)


def install_rest(app: FastAPI) -> None:
    """Add the API, its description and its problems to an application whose state holds the platform."""
    install_problems(app)
    app.add_exception_handler(UnsupportedTypeError, _unsupported)
    app.add_middleware(rest_value.ValueOperations, handlers=app.exception_handlers)
    for router in (_cache, rest_history.router, _guidance, _sandboxes):
        app.include_router(router, dependencies=[Depends(unambiguous_query)])
    app.add_api_route(OPENAPI_PATH, _openapi_json, include_in_schema=False)
    app.openapi = lambda: described(app)
    install_docs(app)


async def _unsupported(_: Request, error: Exception) -> Response:
    if not isinstance(error, UnsupportedTypeError):
        raise error
    return problem(415, "unsupported_media_type", error.text)


async def _openapi_json(request: Request) -> Response:
    return JSONResponse(
        request.app.openapi(), headers={"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
    )


def described(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI description, made once."""
    if app.openapi_schema is None:
        found = get_openapi(
            title="iris-kv",
            version=app.version,
            description=_DESCRIPTION,
            routes=[*app.routes, *rest_value.router.routes],
            openapi_version="3.1.0",
        )
        components = found["components"]
        components["schemas"] |= schemas_of(Problem, NewValue, NewSandbox)
        components["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer", "description": "See `iris-kv token new`, or a JWT."}
        }
        found["security"] = [{"bearer": []}]
        found["x-problems"] = PROBLEMS
        app.openapi_schema = found
    return app.openapi_schema
