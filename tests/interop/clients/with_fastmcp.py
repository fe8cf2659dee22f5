"""FastMCP's client."""

from __future__ import annotations

import asyncio

from fastmcp import Client
from fastmcp.exceptions import ToolError
from task import KEY, MISSING, TAG, TAG_URI, VALUE, address, show


async def main() -> None:
    url, token = address()
    async with Client(url, auth=token) as client:
        called = await client.call_tool("get_instruction", {"tag": TAG})
        await client.call_tool("put_artifact", {"key": KEY, "value": VALUE})
        got = await client.call_tool("get_artifact", {"key": KEY})
        try:
            await client.call_tool("get_artifact", {"key": MISSING})
            refused = ""
        except ToolError as error:
            refused = str(error)
        show(
            spoken=client.protocol_version,
            tools=[tool.name for tool in await client.list_tools()],
            resources=[str(each.uri) for each in await client.list_resources()],
            read=(await client.read_resource(TAG_URI))[0].text,
            called=called.content[0].text,
            got=got.content[0].text,
            refused=refused,
        )


asyncio.run(main())
