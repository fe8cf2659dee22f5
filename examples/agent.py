"""A small agent that works with iris-kv over MCP, from its first look at the server to a second session.

    python examples/agent.py [WORKSPACE]

It talks to a real `iris-kv serve` process. Only the language model is a stand-in, so that every run
does the same; a real agent puts its model in the place of `FakeModel` and keeps the rest.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from pathlib import Path

import anyio
from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.types import TextContent

TASK = "Compare heat pumps and gas boilers, and give sources for every claim."
STATE_KEY = "heat-pumps/state"
REPORT_KEY = "reports/heat-pumps.md"


class FakeModel:
    """Answers by simple rules what a language model would answer by reading."""

    def __init__(self, instructions: str) -> None:
        """Read the server's instructions, which a host shows its model.

        In them stands the trigger table: one line for each kind of task, with the tag to ask for and
        when to use it.
        """
        self.table = dict(re.findall(r"^- (\w+): (.+)$", instructions, re.MULTILINE))

    def tag_for(self, task: str) -> str:
        """Return the tag of the kind of task whose description shares most words with the task."""
        words = set(re.findall(r"[a-z]{4,}", task.lower()))
        return max(self.table, key=lambda tag: len(words & set(re.findall(r"[a-z]{4,}", self.table[tag].lower()))))

    def plan(self, instruction: str) -> list[str]:
        """Return the steps that an instruction asks for: here, the headings of its main parts."""
        return re.findall(r"^## (.+)$", instruction, re.MULTILINE)

    def work(self, step: str) -> str:
        """Return what doing a step gives."""
        return f"- {step}: done"


class Agent:
    """The loop around a model: it calls the tools that the model chooses, and shows each step."""

    def __init__(self, client: Client) -> None:
        """Work through a connected client."""
        self._client = client

    async def call(self, tool: str, **arguments: object) -> str:
        """Call a tool and return its text; an error's text says what to do next, so a model may read it, too."""
        answer = await self._client.call_tool(tool, arguments)
        text = "\n".join(block.text for block in answer.content if isinstance(block, TextContent))
        if answer.is_error:
            raise SystemExit(f"{tool}: {text}")
        return text

    async def do(self, task: str) -> None:
        """Do a task: look what is known, load the instruction, follow it, and keep what came out."""
        model = FakeModel(self._client.instructions or "")
        print(f"task: {task}")
        print(f"the trigger table names: {', '.join(model.table)}")

        # What earlier sessions found out. Where there is nothing yet, the answer says so and is no error.
        print(f"known so far: {last_line(await self.call('get_project_summary'))}")

        # The rule of the server's instructions: load before you start, and again after a compaction.
        tag = model.tag_for(task)
        instruction = await self.call("get_instruction", tag=tag)
        print(f"the task is {tag}: {instruction.splitlines()[0]}")

        report = [f"# {task}"]
        steps = model.plan(instruction)
        for number, step in enumerate(steps, 1):
            report.append(model.work(step))
            # Kept after each step, so that a session that ends in the middle can be taken up.
            state = {"task": task, "instruction": tag, "done": number, "of": len(steps)}
            await self.call("cache_put", scope="task", key=STATE_KEY, value=json.dumps(state))
        print(f"followed {len(steps)} parts of the instruction, with the state kept after each")

        stored = await self.call("put_artifact", key=REPORT_KEY, value="\n".join(report), kind="report")
        print(f"artifact: {stored.splitlines()[0]}")
        await self.call("put_project_summary", summary=f"The comparison is written: artifact {REPORT_KEY}.")

    async def resume(self) -> None:
        """Read everything back, as the next session of the agent would."""
        for tool, arguments in (
            ("get_project_summary", {}),
            ("get_artifact", {"key": REPORT_KEY}),
            ("cache_get", {"scope": "task", "key": STATE_KEY}),
        ):
            # Stored values come between fence lines: what stands inside is data and never an instruction.
            print(f"read back with {tool}: {last_line(await self.call(tool, **arguments))}")

    async def show_origin(self, scope: str, key: str) -> None:
        """Show who wrote an entry; `system` and `instructions` are written by the server's seeder alone."""
        # The server seeds in the background, and no answer waits for it.
        with anyio.fail_after(30):
            while f'"{key}"' not in await self.call("cache_list", scope=scope):  # noqa: ASYNC110 - tools have no events
                await anyio.sleep(0.05)
        fence = (await self.call("cache_get", scope=scope, key=key)).splitlines()[0]
        written_by = re.search(r'written_by="(.+?)"', fence)
        print(f"{scope}/{key} was written by: {written_by[1] if written_by else 'nobody?'}")


def last_line(answer: str) -> str:
    """Return the last line of an answer's content, without the fence around a stored value."""
    return [line for line in answer.splitlines() if not re.match(r"</?stored-", line)][-1]


def connect(workspace: Path) -> Client:
    """Return a client that starts a server process of its own when it is entered, and ends it when it is left."""
    command = str(Path(sys.executable).with_name("iris-kv"))
    arguments = ["serve", "--workspace", str(workspace), "--log-level", "error"]
    return Client(stdio_client(StdioServerParameters(command=command, args=arguments)))


async def main(workspace: Path) -> None:
    """Run two sessions in one workspace."""
    async with connect(workspace) as client:
        await Agent(client).do(TASK)
    print("-- the session ends, and with it the server process; a new one starts --")
    async with connect(workspace) as client:
        agent = Agent(client)
        await agent.resume()
        await agent.show_origin("instructions", "research")
        await agent.show_origin("system", "prompt/compact")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        anyio.run(main, Path(sys.argv[1]).absolute())
    else:
        with tempfile.TemporaryDirectory() as folder:
            anyio.run(main, Path(folder))
