"""The one ASGI application of the HTTP faces."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.routing import Route

from iris_kv import __version__
from iris_kv.settings import Profile
from iris_kv.surfaces.http.access import Access, AccessMiddleware
from iris_kv.surfaces.http.mcp_routes import McpEndpoint
from iris_kv.surfaces.http.platform import Platform
from iris_kv.surfaces.http.rest import install_rest


def build_app(platform: Platform, profile: Profile, access: Access) -> FastAPI:
    """Return the application: MCP and REST for the workspaces of a platform, behind one gate."""
    endpoint = McpEndpoint(platform, profile)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        async with platform.run(), endpoint.manager.run():
            yield

    app = FastAPI(
        title="iris-kv",
        version=__version__,
        lifespan=lifespan,
        openapi_url=None,
        redirect_slashes=False,
        # What is measured is ours to say, and no request waits for a look at what else may be installed.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.platform = platform
    app.state.endpoint = endpoint
    path = "/sandboxes/{sandbox}/mcp" if platform.is_shared else "/mcp"
    app.router.routes.append(Route(path, endpoint))
    install_rest(app)
    # The outermost.
    app.add_middleware(AccessMiddleware, access=access)
    return app
