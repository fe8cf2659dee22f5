"""The SDK's client."""

from __future__ import annotations

import asyncio

import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from task import KEY, MISSING, TAG, TAG_URI, VALUE, address, bearer, show


async def main() -> None:
    url, token = address()
    headers = bearer(token)
    async with (
        httpx2.AsyncClient(headers=headers, timeout=30) as http,
        Client(streamable_http_client(url, http_client=http)) as client,
    ):
        called = await client.call_tool("get_instruction", {"tag": TAG})
        await client.call_tool("put_artifact", {"key": KEY, "value": VALUE})
        got = await client.call_tool("get_artifact", {"key": KEY})
        refused = await client.call_tool("get_artifact", {"key": MISSING})
        show(
            spoken=client.protocol_version,
            tools=[tool.name for tool in (await client.list_tools()).tools],
            resources=[each.uri for each in (await client.list_resources()).resources],
            read=(await client.read_resource(TAG_URI)).contents[0].text,
            called=called.content[0].text,
            got=got.content[0].text,
            refused=refused.content[0].text if refused.is_error else "",
        )


asyncio.run(main())
