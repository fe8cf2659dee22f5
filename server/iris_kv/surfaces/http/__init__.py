"""The faces over HTTP: MCP, the REST administration API, health and metrics."""
