"""The MCP client of the OpenAI Agents SDK, without an agent."""

from __future__ import annotations

import asyncio

from agents.mcp import MCPServerStreamableHttp
from task import KEY, MISSING, TAG, TAG_URI, VALUE, address, bearer, show


async def main() -> None:
    url, token = address()
    headers = bearer(token)
    async with MCPServerStreamableHttp({"url": url, "headers": headers}) as server:
        called = await server.call_tool("get_instruction", {"tag": TAG})
        await server.call_tool("put_artifact", {"key": KEY, "value": VALUE})
        got = await server.call_tool("get_artifact", {"key": KEY})
        refused = await server.call_tool("get_artifact", {"key": MISSING})
        show(
            spoken=server.session.protocol_version,
            tools=[tool.name for tool in await server.list_tools()],
            resources=[str(each.uri) for each in (await server.list_resources()).resources],
            read=(await server.read_resource(TAG_URI)).contents[0].text,
            called=called.content[0].text,
            got=got.content[0].text,
            refused=refused.content[0].text if refused.is_error else "",
        )


asyncio.run(main())
