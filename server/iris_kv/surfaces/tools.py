"""The tools: what each says of itself, takes and answers. Text in, text out; the work is the workspace's."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, Final, NamedTuple

from mcp.types import CallToolResult, TextContent, ToolAnnotations
from mcp.types import Tool as ToolDescription

from iris_kv import intake
from iris_kv.errors import InvalidArgumentError, NotFoundError
from iris_kv.instruction_reading import fitting_errors
from iris_kv.json_text import quoted
from iris_kv.model import EntryInfo, Frozen, Timestamp, short_digest, utc_text
from iris_kv.policy import Principal
from iris_kv.settings import Profile
from iris_kv.slices import DEFAULT_TOKENS, Call, Wanted, bounded_lines, check_tokens
from iris_kv.surfaces import arguments as args
from iris_kv.surfaces import versions
from iris_kv.surfaces.uris import entry_uri
from iris_kv.tokens import TokenCounter, estimate
from iris_kv.workspace import SUMMARY_KEY, ScopeStats, Stats, Workspace

AGENT: Final = Principal(author="agent", face="mcp")

_NEWEST: Final = 20
_PAGE: Final = 50
_TAGS_TOKENS: Final = 44
_FRAME_TOKENS: Final = 100
_KIND_CHARS: Final = 64
_KEPT_SHOWN: Final = 40

_UNDO: Final = "cache_restore (profile full) or `iris-kv restore-entry` brings it back"
_UNDO_CLEAR: Final = "cache_history (profile full) or `iris-kv history` lists them, and cache_restore or `iris-kv restore-entry` brings each back"

Answer = str | CallToolResult
Run = Callable[[Workspace, Any], Awaitable[Answer]]


class ListedEntry(Frozen):
    """One entry as `cache_list` shows it."""

    key: str
    size: int
    content_type: str
    digest: str
    updated_at: Timestamp
    expires_at: Timestamp | None


class Listing(Frozen):
    """A page of `cache_list`."""

    entries: tuple[ListedEntry, ...]
    next_cursor: str | None


@dataclass(frozen=True)
class Tool:
    """One tool of the server."""

    name: str
    title: str
    description: str
    arguments: type[args.Arguments]
    run: Run
    read_only: bool = False
    destructive: bool = False
    idempotent: bool = True
    full_only: bool = False
    always_loaded: bool = False
    output: type[Frozen] | None = None

    @cached_property
    def _input_schema(self) -> dict[str, Any]:
        # Making the schemas of all tools takes 20 ms.
        return args.lean_schema(self.arguments)

    @cached_property
    def _output_schema(self) -> dict[str, Any] | None:
        return None if self.output is None else args.lean_schema(self.output, keep_closed=True)

    def described(self, tags: Sequence[str]) -> ToolDescription:
        """Return what `tools/list` says of the tool."""
        return ToolDescription(
            name=self.name,
            title=self.title,
            description=self.description.replace("{tags}", _tag_list(tags)),
            input_schema=self._input_schema,
            output_schema=self._output_schema,
            annotations=ToolAnnotations(
                title=self.title,
                read_only_hint=self.read_only,
                destructive_hint=self.destructive,
                idempotent_hint=self.idempotent,
                open_world_hint=False,
            ),
            _meta={"anthropic/alwaysLoad": True} if self.always_loaded else None,
        )


def offered(profile: Profile) -> tuple[Tool, ...]:
    """Return the tools of a profile, in their order."""
    return tuple(tool for tool in TOOLS if profile == "full" or not tool.full_only)


class ToolTokens(NamedTuple):
    """What listed tools cost a session before any call."""

    shown: int
    """Where the client shows the model name, description and input schema of each."""
    deferred: int
    """Where it shows the bare names, but of those that ask to be shown always."""


def tool_tokens(tools: Iterable[ToolDescription], counter: TokenCounter) -> ToolTokens:
    """Return what tools cost as a client lists them."""
    shown = deferred = 0
    for tool in tools:
        parts = {"name": tool.name, "description": tool.description, "input_schema": tool.input_schema}
        tokens = counter.count(json.dumps(parts))
        shown += tokens
        deferred += tokens if tool.meta and tool.meta.get("anthropic/alwaysLoad") else counter.count(tool.name)
    return ToolTokens(shown, deferred)


def _tag_list(tags: Sequence[str]) -> str:
    """Return the tags that fit into the part of a description that every client shows."""
    costs = accumulate(estimate(tag + ", ") for tag in tags)
    kept = [tag for tag, cost in zip(tags, costs, strict=True) if cost <= _TAGS_TOKENS]
    return (", ".join(kept) or "none yet") + (" and more (list_instructions)" if len(kept) < len(tags) else "")


async def _get_instruction(workspace: Workspace, a: args.GetInstruction) -> Answer:
    return await workspace.get_instruction(
        a.tag, section_name=a.section, offset=a.offset, max_tokens=a.max_tokens, known_digest=a.known_digest
    )


async def _list_instructions(workspace: Workspace, a: args.ListInstructions) -> Answer:
    return await workspace.list_instructions(a.query)


async def _put_artifact(workspace: Workspace, a: args.PutArtifact) -> Answer:
    metadata = {} if a.kind is None else {"kind": a.kind}
    if (a.value is None) == (a.from_path is None):
        raise InvalidArgumentError(
            "put_artifact takes either value or from_path",
            "value is the content; from_path names a file of the workspace to copy",
            "give exactly one of them",
        )
    if a.from_path is not None:
        info = await workspace.put_file(
            AGENT, "artifacts", a.key, a.from_path, ttl_hours=a.ttl_hours, metadata=metadata
        )
    else:
        value = intake.encoded(a.value or "")
        info = await workspace.put(AGENT, "artifacts", a.key, value, ttl_hours=a.ttl_hours, metadata=metadata)
    return _stored(info)


async def _get_artifact(workspace: Workspace, a: args.GetArtifact) -> Answer:
    if a.key is None:
        newest = await workspace.latest("artifacts", _NEWEST)
        budget = check_tokens(a.max_tokens)
        lines = [_line(info) for info in newest]
        return bounded_lines(lines, workspace.counter, "use cache_list", budget) or "no artifacts are stored"
    return await _read(workspace, "artifacts", a.key, a, Call("get_artifact", {"key": a.key}))


async def _put_project_summary(workspace: Workspace, a: args.PutProjectSummary) -> Answer:
    value = intake.encoded(a.summary)
    kind = intake.MARKDOWN
    return _stored(await workspace.put(AGENT, "project", SUMMARY_KEY, value, content_type=kind, if_digest=a.if_digest))


async def _get_project_summary(workspace: Workspace, _: args.NoArguments) -> Answer:
    call = Call("cache_get", {"scope": "project", "key": SUMMARY_KEY})
    uri = entry_uri("project", SUMMARY_KEY)
    try:
        return await workspace.read("project", SUMMARY_KEY, Wanted(), call=call, uri=uri)
    except NotFoundError:
        return "no project summary is stored yet; once you know the project's durable facts, call put_project_summary"


async def _cache_list(workspace: Workspace, a: args.CacheList) -> Answer:
    limit = _PAGE
    budget = DEFAULT_TOKENS - _FRAME_TOKENS
    while True:
        page = await workspace.list(a.scope, prefix=a.prefix, cursor=a.cursor, limit=limit)
        listing = Listing(entries=tuple(map(_listed, page.entries)), next_cursor=page.next_cursor)
        lines = [f"{quoted(info.key)} {info.size} bytes" for info in page.entries]
        if page.next_cursor is not None:
            lines.append(f"more: cursor={quoted(page.next_cursor)}")
        text = "\n".join(lines) or f"no entries in {a.scope}" + (" with this prefix" if a.prefix else "")
        # Indented by some clients, the JSON takes more than in one line.
        tokens = workspace.counter.at_most(text + listing.model_dump_json(indent=1))
        if tokens <= budget or limit == 1:
            return structured(text, listing)
        limit = max(1, min(limit - 1, limit * budget // tokens))


async def _cache_get(workspace: Workspace, a: args.CacheGet) -> Answer:
    return await _read(workspace, a.scope, a.key, a, Call("cache_get", {"scope": a.scope, "key": a.key}))


async def _read(workspace: Workspace, scope: str, key: str, a: args.ReadArguments, call: Call) -> str:
    wanted = intake.wanted(a.offset, a.max_tokens, a.known_digest)
    again = call.also(pointer=a.pointer, max_tokens=a.max_tokens)
    return await workspace.read(scope, key, wanted, call=again, uri=entry_uri(scope, key), pointer=a.pointer)


async def _cache_put(workspace: Workspace, a: args.CachePut) -> Answer:
    return _stored(
        await workspace.put(
            AGENT,
            a.scope,
            a.key,
            intake.encoded(a.value),
            content_type=a.content_type,
            ttl_hours=a.ttl_hours,
            metadata=a.metadata,
            if_digest=a.if_digest,
        )
    )


async def _cache_delete(workspace: Workspace, a: args.CacheDelete) -> Answer:
    info = await workspace.delete(AGENT, a.scope, a.key, if_digest=a.if_digest)
    facts = f"{info.size} bytes, digest {short_digest(info.digest)}"
    return f"deleted {quoted(a.key)} from {a.scope} ({facts})" + versions.undo(workspace, a.scope, _UNDO)


async def _cache_stats(workspace: Workspace, a: args.CacheStats) -> Answer:
    stats = await workspace.stats()
    kept = tuple(each for each in stats.scopes if a.scope in (None, each.scope))
    lines = [
        f"{each.scope}: {each.entries} entries, {each.bytes} of {each.quota_bytes} bytes" + _kept(each) for each in kept
    ]
    errors = stats.instruction_errors
    shown = fitting_errors(errors, workspace.counter)
    lines += [f"error in {error.file}: {error.problem}" for error in shown]
    if len(shown) < len(errors):
        lines.append(f"[{len(errors) - len(shown)} more errors in instruction files; mend these first]")
    return structured("\n".join(lines), stats.model_copy(update={"scopes": kept, "instruction_errors": shown}))


def _kept(stats: ScopeStats) -> str:
    return f", and {stats.kept} kept versions of {stats.kept_bytes} bytes" if stats.kept else ""


async def _cache_prune(workspace: Workspace, a: args.CachePrune) -> Answer:
    removed = await workspace.prune(a.scope)
    return f"removed {removed.entries} expired entries ({removed.bytes} bytes)"


async def _cache_clear(workspace: Workspace, a: args.CacheClear) -> Answer:
    removed = await workspace.clear(AGENT, a.scope)
    done = f"cleared {a.scope}: {removed.entries} entries ({removed.bytes} bytes)"
    return done + versions.undo(workspace, a.scope, _UNDO_CLEAR)


async def _cache_restore(workspace: Workspace, a: args.CacheRestore) -> Answer:
    return _stored(await workspace.restore_entry(AGENT, a.scope, a.key, a.version, if_digest=a.if_digest))


async def _cache_seed(workspace: Workspace, a: args.CacheSeed) -> Answer:
    report = await workspace.seed(force=a.force)
    left = len(report.kept) - _KEPT_SHOWN
    names = ", ".join(report.kept[:_KEPT_SHOWN]) + (f" and {left} more" if left > 0 else "")
    kept = f"; left alone, as another source wrote them: {names}" if report.kept else ""
    return f"written {len(report.written)}, unchanged {len(report.unchanged)}, removed {len(report.removed)}{kept}"


def structured(text: str, data: Frozen) -> CallToolResult:
    """Return an answer with structured content, and the text for clients that show only text."""
    return CallToolResult(
        content=[TextContent(type="text", text=text)], structured_content=data.model_dump(mode="json")
    )


def _stored(info: EntryInfo) -> str:
    return f"stored {_line(info)}\nlink: {entry_uri(info.scope, info.key)}"


def _line(info: EntryInfo) -> str:
    kind = f" kind={quoted(info.metadata['kind'][:_KIND_CHARS])}" if "kind" in info.metadata else ""
    expires = "never" if info.expires_at is None else utc_text(info.expires_at)
    facts = f"{info.size} bytes {info.content_type}{kind} digest={short_digest(info.digest)} expires={expires}"
    return f"{quoted(info.key)} {facts}"


def _listed(info: EntryInfo) -> ListedEntry:
    return ListedEntry(
        key=info.key,
        size=info.size,
        content_type=info.content_type,
        digest=short_digest(info.digest),
        updated_at=info.updated_at,
        expires_at=info.expires_at,
    )


TOOLS: Final[tuple[Tool, ...]] = (
    Tool(
        name="get_instruction",
        title="Get an instruction",
        description="Load the instruction for a kind of task before you start it, and again after your context was"
        " compacted. Tags: {tags}. section returns one section; known_digest answers 'unchanged'.",
        arguments=args.GetInstruction,
        run=_get_instruction,
        read_only=True,
        always_loaded=True,
    ),
    Tool(
        name="list_instructions",
        title="List instructions",
        description="List instructions: tag, tokens, when to use. query, words of your task, ranks the best ones and their sections.",
        arguments=args.ListInstructions,
        run=_list_instructions,
        read_only=True,
    ),
    Tool(
        name="put_artifact",
        title="Keep an artifact",
        description="Keep a result that is costly to make again. Give value, or from_path to copy a workspace file"
        " without retyping it. kind is a label.",
        arguments=args.PutArtifact,
        run=_put_artifact,
    ),
    Tool(
        name="get_artifact",
        title="Get an artifact",
        description="Read an artifact before you redo costly work. Long values continue at offset (bytes)."
        " pointer reads a part of JSON (RFC 6901). known_digest answers 'unchanged'. Without key: the newest 20.",
        arguments=args.GetArtifact,
        run=_get_artifact,
        read_only=True,
    ),
    Tool(
        name="put_project_summary",
        title="Keep the project summary",
        description="Replace the project's durable facts: goals, decisions, conventions. if_digest: only over that"
        " version.",
        arguments=args.PutProjectSummary,
        run=_put_project_summary,
    ),
    Tool(
        name="get_project_summary",
        title="Get the project summary",
        description="Read the project's durable facts when you start work.",
        arguments=args.NoArguments,
        run=_get_project_summary,
        read_only=True,
    ),
    Tool(
        name="cache_list",
        title="List cache entries",
        description="List the entries of a scope by key.",
        arguments=args.CacheList,
        run=_cache_list,
        read_only=True,
        output=Listing,
    ),
    Tool(
        name="cache_get",
        title="Get a cache entry",
        description="Read an entry of any scope, as get_artifact does. Prefer get_instruction, get_artifact and get_project_summary for"
        " theirs.",
        arguments=args.CacheGet,
        run=_cache_get,
        read_only=True,
    ),
    Tool(
        name="cache_put",
        title="Put a cache entry",
        description="Write an entry, such as a task's state. system and instructions are read-only. if_digest: only"
        " over that version; empty: only if absent.",
        arguments=args.CachePut,
        run=_cache_put,
    ),
    Tool(
        name="cache_delete",
        title="Delete a cache entry",
        description="Delete an entry.",
        arguments=args.CacheDelete,
        run=_cache_delete,
        destructive=True,
    ),
    Tool(
        name="cache_stats",
        title="Show cache use",
        description="Show entries, bytes and quota of each scope, and instruction errors.",
        arguments=args.CacheStats,
        run=_cache_stats,
        read_only=True,
        output=Stats,
    ),
    Tool(
        name="cache_prune",
        title="Remove expired entries",
        description="Remove expired entries of one scope or all; task and artifacts keep them for two more minutes.",
        arguments=args.CachePrune,
        run=_cache_prune,
        destructive=True,
        full_only=True,
    ),
    Tool(
        name="cache_clear",
        title="Clear a scope",
        description="Delete every entry of a scope. The user is asked; where the client cannot ask, confirm must be"
        " true.",
        arguments=args.CacheClear,
        run=_cache_clear,
        destructive=True,
        full_only=True,
    ),
    Tool(
        name="cache_seed",
        title="Seed instructions",
        description="Write instructions and prompts into the cache again. force overwrites other sources' too.",
        arguments=args.CacheSeed,
        run=_cache_seed,
        full_only=True,
    ),
    Tool(
        name="cache_history",
        title="Show an entry's history",
        description="List the kept versions of an entry; without key, the deleted entries of a scope.",
        arguments=args.CacheHistory,
        run=versions.history,
        read_only=True,
        full_only=True,
    ),
    Tool(
        name="cache_restore",
        title="Restore a version",
        description="Make a kept version the entry again, by default the newest: undoes a write, delete or clear."
        " What it replaces is kept. if_digest: only over that version; empty: only if absent.",
        arguments=args.CacheRestore,
        run=_cache_restore,
        idempotent=False,
        full_only=True,
    ),
)
