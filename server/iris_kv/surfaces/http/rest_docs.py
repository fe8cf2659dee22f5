"""The documentation page: three files of the package that draw the OpenAPI description, and need no outside address."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Final

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

DOCS_PATH: Final = "/api/docs"
_FILES: Final = {
    "": ("index.html", "text/html"),
    "/docs.css": ("docs.css", "text/css"),
    "/docs.js": ("docs.js", "text/javascript"),
}
_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def install_docs(app: FastAPI) -> None:
    """Add the documentation page to an application; its files are read once, here."""
    folder = Path(__file__).with_name("docs")
    for path, (name, media_type) in _FILES.items():
        content = (folder / name).read_bytes()
        app.add_route(DOCS_PATH + path, partial(_file, content=content, media_type=media_type), ["GET"])


async def _file(_: Request, *, content: bytes, media_type: str) -> Response:
    return Response(content, 200, _HEADERS, media_type)
