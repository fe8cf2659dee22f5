"""What tells a client how to get in: the protected resource's metadata (RFC 9728), and challenges (RFC 6750)."""

from __future__ import annotations

import re
from typing import Final

from starlette.types import Scope

from iris_kv.http_settings import HttpSettings
from iris_kv.policy import RIGHTS
from iris_kv.surfaces.http.access_doors import Doors

WELL_KNOWN: Final = "/.well-known/oauth-protected-resource"
_MCP: Final = re.compile(r"/mcp|/sandboxes/[A-Za-z0-9_-]{1,64}/mcp")


def is_mcp(path: str) -> bool:
    """Tell whether a path is that of an MCP server."""
    return _MCP.fullmatch(path) is not None


def metadata(scope: Scope, doors: Doors, settings: HttpSettings) -> dict[str, object] | None:
    """Return what the document at a well-known path says; None: there is no such resource.

    It says nothing of whether a sandbox exists.
    """
    resource = scope["path"].removeprefix(WELL_KNOWN)
    if resource and not is_mcp(resource):
        return None
    found: dict[str, object] = {
        "resource": doors.base_url(scope) + resource,
        "resource_name": "iris-kv",
        "bearer_methods_supported": ["header"],
        "scopes_supported": list(RIGHTS),
    }
    issuer = settings.jwt_issuer
    return found if issuer is None else {**found, "authorization_servers": [issuer]}


def challenge(scope: Scope, doors: Doors, error: str | None = None, needed: str | None = None) -> dict[str, str]:
    """Return the header that says what a request lacked.

    Args:
        scope: The request, whose path names the resource.
        doors: Knows under which address the client knows this server.
        error: RFC 6750's code; None where no token was sent.
        needed: The scope that the token lacks.
    """
    path = scope["path"]
    # Nothing else of the request stands in the header, so that nothing can be put into it.
    parts = [f'resource_metadata="{doors.base_url(scope)}{WELL_KNOWN}{path if is_mcp(path) else ""}"']
    parts += [] if error is None else [f'error="{error}"']
    parts += [] if needed is None else [f'scope="{needed}"']
    return {"www-authenticate": "Bearer " + ", ".join(parts)}
