"""The verbs serve and demo, which load the MCP SDK."""

from __future__ import annotations

import gc
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import anyio
import typer
from typer.core import TyperCommand

from iris_kv.cli.output import (
    FoldersOption,
    PromptOption,
    TrustOption,
    WorkspaceOption,
    fail,
    given,
    locate,
    note,
    reported,
)
from iris_kv.errors import InvalidArgumentError, UnavailableError
from iris_kv.logs import LogFormat
from iris_kv.rollout import Variant

if TYPE_CHECKING:
    from iris_kv.app import HttpOptions

server = typer.Typer()

DEFAULT_ADDRESS: Final = "127.0.0.1:8765"


class _ServeCommand(TyperCommand):
    """`serve`, whose `--http` may stand without a value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put in the value that was left out; see click's method."""
        complete: list[str] = []
        for argument, following in zip(args, [*args, "--"][1:], strict=True):
            complete.append(argument)
            if argument == "--http" and following.startswith("-"):
                complete.append(DEFAULT_ADDRESS)
        return super().parse_args(ctx, complete)


@server.command(cls=_ServeCommand)
def serve(
    workspace: WorkspaceOption = None,
    profile: Annotated[Literal["standard", "full"] | None, typer.Option(help="Which tools are offered.")] = None,
    instructions: FoldersOption = None,
    prompt: PromptOption = None,
    variant: Annotated[
        Variant | None, typer.Option(help="compact: as the rollout decides; full: full for everybody.")
    ] = None,
    trust_owner: TrustOption = False,
    log_level: Annotated[Literal["debug", "info", "warning", "error"], typer.Option(help="On stderr.")] = "info",
    log_format: Annotated[LogFormat, typer.Option(help="text: key=value; json: one object a line.")] = "text",
    http: Annotated[
        str | None,
        typer.Option(metavar="[HOST:PORT]", help=f"Serve over HTTP; without a value at {DEFAULT_ADDRESS}."),
    ] = None,
    sandboxes: Annotated[
        str | None, typer.Option(metavar="ROOT", help="With --http: each folder in ROOT is a workspace.")
    ] = None,
    max_open: Annotated[int, typer.Option(min=1, help="With --sandboxes: how many are open at once.")] = 64,
    idle_seconds: Annotated[
        float, typer.Option(min=1, help="With --sandboxes: one that nobody uses for so long is closed.")
    ] = 300,
) -> None:
    """Serve MCP over stdin and stdout, or MCP and REST over HTTP."""
    if sys.platform == "win32":
        problem = "native Windows has no file locks that this store needs"
        fail(UnavailableError(problem, "it runs on Linux and macOS", "start it inside WSL"), as_json=False)
    if sandboxes is not None:
        _check_sandboxes(http, workspace)
    if http is None and sys.stdin.isatty():
        note("a client starts this server and talks to it in JSON; see `iris-kv config`. Ctrl-C ends it")
    # Collecting garbage while the SDK is imported takes a tenth of the start.
    gc.disable()
    from iris_kv import app  # noqa: PLC0415 - see above

    gc.freeze()
    gc.enable()
    arguments = given(instructions, prompt, profile=profile, trust_owner=trust_owner)
    if variant is not None:
        arguments["prompt.compact"] = variant == "compact"
    if http is not None:
        options = app.HttpOptions(http, sandboxes, max_open, idle_seconds)
        with reported(as_json=False):
            _serve_http(options, workspace, arguments, log_level, log_format)
        return
    start = app.prepare(workspace, arguments)
    app.configure_logging(log_level, "none" if start.location is None else str(start.location.root), log_format)
    anyio.run(app.serve_stdio, start)


def _serve_http(
    options: HttpOptions, workspace: str | None, arguments: Mapping[str, object], log_level: str, log_format: LogFormat
) -> None:
    from iris_kv import app  # noqa: PLC0415 - loads the MCP SDK

    app.check_http_extra()
    if options.sandboxes is None:
        # Nobody reads the answers of a server without a folder, so that it says at once what is wrong.
        locate(workspace)
        start = app.prepare(workspace, arguments)
    else:
        start = app.prepare_sandboxes(options.sandboxes, arguments)
    served = options.sandboxes or ("none" if start.location is None else str(start.location.root))
    app.configure_logging(log_level, served, log_format)
    anyio.run(app.serve_http, options, start, arguments)


def _check_sandboxes(http: str | None, workspace: str | None) -> None:
    with reported(as_json=False):
        if http is None:
            raise InvalidArgumentError(
                "--sandboxes was given without --http", "over stdio there is one workspace", "add --http"
            )
        if workspace is not None:
            raise InvalidArgumentError(
                "--sandboxes and --workspace were given", "a server has many workspaces or one", "leave one out"
            )


@server.command(short_help="Run a real session and show what it costs.")
def demo(
    workspace: Annotated[
        str | None, typer.Option(help="A folder to use; without it, a temporary one that is removed.")
    ] = None,
) -> None:
    """Run a real session: a client against a server process, its end, a second process, and the token table."""
    from iris_kv.cli.demo import run_demo  # noqa: PLC0415 - loads the MCP SDK

    anyio.run(run_demo, workspace)
