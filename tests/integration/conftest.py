"""A local server that speaks the chat completions of OpenAI's API, with answers that a test scripts."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import pytest


class Reply(NamedTuple):
    """What the server answers."""

    body: Any
    """Sent as JSON, or as it is where it is bytes; None: the server stays silent."""
    status: int = 200


class Asked(NamedTuple):
    """A request that the server got."""

    path: str
    authorization: str | None
    body: dict[str, Any]


class ChatServer:
    """A running server; the last reply is given again and again."""

    def __init__(self, replies: Iterable[Reply]) -> None:
        self.asked: list[Asked] = []
        self._replies = list(replies)
        self._closing = threading.Event()
        chat = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["content-length"])))
                chat.asked.append(Asked(self.path, self.headers["authorization"], request))
                chat.reply(self)

            def log_message(self, *arguments: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_port}"
        self.url = f"http://{self.address}/v1"

    def reply(self, handler: BaseHTTPRequestHandler) -> None:
        reply = self._replies[min(len(self.asked), len(self._replies)) - 1]
        if reply.body is None:
            self._closing.wait(30)
            handler.close_connection = True
            return
        body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        handler.send_response(reply.status)
        handler.send_header("content-type", "application/json")
        handler.send_header("content-length", str(len(body)))
        # The client waits half a second before it tries again, unless it is told how long.
        handler.send_header("retry-after-ms", "1")
        handler.end_headers()
        handler.wfile.write(body)

    @contextmanager
    def running(self) -> Generator[ChatServer]:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield self
        finally:
            self._closing.set()
            self._server.shutdown()
            self._server.server_close()
            thread.join()


ServeChat = Callable[..., AbstractContextManager[ChatServer]]


def said(content: Any, finish_reason: str = "stop", **message: Any) -> Reply:
    """Return a completion with one choice."""
    choice = {
        "index": 0,
        "finish_reason": finish_reason,
        "message": {"role": "assistant", "content": content, **message},
    }
    return Reply({"id": "c1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]})


class Chat(NamedTuple):
    """What tests of a summarizer use: a server, and its replies."""

    serve: ServeChat
    said: Callable[..., Reply]
    reply: type[Reply]


@pytest.fixture
def chat() -> Chat:
    return Chat(lambda *replies: ChatServer(replies).running(), said, Reply)
