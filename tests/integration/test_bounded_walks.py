"""Long values walked through a server process as its answers say: every byte, no answer over its budget."""

from __future__ import annotations

import base64
import json
import re
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import anyio
import pytest
from mcp import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.types import BlobResourceContents, CallToolResult

from iris_kv import open_workspace
from iris_kv.policy import Principal
from iris_kv.tokens import TokenCounter

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE_S: Final = 120
COUNT: Final = TokenCounter().count
USER: Final = Principal(author="user", face="library")
TABLE: Final = {
    "about": {"title": "Zeilen 😀", "n": 36_000},
    "rows": [
        {"id": n, "name": f"row {n} é", "words": "some words that say something of it " * 2, "share": n / 7}
        for n in range(36_000)
    ],
}
RAW: Final = json.dumps(TABLE, indent=1, ensure_ascii=False).encode()
BODY: Final = "# Long\n\n" + "".join(
    f"## Part {n}\n\nStep {n}: look at it, and write down what was found (§ {n * 7919:x}). 😀\n\n" for n in range(2_600)
)
EXPECTED: Final = {"value": RAW, "instruction": BODY.encode(), "binary": b"\xff" + RAW[:300_000]}
TOOLS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "value": ("get_artifact", {"key": "table"}),
    "instruction": ("get_instruction", {"tag": "long"}),
}
URIS: Final = {
    "value": "iris-kv://cache/artifacts/table",
    "instruction": "iris-kv://instructions/long",
    "binary": "iris-kv://cache/artifacts/binary",
}
CAP: Final = 20_000


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with the three values, which no test changes."""
    root = tmp_path_factory.mktemp("filled")
    folder = root / ".iris/instructions"
    folder.mkdir(parents=True)
    (folder / "long.md").write_text(f"---\nname: long\ndescription: Long.\n---\n{BODY}")
    anyio.run(fill, root)
    return root


async def fill(root: Path) -> None:
    async with open_workspace(root) as workspace:
        await workspace.put(USER, "artifacts", "table", RAW)
        await workspace.put(USER, "artifacts", "binary", EXPECTED["binary"])


@asynccontextmanager
async def served(root: Path, home: Path) -> AsyncGenerator[Client]:
    env = {"HOME": str(home), "XDG_CONFIG_HOME": f"{home}/config", "XDG_STATE_HOME": f"{home}/state"}
    command = str(Path(sys.executable).with_name("iris-kv"))
    parameters = StdioServerParameters(command=command, args=["serve", "--workspace", str(root)], env=env)
    with anyio.fail_after(PATIENCE_S), Path("/dev/null").open("a") as log:
        async with Client(stdio_client(parameters, log), cache=None) as client:
            yield client


def text_of(answer: CallToolResult) -> str:
    (content,) = answer.content
    return content.text


def next_call(answer: str) -> tuple[str, dict[str, Any]] | None:
    """Return the call that an answer says gives what follows; None where nothing does."""
    found = re.search(r"\n\n\[bytes \d+-\d+ of \d+\. Next: (\w+)\((.*?)\)(?:\. Or one of its [^\n]*)?\]\Z", answer)
    if found is None:
        return None
    pairs = re.findall(r'(\w+)=("(?:[^"\\]|\\.)*"|\d+)', found[2])
    return found[1], {name: json.loads(value) for name, value in pairs}


def bytes_in(tool: str, answer: str) -> bytes:
    rest = re.sub(r"\n\n\[bytes \d+-\d+ of \d+\. Next: .*\]\Z", "", answer)
    if tool == "get_instruction":
        return rest.split("\n\n", 1)[1].encode()
    found = re.fullmatch(r"<(stored-\w+) [^\n]*>\n(.*)\n</\1>", rest, re.DOTALL)
    assert found is not None
    return found[2].encode()


@pytest.mark.parametrize(
    ("name", "asked"),
    [("value", None), ("value", CAP), ("instruction", None), ("instruction", CAP), ("instruction", 50_000)],
)
async def test_walking_by_tools_gives_every_byte_within_the_budget(
    filled: Path, tmp_path: Path, name: str, asked: int | None
) -> None:
    most = 8_000 if asked is None else CAP
    tool, arguments = TOOLS[name]
    following: tuple[str, dict[str, Any]] | None = (tool, arguments | ({} if asked is None else {"max_tokens": asked}))
    data, sizes = b"", []
    async with served(filled, tmp_path) as client:
        while following is not None:
            answer = text_of(await client.call_tool(*following))
            sizes.append(COUNT(answer))
            data += bytes_in(tool, answer)
            following = next_call(answer)

    assert data == EXPECTED[name]
    assert max(sizes) <= most
    # Pages are nearly full, but the last.
    assert min(sizes[:-1]) > most * 0.97
    assert name == "value" or sum(sizes) > 66_000


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        *(("value", None), ("value", 50_000), ("instruction", None), ("instruction", CAP), ("instruction", 50_000)),
        *(("binary", None), ("binary", 50_000)),
    ],
)
async def test_walking_by_resources_gives_every_byte_within_the_budget(
    filled: Path, tmp_path: Path, name: str, asked: int | None
) -> None:
    most = 8_000 if asked is None else CAP
    uri: str | None = URIS[name] + ("" if asked is None else f"?max_tokens={asked}")
    data, sizes = b"", []
    async with served(filled, tmp_path) as client:
        while uri is not None:
            first, *notes = (await client.read_resource(uri)).contents
            shown = first.blob if isinstance(first, BlobResourceContents) else first.text
            data += base64.b64decode(shown) if isinstance(first, BlobResourceContents) else shown.encode()
            sizes.append(COUNT(shown) + sum(COUNT(note.text) for note in notes))
            uri = notes[0].uri if notes else None

    assert data == EXPECTED[name]
    assert max(sizes) <= most
    assert min(sizes[:-1]) > most * 0.97


async def test_a_pointer_reads_one_row_of_five_megabytes(filled: Path, tmp_path: Path) -> None:
    async with served(filled, tmp_path) as client:
        first = text_of(await client.call_tool("get_artifact", {"key": "table"}))
        pointers = re.findall(r'"(/\w+)"', first[first.rindex(". Or one of its 2 members: pointer=") :])
        row = text_of(await client.call_tool("get_artifact", {"key": "table", "pointer": "/rows/35999"}))
        name = text_of(await client.call_tool("get_artifact", {"key": "table", "pointer": "/rows/35999/name"}))
        beyond = text_of(await client.call_tool("get_artifact", {"key": "table", "pointer": "/rows/36000"}))

    assert len(RAW) > 5_000_000
    assert pointers == ["/about", "/rows"]
    assert json.loads(bytes_in("get_artifact", row)) == TABLE["rows"][35_999]
    assert bytes_in("get_artifact", row) in RAW
    assert bytes_in("get_artifact", name) == '"row 35999 é"'.encode()
    assert '"/rows" is an array of 36000' in beyond


def rewrite_value(root: Path) -> None:
    async def rewrite() -> None:
        async with open_workspace(root) as workspace:
            await workspace.put(USER, "artifacts", "table", RAW.replace(b"row", b"new"))

    anyio.run(rewrite)


def rewrite_instruction(root: Path) -> None:
    file = root / ".iris/instructions/long.md"
    file.write_text(file.read_text().replace("Step 1:", "Step one:"))


@pytest.mark.parametrize(
    ("name", "rewrite"), [("value", rewrite_value), ("instruction", rewrite_instruction)], ids=["value", "instruction"]
)
async def test_a_value_rewritten_by_another_process_between_two_pages_answers_changed(
    tmp_path: Path, name: str, rewrite: Callable[[Path], None]
) -> None:
    root = tmp_path / "work"
    (root / ".iris/instructions").mkdir(parents=True)
    (root / ".iris/instructions/long.md").write_text(f"---\nname: long\ndescription: Long.\n---\n{BODY}")
    await fill(root)
    tool, arguments = TOOLS[name]
    async with served(root, tmp_path) as client:
        following = next_call(text_of(await client.call_tool(tool, arguments)))
        link = (await client.read_resource(URIS[name])).contents[1].uri
        await anyio.to_thread.run_sync(rewrite, root)
        assert following is not None
        by_tool = await client.call_tool(*following)
        while not by_tool.is_error:
            # A file's edit is seen when the last look at the files is a second old.
            by_tool = await client.call_tool(*following)
        with pytest.raises(Exception, match=r"conflict: .* has changed since the page before"):
            await client.read_resource(link)
        again = await client.call_tool(tool, arguments)

    assert by_tool.is_error
    assert text_of(by_tool).startswith("conflict: ")
    assert ("new" if name == "value" else "Step one:") in text_of(again)
