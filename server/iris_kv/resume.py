"""What an agent needs to go on with work: the text of the prompt `resume`."""

from __future__ import annotations

from typing import Final

from iris_kv.errors import IrisError, NotFoundError
from iris_kv.reading import quoted
from iris_kv.workspace import SUMMARY_KEY, Workspace

_SUMMARY_TOKENS: Final = 4_000
_TASK_TOKENS: Final = 300
_TASKS: Final = 8


async def resume(workspace: Workspace) -> str:
    """Return the project summary, the newest task entries and the instructions in use, within 8,000 tokens."""
    used = sorted(await workspace.instruction_calls())
    parts = [
        "## Project summary",
        await _read(workspace, "project", SUMMARY_KEY, _SUMMARY_TOKENS),
        "## Open tasks",
        *(await _tasks(workspace) or ["None is stored."]),
        "## Instructions in use",
        ", ".join(used) or "None was fetched in the last seven days.",
    ]
    return "\n\n".join(parts)


async def _tasks(workspace: Workspace) -> list[str]:
    newest = await workspace.latest("task", _TASKS)
    frame = workspace.counter.at_most
    return [await _read(workspace, "task", info.key, _TASK_TOKENS + 3 * frame(info.key)) for info in newest]


async def _read(workspace: Workspace, scope: str, key: str, max_tokens: int) -> str:
    call = f'cache_get(scope="{scope}", key={quoted(key)}, offset={{offset}})'
    try:
        return await workspace.read(scope, key, max_tokens=max_tokens, continue_with=call)
    except NotFoundError:
        return "None is stored yet."
    except IrisError as error:
        return str(error)
