"""The MCP client of langchain-mcp-adapters, without a model."""

from __future__ import annotations

import asyncio

from langchain_mcp_adapters.client import MultiServerMCPClient
from langchain_mcp_adapters.tools import load_mcp_tools
from task import KEY, MISSING, TAG, TAG_URI, VALUE, address, bearer, show


async def main() -> None:
    url, token = address()
    headers = bearer(token)
    client = MultiServerMCPClient({"iris-kv": {"transport": "streamable_http", "url": url, "headers": headers}})
    tools = {tool.name: tool for tool in await client.get_tools()}
    called = await tools["get_instruction"].ainvoke({"tag": TAG})
    await tools["put_artifact"].ainvoke({"key": KEY, "value": VALUE})
    (read,) = await client.get_resources("iris-kv", uris=TAG_URI)
    async with client.session("iris-kv", auto_initialize=False) as session:
        greeting = await session.initialize()
        in_session = {tool.name: tool for tool in await load_mcp_tools(session)}
        got = await in_session["get_artifact"].ainvoke({"key": KEY})
        refused = await in_session["get_artifact"].ainvoke({"key": MISSING})
        show(
            spoken=greeting.protocolVersion,
            tools=list(tools),
            resources=[str(each.uri) for each in (await session.list_resources()).resources],
            read=read.as_string(),
            called=called[0]["text"],
            got=got[0]["text"],
            refused=refused[0]["text"],
        )


asyncio.run(main())
