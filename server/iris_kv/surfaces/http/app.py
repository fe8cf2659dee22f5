"""The one ASGI application of the HTTP faces."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from iris_kv import __version__
from iris_kv.errors import IrisError
from iris_kv.settings import Profile
from iris_kv.surfaces.http.mcp_routes import McpEndpoint
from iris_kv.surfaces.http.platform import Platform
from iris_kv.surfaces.http.problems import problem_response


def build_app(platform: Platform, profile: Profile) -> FastAPI:
    """Return the application: MCP for the workspaces of a platform."""
    endpoint = McpEndpoint(platform, profile)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        async with platform.run(), endpoint.manager.run():
            yield

    app = FastAPI(title="iris-kv", version=__version__, lifespan=lifespan, openapi_url=None)
    app.state.platform = platform
    app.state.endpoint = endpoint
    app.add_exception_handler(IrisError, _problem)
    path = "/sandboxes/{sandbox}/mcp" if platform.is_shared else "/mcp"
    app.router.routes.append(Route(path, endpoint))
    return app


async def _problem(_: Request, error: Exception) -> Response:
    if not isinstance(error, IrisError):
        raise error
    return problem_response(error)
