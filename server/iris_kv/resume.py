"""What an agent needs to go on with work: the text of the prompt `resume`."""

from __future__ import annotations

from typing import Final

from iris_kv.errors import IrisError, NotFoundError
from iris_kv.reading import DEFAULT_TOKENS, quoted
from iris_kv.workspace import SUMMARY_KEY, Workspace

_SUMMARY_TOKENS: Final = 4_000
_TASK_TOKENS: Final = 300
_TASKS: Final = 8
_TAGS: Final = 40


async def resume(workspace: Workspace) -> str:
    """Return the project summary, the newest task entries and the instructions in use, within 8,000 tokens."""
    try:
        await workspace.store()
    except IrisError as error:
        return f"What is stored cannot be read now. {error}"
    summary = await _read(workspace, "project", SUMMARY_KEY, _SUMMARY_TOKENS)
    used = await _used(workspace)
    above = f"## Project summary\n\n{summary}\n\n## Open tasks\n\n"
    below = f"\n\n## Instructions in use\n\n{used}"
    return above + await _tasks(workspace, DEFAULT_TOKENS - workspace.counter.at_most(above + below)) + below


async def _tasks(workspace: Workspace, max_tokens: int) -> str:
    """Return the start of the newest task entries, as many as there is room for."""
    count = workspace.counter.at_most
    newest = await workspace.latest("task", _TASKS)
    parts: list[str] = []
    left = max_tokens
    for info in newest:
        part = await _read(workspace, "task", info.key, _TASK_TOKENS + 3 * count(info.key)) + "\n\n"
        left -= count(part)
        if left < 0:
            break
        parts.append(part)
    return "".join(parts).rstrip("\n") or "None is stored."


async def _used(workspace: Workspace) -> str:
    tags = sorted(await workspace.instruction_calls())
    more = f" and {len(tags) - _TAGS} more" if len(tags) > _TAGS else ""
    return ", ".join(tags[:_TAGS]) + more if tags else "None was fetched in the last seven days."


async def _read(workspace: Workspace, scope: str, key: str, max_tokens: int) -> str:
    call = f'cache_get(scope="{scope}", key={quoted(key)}, offset={{offset}})'
    try:
        return await workspace.read(scope, key, max_tokens=max_tokens, continue_with=call)
    except NotFoundError:
        return "None is stored yet."
    except IrisError as error:
        return str(error)
