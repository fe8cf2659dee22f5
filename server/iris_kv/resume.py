"""What an agent needs to go on with work: the text of the prompt `resume`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from iris_kv.context.shelf import KEY_PREFIX, SCOPE
from iris_kv.errors import IrisError, NotFoundError
from iris_kv.model import EntryInfo, Scope
from iris_kv.slices import DEFAULT_TOKENS, Call, Wanted
from iris_kv.workspace import SUMMARY_KEY, Workspace

_SUMMARY_TOKENS: Final = 4_000
_TASK_TOKENS: Final = 300
_FRAME_TOKENS: Final = 400
"""What stands around a value has about 150 tokens, which without the tokenizer count as so many."""
_TASKS: Final = 8
_MESSAGE_TOKENS: Final = 150
_MESSAGES: Final = 5
_TAGS: Final = 40
_HEADING: Final = f"""

## Conversation summaries

The newest; cache_list(scope="{SCOPE}", prefix="{KEY_PREFIX}") lists all.

"""

UriOf = Callable[[str, str], str]
"""Returns the resource of an entry by its scope and key."""


async def resume(workspace: Workspace, uri_of: UriOf) -> str:
    """Return the project summary, the newest task entries and summaries, and the instructions in use.

    All of it is within 8,000 tokens. Open tasks come first: a conversation's summaries are many.
    """
    try:
        await workspace.store()
    except IrisError as error:
        return f"What is stored cannot be read now. {error}"
    summary = await _read(workspace, uri_of, "project", SUMMARY_KEY, _SUMMARY_TOKENS)
    used = await _used(workspace)
    above = f"## Project summary\n\n{summary}\n\n## Open tasks\n\n"
    below = f"\n\n## Instructions in use\n\n{used}"
    left = DEFAULT_TOKENS - workspace.counter.at_most(above + below)
    others = await workspace.latest(SCOPE, _TASKS, without=KEY_PREFIX)
    tasks = await _starts(workspace, uri_of, others, _TASK_TOKENS, left) or "None is stored."
    left -= workspace.counter.at_most(tasks)
    return above + tasks + await _conversations(workspace, uri_of, left) + below


async def _conversations(workspace: Workspace, uri_of: UriOf, max_tokens: int) -> str:
    """Return the newest summaries of messages under their heading; nothing where none is stored or fits."""
    newest = await workspace.latest(SCOPE, _MESSAGES, prefix=KEY_PREFIX)
    left = max_tokens - workspace.counter.at_most(_HEADING)
    summaries = await _starts(workspace, uri_of, newest, _MESSAGE_TOKENS, left)
    return _HEADING + summaries if summaries else ""


async def _starts(
    workspace: Workspace, uri_of: UriOf, entries: Sequence[EntryInfo], tokens: int, max_tokens: int
) -> str:
    """Return the start of each entry, some tokens long, as many as there is room for."""
    count = workspace.counter.at_most
    of_one = tokens if workspace.counter.exact else tokens + _FRAME_TOKENS
    parts: list[str] = []
    left = max_tokens
    for info in entries:
        part = await _read(workspace, uri_of, info.scope, info.key, of_one + 3 * count(info.key)) + "\n\n"
        left -= count(part)
        if left < 0:
            break
        parts.append(part)
    return "".join(parts).rstrip("\n")


async def _used(workspace: Workspace) -> str:
    tags = sorted(await workspace.instruction_calls())
    more = f" and {len(tags) - _TAGS} more" if len(tags) > _TAGS else ""
    return ", ".join(tags[:_TAGS]) + more if tags else "None was fetched in the last seven days."


async def _read(workspace: Workspace, uri_of: UriOf, scope: Scope, key: str, max_tokens: int) -> str:
    call = Call("cache_get", {"scope": scope, "key": key})
    try:
        return await workspace.read(scope, key, Wanted(max_tokens=max_tokens), call=call, uri=uri_of(scope, key))
    except NotFoundError:
        return "None is stored yet."
    except IrisError as error:
        return str(error)
