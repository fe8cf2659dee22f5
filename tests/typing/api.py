"""The library face as a typed program uses it: every public name, checked by basedpyright in strict mode."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, assert_type

import iris_kv
from iris_kv import (
    SCOPES,
    Compression,
    CompressionReport,
    ContextManager,
    Entry,
    EntryInfo,
    Instruction,
    InstructionLibrary,
    InstructionSource,
    IrisError,
    OpenAISummarizer,
    Page,
    Principal,
    Prompt,
    PromptSelector,
    Scope,
    Settings,
    Summarizer,
    TokenCounter,
    Workspace,
    load_settings,
    open_workspace,
)


async def use_entries(workspace: Workspace) -> None:
    """Write, read, list and delete."""
    me = Principal(author="agent", face="library")
    info = await workspace.put(me, "artifacts", "key", b"value", ttl_hours=1.5, metadata={"kind": "note"}, if_digest="")
    assert_type(info, EntryInfo)
    entry = await workspace.get("artifacts", "key")
    assert_type(entry, Entry)
    assert_type(entry.value, bytes)
    assert_type(entry.info.scope, Scope)
    assert_type(entry.info.expires_at, int | None)
    assert_type(entry.info.metadata, Mapping[str, str])
    page = await workspace.list("artifacts", prefix="k")
    assert_type(page, Page)
    assert_type(page.entries, tuple[EntryInfo, ...])
    assert_type(page.next_cursor, str | None)
    try:
        assert_type(await workspace.delete(me, "artifacts", "key", if_digest=info.digest), EntryInfo)
    except IrisError as error:
        assert_type(error.todo, str)


async def use_instructions(workspace: Workspace) -> None:
    """Read instructions and prompts."""
    assert_type(await workspace.get_instruction("research", section_name="checklist"), str)
    assert_type(await workspace.instructions(), tuple[Instruction, ...])
    assert_type(workspace.library, InstructionLibrary)
    selector = workspace.prompts
    assert_type(selector, PromptSelector)
    selector.compact = False
    prompt = await workspace.prompt()
    assert_type(prompt, Prompt)
    assert_type(prompt.variant, Literal["compact", "full"])
    assert_type(prompt.shown, str)


async def use_summaries(workspace: Workspace) -> None:
    """Summarise with a function of one's own."""

    async def first_line(text: str) -> str:
        return text.splitlines()[0]

    summarizer: Summarizer = first_line
    context = ContextManager(await workspace.store(), summarizer=summarizer, token_threshold=1_000)
    message = {"role": "user", "content": [{"type": "text", "text": "words"}]}
    assert_type(await context.summarize_message(message, message_id="m1"), str)
    compression = await context.compress([message, {"role": "user", "content": "text"}])
    assert_type(compression, Compression)
    assert_type(compression.messages, tuple[Mapping[str, object], ...])
    assert_type(compression.report, CompressionReport)
    assert_type(compression.report.threshold_met, bool)
    model = OpenAISummarizer("model", base_url="http://127.0.0.1:11434/v1", api_key="any", max_tokens=None)
    ContextManager(summarizer=model)
    assert_type(await model("text"), str)
    await model.aclose()


def use_a_library(folder: Path) -> str:
    """Serve instructions without a workspace."""
    counter = TokenCounter(exact=False)
    library = InstructionLibrary([InstructionSource(folder=folder, origin="folder", label="mine")], counter)
    instruction = library.get("research")
    assert_type(instruction.body, bytes)
    return counter.shown(instruction.body.decode())


async def use_settings() -> None:
    """Configure a workspace by a program."""
    settings = load_settings(None, {"prompt.compact": False})
    assert_type(settings, Settings)
    assert_type(settings.origins, Mapping[str, str])
    assert_type([settings.limits(scope).quota_bytes for scope in SCOPES], list[int])
    async with open_workspace(Path(), settings=settings, create=False) as workspace:
        assert_type(workspace, Workspace)
    assert_type(iris_kv.__version__, str)
