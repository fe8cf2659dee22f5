"""iris-kv: instructions on demand and a durable cache for LLM agents.

A program opens a workspace as the server does, and calls what every face calls:

    me = Principal(author="agent", face="library")
    async with open_workspace("/path/to/project") as workspace:
        print(await workspace.get_instruction("research"))
        await workspace.put(me, "artifacts", "sources.json", b"[]")
        print((await workspace.get("artifacts", "sources.json")).value)

Everything that it raises on purpose is an `IrisError`; `iris_kv.errors` has the tree.
"""

from __future__ import annotations

from iris_kv.background import open_workspace
from iris_kv.context.compression import Compression, CompressionReport
from iris_kv.context.manager import ContextManager
from iris_kv.context.summaries import Summarizer
from iris_kv.context.summarizer import OpenAISummarizer
from iris_kv.errors import IrisError
from iris_kv.instructions import Instruction, InstructionLibrary, InstructionSource
from iris_kv.model import SCOPES, Entry, EntryInfo, Page, Scope
from iris_kv.policy import Principal
from iris_kv.prompts import Prompt, PromptSelector
from iris_kv.settings import Settings, load_settings
from iris_kv.tokens import TokenCounter
from iris_kv.workspace import Workspace

__version__ = "0.1.0"

__all__ = [
    "SCOPES",
    "Compression",
    "CompressionReport",
    "ContextManager",
    "Entry",
    "EntryInfo",
    "Instruction",
    "InstructionLibrary",
    "InstructionSource",
    "IrisError",
    "OpenAISummarizer",
    "Page",
    "Principal",
    "Prompt",
    "PromptSelector",
    "Scope",
    "Settings",
    "Summarizer",
    "TokenCounter",
    "Workspace",
    "load_settings",
    "open_workspace",
]
