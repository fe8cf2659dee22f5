"""Resources and their completions: instructions, prompts, stats, and entries of every scope."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncGenerator, Mapping
from functools import partial
from typing import Final

from anyio import to_thread
from mcp.types import (
    Annotations,
    BlobResourceContents,
    ListResourcesResult,
    ReadResourceResult,
    Resource,
    ResourceTemplate,
    TextResourceContents,
)

from iris_kv.errors import InvalidArgumentError
from iris_kv.instruction_reading import fitting_errors, part_of
from iris_kv.intake import MARKDOWN, PLAIN, check_scope
from iris_kv.intake import wanted as wanted_slice
from iris_kv.json_text import JSON
from iris_kv.model import SCOPES, EntryInfo, Scope, digest_of, short_digest
from iris_kv.prompts import one_line
from iris_kv.reading import bare_slice, bytes_slice
from iris_kv.rollout import VARIANTS
from iris_kv.slices import BlobSlice, Slice, Wanted
from iris_kv.surfaces import uris
from iris_kv.workspace import Workspace

LISTED_SCOPES: Final[tuple[Scope, ...]] = ("project", "artifacts")
"""The scopes whose entries stand in `resources/list`; the others are read by URI."""

PAGE: Final = 100
COMPLETIONS: Final = 100

TEMPLATES: Final = (
    ResourceTemplate(
        name="instruction",
        title="Instruction",
        uri_template=uris.INSTRUCTION_TEMPLATE,
        description="An instruction's body, or one of its sections",
        mime_type=MARKDOWN,
    ),
    ResourceTemplate(
        name="entry",
        title="Cache entry",
        uri_template=uris.ENTRY_TEMPLATE,
        description="A value of the cache; a long one is cut and says how it goes on",
    ),
    ResourceTemplate(
        name="prompt",
        title="System prompt",
        uri_template=uris.PROMPT_TEMPLATE,
        description="The rendered system prompt: compact or full",
        mime_type=MARKDOWN,
    ),
)

Contents = TextResourceContents | BlobResourceContents


async def list_resources(workspace: Workspace, cursor: str | None) -> ListResourcesResult:
    """Return a page of the resources: what is fixed first, then entries in key order.

    Raises:
        InvalidArgumentError: The cursor is none of ours.
    """
    stage, after = _decoded(cursor)
    found: list[Resource] = []
    if stage == 0:
        found = [resource async for resource in _fixed(workspace)]
        stage, found, more = (1, found[int(after or 0) :], len(found) - int(after or 0) > PAGE)
        if more:
            return ListResourcesResult(resources=found[:PAGE], next_cursor=_encoded(0, str(int(after or 0) + PAGE)))
        after = None
    for number in range(stage, len(LISTED_SCOPES) + 1):
        room = PAGE - len(found)
        if room == 0:
            return ListResourcesResult(resources=found, next_cursor=_encoded(number, after))
        page = await workspace.list(LISTED_SCOPES[number - 1], cursor=after, limit=room)
        found += [_entry(info) for info in page.entries]
        if page.next_cursor is not None:
            return ListResourcesResult(resources=found, next_cursor=_encoded(number, page.next_cursor))
        after = None
    return ListResourcesResult(resources=found)


async def list_fixed(workspace: Workspace) -> ListResourcesResult:
    """Return what can be listed where the store cannot answer."""
    return ListResourcesResult(resources=[resource async for resource in _fixed(workspace)][:PAGE])


async def _fixed(workspace: Workspace) -> AsyncGenerator[Resource]:
    for instruction in await workspace.instructions():
        yield Resource(
            uri=uris.instruction_uri(instruction.tag),
            name=instruction.tag,
            description=one_line(instruction.description),
            mime_type=MARKDOWN,
            annotations=Annotations(audience=["assistant"], priority=1.0),
        )
    for variant in VARIANTS:
        yield Resource(
            uri=uris.prompt_uri(variant),
            name=f"prompt_{variant}",
            description=f"The {variant} system prompt",
            mime_type=MARKDOWN,
        )
    yield Resource(uri=uris.STATS, name="stats", description="What the cache holds", mime_type=JSON)


def _entry(info: EntryInfo) -> Resource:
    return Resource(uri=uris.entry_uri(info.scope, info.key), name=info.key, mime_type=info.content_type)


async def read_resource(workspace: Workspace, uri: str) -> ReadResourceResult:
    """Return a resource, at most a budget of it, and where it goes on.

    Raises:
        NotFoundError: There is no such resource.
    """
    target = uris.parse(uri)
    if target.kind == "stats":
        return ReadResourceResult(contents=[await _stats(workspace, uri)])
    wanted = wanted_slice(target.offset, target.max_tokens, target.known_digest)
    if target.kind == "cache":
        return ReadResourceResult(contents=await _read_entry(workspace, uri, target, wanted))
    return ReadResourceResult(contents=await _read_guidance(workspace, uri, target, wanted))


async def _stats(workspace: Workspace, uri: str) -> Contents:
    stats = await workspace.stats()
    errors = fitting_errors(stats.instruction_errors, workspace.counter)
    text = stats.model_copy(update={"instruction_errors": errors}).model_dump_json(indent=1)
    return TextResourceContents(uri=uri, text=text, mime_type=JSON)


async def _read_guidance(workspace: Workspace, uri: str, target: uris.Target, wanted: Wanted) -> list[Contents]:
    if target.kind == "prompt":
        rendered = await workspace.rendering(target.name)
        digest, value = digest_of(rendered), lambda: rendered
    else:
        instruction = await workspace.used_instruction(target.name)
        digest, value = instruction.digest, partial(part_of, instruction, target.section)
    wanted.is_known(digest, f"{target.kind}/{target.name}")

    def cut() -> Slice:
        return bytes_slice(value(), wanted, workspace.counter, lambda part: part.text + _note(target, digest, part))

    return _contents(uri, target, await to_thread.run_sync(cut), MARKDOWN, digest)


async def _read_entry(workspace: Workspace, uri: str, target: uris.Target, wanted: Wanted) -> list[Contents]:
    async with (await workspace.store()).open_value(check_scope(target.scope), target.name) as reader:
        info = reader.info
        part = await bare_slice(reader, wanted, workspace.counter, partial(_note, target, info.digest))
    return _contents(uri, target, part, info.content_type, info.digest)


def _contents(uri: str, target: uris.Target, part: Slice | BlobSlice, mime_type: str, digest: str) -> list[Contents]:
    """Return a slice, and behind one that is not the last how to go on; the slice itself stays untouched."""
    meta = {"iris-kv/digest": short_digest(digest), "iris-kv/bytes": f"{part.start}-{part.end}/{part.size}"}
    first: Contents
    if isinstance(part, BlobSlice):
        first = BlobResourceContents(uri=uri, blob=part.base64, mime_type=mime_type, _meta=meta)
    else:
        first = TextResourceContents(uri=uri, text=part.text, mime_type=mime_type, _meta=meta)
    note = _note(target, digest, part)
    following = uris.continued(target, part.end, digest)
    return [first, TextResourceContents(uri=following, text=note, mime_type=PLAIN)] if note else [first]


def _note(target: uris.Target, digest: str, part: Slice | BlobSlice) -> str:
    if part.end == part.size:
        return ""
    following = uris.continued(target, part.end, digest)
    return f"[bytes {part.start}-{part.end} of {part.size}. Next: read the resource {following}]"


async def complete(workspace: Workspace, name: str, prefix: str, context: Mapping[str, str]) -> list[str]:
    """Return the values that an argument can take, by what was typed so far."""
    if name == "variant":
        values: list[str] = list(VARIANTS)
    elif name == "scope":
        values = list(SCOPES)
    elif name == "tag":
        values = [instruction.tag for instruction in await workspace.instructions()]
    elif name == "section" and "tag" in context:
        instruction = workspace.library.get(context["tag"])
        values = [each.slug for each in await to_thread.run_sync(lambda: instruction.sections)]
    elif name == "key" and "scope" in context:
        page = await workspace.list(context["scope"], prefix=prefix, limit=COMPLETIONS + 1)
        values = [info.key for info in page.entries]
    else:
        values = []
    return [value for value in values if value.startswith(prefix)]


def _encoded(stage: int, after: str | None) -> str:
    return base64.urlsafe_b64encode(json.dumps([stage, after]).encode()).decode().rstrip("=")


def _decoded(cursor: str | None) -> tuple[int, str | None]:
    if cursor is None:
        return 0, None
    try:
        match json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))):
            case [int(stage), str() | None as after] if 0 <= stage <= len(LISTED_SCOPES):
                if stage > 0 or _is_count(after):
                    return stage, after
            case _:
                pass
    except (ValueError, RecursionError):
        pass
    raise InvalidArgumentError(
        f"the cursor {cursor[:80]!r} is none of this server's",
        "a cursor is the nextCursor of the page before",
        "list again without a cursor",
    )


def _is_count(text: str | None) -> bool:
    return text is not None and text.isascii() and text.isdecimal() and len(text) < 10
