"""The floor: the smallest server that the SDK gives, with one tool that does nothing."""

from mcp.server import MCPServer

server = MCPServer(name="floor", version="1")


@server.tool(structured_output=False)
def nothing() -> str:
    """Do nothing."""
    return "nothing"


if __name__ == "__main__":
    server.run()
