"""The verb demo: a real client does the main job against a real server process, twice, and counts the tokens."""

from __future__ import annotations

import json
import tempfile
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.types import PromptMessage, TextContent, Tool

from iris_kv.cli.clients import command_path
from iris_kv.store.folders import CACHE_PATH
from iris_kv.surfaces.tools import tool_tokens
from iris_kv.tokens import ENCODING, TokenCounter

TASK: Final = "Compare the energy use of heat pumps and gas boilers, with sources."
ARTIFACT: Final = "sources/heat-pumps.json"
SOURCES: Final = {"sources": [{"title": "Field trial of heat pumps", "year": 2024, "grade": "A"}]}
SUMMARY: Final = "Goal: a two-page comparison for home owners. Decision: seasonal figures only, no laboratory values."

_WIDTH: Final = 108


class Row(NamedTuple):
    """One line of the closing table."""

    what: str
    tokens: int


async def run_demo(workspace: str | None) -> None:
    """Run the session in a workspace, or in a temporary one that is removed."""
    if workspace is not None:
        await _session(Path(workspace))
        return
    _say("The workspace is a temporary folder, which is removed at the end.")
    with tempfile.TemporaryDirectory(prefix="iris-kv-demo-") as folder:
        await _session(Path(folder))


async def _session(root: Path) -> None:
    _say(f"The workspace is {root}. The task: {TASK}")
    async with _client(root) as client:
        rows = await _first_window(client)
    _step("The client closes, and the server process ends. On disk there is:")
    for path in sorted((root / CACHE_PATH).glob("[!.]*/[!.]*")):
        print(f"   {path.relative_to(root)}")
    async with _client(root) as client:
        await _second_window(client)
    _table(rows)


def _client(root: Path) -> Client:
    arguments = ["serve", "--workspace", str(root), "--log-level", "error"]
    return Client(stdio_client(StdioServerParameters(command=command_path(), args=arguments)), mode="legacy")


async def _first_window(client: Client) -> list[Row]:
    counter = TokenCounter()
    _step(f"A client starts `iris-kv serve` and shakes hands ({client.protocol_version}). The model is told:")
    instructions = client.instructions or ""
    _quote(instructions)

    tools = (await client.list_tools()).tools
    _step(f"It lists the tools: {', '.join(tool.name for tool in tools)}")

    compact = _prompt_text((await client.get_prompt("system")).messages)
    _step(f"It takes the compact system prompt, {counter.shown(compact)} tokens. In it stands the trigger table:")
    _quote("\n".join(line for line in compact.splitlines() if line.startswith(("- document_creation", "- research"))))
    full = _prompt_text((await client.get_prompt("system", {"variant": "full"})).messages)

    instruction = await _call(client, "get_instruction", {"tag": "research"})
    _step("The task is research, so before it starts the model calls get_instruction:")
    _quote(instruction.split("\n\n")[0])

    _step("It does the work, and keeps the sources and the project's decisions:")
    _quote(await _call(client, "put_artifact", {"key": ARTIFACT, "value": json.dumps(SOURCES), "kind": "sources"}))
    _quote(await _call(client, "put_project_summary", {"summary": SUMMARY}))
    return _rows(counter, full, compact, tools, instructions, instruction)


async def _second_window(client: Client) -> None:
    _step("A second server process starts in the same workspace, and everything is there:")
    artifact = await _call(client, "get_artifact", {"key": ARTIFACT})
    summary = await _call(client, "get_project_summary", {})
    _quote(artifact)
    _quote(summary)
    if json.dumps(SOURCES) not in artifact or SUMMARY not in summary:
        raise SystemExit("demo: what was stored did not come back")
    resumed = _prompt_text((await client.get_prompt("resume")).messages)
    _step("A person picks the prompt `resume`, and the model knows where the work stands:")
    _quote(resumed)


def _rows(
    counter: TokenCounter, full: str, compact: str, tools: Sequence[Tool], instructions: str, instruction: str
) -> list[Row]:
    shown, deferred = tool_tokens(tools, counter)
    fixed = counter.count(compact) + counter.count(instructions)
    return [
        Row("full prompt", counter.count(full)),
        Row("compact prompt", counter.count(compact)),
        Row("tools/list, shown", shown),
        Row("tools/list, deferred: get_instruction and the other names", deferred),
        Row("server instructions", counter.count(instructions)),
        Row("standing cost, tools shown", fixed + shown),
        Row("standing cost, tools deferred", fixed + deferred),
        Row("one instruction (research), as answered", counter.count(instruction)),
    ]


async def _call(client: Client, name: str, arguments: dict[str, object]) -> str:
    result = await client.call_tool(name, arguments)
    text = "\n".join(block.text for block in result.content if isinstance(block, TextContent))
    if result.is_error:
        raise SystemExit(f"demo: {name} failed: {text}")
    return text


def _prompt_text(messages: Sequence[PromptMessage]) -> str:
    return "\n".join(message.content.text for message in messages if isinstance(message.content, TextContent))


def _table(rows: Sequence[Row]) -> None:
    exact = TokenCounter().exact
    print(f"\n{'tokens (' + (ENCODING if exact else 'estimated; install iris-kv[tokens] to count') + ')':<60}{'':>8}")
    print("-" * 68)
    for row in rows:
        print(f"{row.what:<60}{row.tokens:>8,}")


def _step(text: str) -> None:
    print()
    _say("* " + text)


def _say(text: str) -> None:
    print(textwrap.fill(text, _WIDTH, subsequent_indent="  "))


def _quote(text: str) -> None:
    for line in text.splitlines():
        for part in textwrap.wrap(line, _WIDTH, subsequent_indent="  ") or [""]:
            print(f"   | {part}")
