"""The verbs serve and demo, which load the MCP SDK."""

from __future__ import annotations

import gc
import sys
from typing import Annotated, Literal

import anyio
import typer

from iris_kv.cli.output import FoldersOption, PromptOption, TrustOption, WorkspaceOption, fail, given, note
from iris_kv.errors import UnavailableError
from iris_kv.rollout import Variant

server = typer.Typer()


@server.command()
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
) -> None:
    """Serve MCP over stdin and stdout."""
    if sys.platform == "win32":
        problem = "native Windows has no file locks that this store needs"
        fail(UnavailableError(problem, "it runs on Linux and macOS", "start it inside WSL"), as_json=False)
    if sys.stdin.isatty():
        note("a client starts this server and talks to it in JSON; see `iris-kv config`. Ctrl-C ends it")
    # Collecting garbage while the SDK is imported takes a tenth of the start.
    gc.disable()
    from iris_kv import app  # noqa: PLC0415 - see above

    gc.freeze()
    gc.enable()
    arguments = given(instructions, prompt, profile=profile, trust_owner=trust_owner)
    if variant is not None:
        arguments["prompt.compact"] = variant == "compact"
    start = app.prepare(workspace, arguments)
    app.configure_logging(log_level, "none" if start.location is None else str(start.location.root))
    anyio.run(app.serve_stdio, start)


@server.command(short_help="Run a real session and show what it costs.")
def demo(
    workspace: Annotated[
        str | None, typer.Option(help="A folder to use; without it, a temporary one that is removed.")
    ] = None,
) -> None:
    """Run a real session: a client against a server process, its end, a second process, and the token table."""
    from iris_kv.cli.demo import run_demo  # noqa: PLC0415 - loads the MCP SDK

    anyio.run(run_demo, workspace)
