"""Openers of MCP servers: in this process, and as a real process over stdio; both for either era."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

import pytest
from mcp import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.types import BlobResourceContents, TextContent, TextResourceContents

from iris_kv import app
from iris_kv.location import Location
from iris_kv.model import Clock
from iris_kv.settings import Profile, Settings
from iris_kv.surfaces.mcp_server import IrisServer
from iris_kv.surfaces.visits import OneWorkspace
from iris_kv.workspace import Workspace

Era = Literal["legacy", "auto"]
"""`auto` is 2026-07-28: our server speaks it, so that the client never falls back."""

FAST = Settings(durability="fast")


class Session:
    """A connected client, and short words for what most tests do with it."""

    def __init__(self, client: Client) -> None:
        self.client = client

    async def call(self, tool: str, /, **arguments: Any) -> str:
        """Return the only text of an answer that is no error."""
        return await self._text(tool, arguments, is_error=False)

    async def refusal(self, tool: str, /, **arguments: Any) -> str:
        """Return the only text of an answer that is an error."""
        return await self._text(tool, arguments, is_error=True)

    async def _text(self, tool: str, arguments: dict[str, Any], *, is_error: bool) -> str:
        answer = await self.client.call_tool(tool, arguments)
        (content,) = answer.content
        assert isinstance(content, TextContent)
        assert bool(answer.is_error) is is_error, content.text
        return content.text

    async def data(self, tool: str, /, **arguments: Any) -> dict[str, Any]:
        """Return the structured content of an answer."""
        answer = await self.client.call_tool(tool, arguments)
        assert answer.structured_content is not None, answer
        return answer.structured_content

    async def contents(self, uri: str) -> list[TextResourceContents | BlobResourceContents]:
        """Return what a resource holds, and the note behind it where it goes on."""
        return (await self.client.read_resource(uri)).contents

    async def resource(self, uri: str) -> str:
        """Return the only text of a resource."""
        (content,) = await self.contents(uri)
        assert isinstance(content, TextResourceContents)
        return content.text


class LocalSession(Session):
    """A session with a server in this process, and what that serves."""

    def __init__(self, client: Client, server: IrisServer, workspace: Workspace) -> None:
        super().__init__(client)
        self.server = server
        self.workspace = workspace


class Open(Protocol):
    """Opens a server in this process with a client; used with `async with`."""

    def __call__(
        self,
        era: Era = ...,
        *,
        root: Path | None = ...,
        profile: Profile = ...,
        settings: Settings = ...,
        clock: Clock | None = ...,
        **client_options: Any,
    ) -> AbstractAsyncContextManager[LocalSession]: ...


class Serve(Protocol):
    """Starts `iris-kv serve` with a client; used with `async with`. What it logs goes to `stderr`."""

    def __call__(
        self,
        era: Era,
        *arguments: str,
        root: Path | None = ...,
        env: Mapping[str, str] | None = ...,
        cwd: Path | None = ...,
        stderr: Path | None = ...,
        before: tuple[str, ...] = ...,
        **client_options: Any,
    ) -> AbstractAsyncContextManager[Session]: ...


class Start(Protocol):
    """Opens a server in this process as `serve` does it, with what it finds on its way; used with `async with`."""

    def __call__(self, era: Era, root: Path | None) -> AbstractAsyncContextManager[LocalSession]: ...


@pytest.fixture(params=["legacy", "auto"])
def era(request: pytest.FixtureRequest) -> Era:
    return request.param


@pytest.fixture
def open_server(workspace: Path) -> Open:
    @asynccontextmanager
    async def opener(
        era: Era = "auto",
        *,
        root: Path | None = None,
        profile: Profile = "full",
        settings: Settings = FAST,
        clock: Clock | None = None,
        **client_options: Any,
    ) -> AsyncGenerator[LocalSession]:
        opened = Workspace(Location(root=root or workspace, reason="test"), settings, face="mcp", clock=clock)
        server = IrisServer(OneWorkspace(opened), profile)
        try:
            async with Client(server, mode=era, cache=None, **client_options) as client:
                yield LocalSession(client, server, opened)
        finally:
            await opened.aclose()

    return opener


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, home: Mapping[str, str]) -> Start:
    @asynccontextmanager
    async def opener(era: Era, root: Path | None) -> AsyncGenerator[LocalSession]:
        found = app.prepare(None if root is None else str(root), {"profile": "full"})
        opened = Workspace(found.location, found.settings, face="mcp", problem=found.problem)
        server = IrisServer(OneWorkspace(opened), found.settings.profile)
        try:
            async with Client(server, mode=era, cache=None) as client:
                yield LocalSession(client, server, opened)
        finally:
            await opened.aclose()

    for name, value in home.items():
        monkeypatch.setenv(name, value)
    return opener


@pytest.fixture
def serve(workspace: Path, home: Mapping[str, str]) -> Serve:
    @asynccontextmanager
    async def opener(
        era: Era,
        *arguments: str,
        root: Path | None = workspace,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stderr: Path | None = None,
        before: tuple[str, ...] = (),
        **client_options: Any,
    ) -> AsyncGenerator[Session]:
        command, *rest = [*before, str(Path(sys.executable).with_name("iris-kv")), "serve", *arguments]
        named = [] if root is None else ["--workspace", str(root)]
        parameters = StdioServerParameters(command=command, args=[*rest, *named], env={**home, **(env or {})}, cwd=cwd)
        with (stderr or Path("/dev/null")).open("a") as errlog:
            async with Client(stdio_client(parameters, errlog), mode=era, cache=None, **client_options) as client:
                yield Session(client)

    return opener


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """The environment of a user who has no configuration and no error log yet."""
    folder = str(tmp_path_factory.mktemp("home"))
    return {"HOME": folder, "XDG_CONFIG_HOME": f"{folder}/config", "XDG_STATE_HOME": f"{folder}/state"}
