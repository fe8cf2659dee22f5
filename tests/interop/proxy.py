"""A reverse proxy on this machine that adds a token, for clients that cannot send one."""

from __future__ import annotations

import socket
import threading
from collections.abc import AsyncGenerator, Generator, Iterable
from contextlib import asynccontextmanager, contextmanager

import httpx2
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

METHODS = ("GET", "POST", "PUT", "DELETE", "OPTIONS")
END_S = 2
"""How long an open stream may hold up the end."""
HOP_BY_HOP = {b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade"}
"""What says something of one connection only (RFC 9110, section 7.6.1)."""


@contextmanager
def adding_token(url: str, token: str) -> Generator[str]:
    """Forward to a server, bodies and answers as they come, and yield the URL to use instead of its own.

    The client's Host is passed on, and who asked, as proxies do.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(_proxy(url, token), log_config=None, timeout_graceful_shutdown=END_S)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def _proxy(url: str, token: str) -> Starlette:
    async def forward(request: Request) -> StreamingResponse:
        answer = await request.state.client.send(_forwarded(request, url, token), stream=True)
        response = StreamingResponse(_parts(answer), answer.status_code)
        response.raw_headers = _end_to_end(answer.headers.raw)
        return response

    return Starlette(routes=[Route("/{path:path}", forward, methods=METHODS)], lifespan=_connected)


@asynccontextmanager
async def _connected(_: Starlette) -> AsyncGenerator[dict[str, httpx2.AsyncClient]]:
    async with httpx2.AsyncClient(timeout=None, trust_env=False) as client:
        yield {"client": client}


def _forwarded(request: Request, url: str, token: str) -> httpx2.Request:
    who = "" if request.client is None else request.client.host
    added = [(b"authorization", f"Bearer {token}".encode()), (b"x-forwarded-for", who.encode())]
    has_body = "content-length" in request.headers or "transfer-encoding" in request.headers
    # Made by hand, as the client's own request would add what these headers lack.
    return httpx2.Request(
        request.method,
        f"{url}{request.url.path}" + (f"?{request.url.query}" if request.url.query else ""),
        headers=[*_end_to_end(request.headers.raw), *added],
        content=request.stream() if has_body else None,
    )


async def _parts(answer: httpx2.Response) -> AsyncGenerator[bytes]:
    try:
        async for part in answer.aiter_raw():
            yield part
    finally:
        await answer.aclose()


def _end_to_end(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return [(name.lower(), value) for name, value in headers if name.lower() not in HOP_BY_HOP]
