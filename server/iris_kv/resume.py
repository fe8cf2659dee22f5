"""What an agent needs to go on with work: the text of the prompt `resume`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from iris_kv.errors import IrisError, NotFoundError
from iris_kv.slices import DEFAULT_TOKENS, Call, Wanted
from iris_kv.workspace import SUMMARY_KEY, Workspace

_SUMMARY_TOKENS: Final = 4_000
_TASK_TOKENS: Final = 300
_FRAME_TOKENS: Final = 400
"""What stands around a value has about 150 tokens, which without the tokenizer count as so many."""
_TASKS: Final = 8
_TAGS: Final = 40

UriOf = Callable[[str, str], str]


async def resume(workspace: Workspace, uri_of: UriOf) -> str:
    """Return the project summary, the newest task entries and the instructions in use, within 8,000 tokens.

    `uri_of` returns the resource of an entry by its scope and key.
    """
    try:
        await workspace.store()
    except IrisError as error:
        return f"What is stored cannot be read now. {error}"
    summary = await _read(workspace, uri_of, "project", SUMMARY_KEY, _SUMMARY_TOKENS)
    used = await _used(workspace)
    above = f"## Project summary\n\n{summary}\n\n## Open tasks\n\n"
    below = f"\n\n## Instructions in use\n\n{used}"
    return above + await _tasks(workspace, uri_of, DEFAULT_TOKENS - workspace.counter.at_most(above + below)) + below


async def _tasks(workspace: Workspace, uri_of: UriOf, max_tokens: int) -> str:
    """Return the start of the newest task entries, as many as there is room for."""
    count = workspace.counter.at_most
    of_one = _TASK_TOKENS if workspace.counter.exact else _TASK_TOKENS + _FRAME_TOKENS
    newest = await workspace.latest("task", _TASKS)
    parts: list[str] = []
    left = max_tokens
    for info in newest:
        part = await _read(workspace, uri_of, "task", info.key, of_one + 3 * count(info.key)) + "\n\n"
        left -= count(part)
        if left < 0:
            break
        parts.append(part)
    return "".join(parts).rstrip("\n") or "None is stored."


async def _used(workspace: Workspace) -> str:
    tags = sorted(await workspace.instruction_calls())
    more = f" and {len(tags) - _TAGS} more" if len(tags) > _TAGS else ""
    return ", ".join(tags[:_TAGS]) + more if tags else "None was fetched in the last seven days."


async def _read(workspace: Workspace, uri_of: UriOf, scope: str, key: str, max_tokens: int) -> str:
    call = Call("cache_get", {"scope": scope, "key": key})
    try:
        return await workspace.read(scope, key, Wanted(max_tokens=max_tokens), call=call, uri=uri_of(scope, key))
    except NotFoundError:
        return "None is stored yet."
    except IrisError as error:
        return str(error)
