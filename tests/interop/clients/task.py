"""What each client is made to do: the values it uses, and the JSON that it prints of what it saw.

The clients run in environments of their own, so this imports nothing but the standard library.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

URL = "IRIS_KV_CLIENT_URL"
"""The variable with the URL of the MCP endpoint."""
TOKEN = "IRIS_KV_CLIENT_TOKEN"
"""The variable with the token; without it, none is sent."""

TAG = "research"
TAG_URI = f"iris-kv://instructions/{TAG}"
KEY = "reports/ünïcode & more.md"
VALUE = "Grüße 漢字\n" * 300
MISSING = "reports/nothing.md"


def address() -> tuple[str, str | None]:
    """Return the URL and the token that the environment names."""
    return os.environ[URL], os.environ.get(TOKEN)


def bearer(token: str | None) -> dict[str, str]:
    """Return the headers that carry a token."""
    return {} if token is None else {"Authorization": f"Bearer {token}"}


def show(
    *, spoken: str, tools: Sequence[str], resources: Sequence[str], read: str, called: str, got: str, refused: str
) -> None:
    """Print what a client saw.

    Args:
        spoken: The protocol version that it agreed on.
        tools: The tools' names, in the server's order.
        resources: The resources' URIs, in the server's order.
        read: The text of the resource `TAG_URI`.
        called: What `get_instruction` answered for `TAG`.
        got: What `get_artifact` answered for `KEY`, which was put before.
        refused: What the client made of the error for `MISSING`.
    """
    json.dump(locals(), sys.stdout)
