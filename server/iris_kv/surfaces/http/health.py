"""Health and metrics: whether the process answers, whether it can do its work, and what it measured."""

from __future__ import annotations

import anyio
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from iris_kv.errors import IrisError, UnavailableError
from iris_kv.surfaces.http.metrics import CONTENT_TYPE, Metrics
from iris_kv.surfaces.http.platform import Platform
from iris_kv.surfaces.http.problems import problem_response

_READY_S = 5.0


class Health:
    """The endpoints `/healthz`, `/readyz` and `/metrics`, for anybody: none tells a secret."""

    def __init__(self, platform: Platform, metrics: Metrics) -> None:
        """Tell of a platform."""
        self._platform = platform
        self._metrics = metrics
        self.is_closing = False
        """Whether the server is shutting down, so that no new work should be sent to it."""

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("/healthz", self._healthz, name="healthz"),
            Route("/readyz", self._readyz, name="readyz"),
            Route("/metrics", self._measured, name="metrics"),
        ]

    async def _healthz(self, request: Request) -> Response:
        request.state.operation = "healthz"
        return _said("ok")

    async def _readyz(self, request: Request) -> Response:
        request.state.operation = "readyz"
        try:
            if self.is_closing:
                raise UnavailableError("the server is shutting down", "it takes no new work", "use another one")
            with anyio.fail_after(_READY_S):
                await self._platform.check_ready()
        except TimeoutError:
            error = UnavailableError(f"the store did not answer in {_READY_S:g} s", "it answers sooner", "look at it")
            return problem_response(error)
        except IrisError as error:
            return problem_response(error)
        return _said("ready")

    async def _measured(self, request: Request) -> Response:
        request.state.operation = "metrics"
        self._metrics.open_workspaces.set(len(self._platform.open_ids))
        used, quota_bytes = await self._platform.usage()
        self._metrics.usage(used, quota_bytes)
        return Response(self._metrics.text(), media_type=CONTENT_TYPE)


def _said(status: str) -> JSONResponse:
    return JSONResponse({"status": status}, headers={"cache-control": "no-store"})
