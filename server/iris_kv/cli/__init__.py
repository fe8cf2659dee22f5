"""The command line `iris-kv`."""

from __future__ import annotations

from typing import Annotated

import typer

from iris_kv import __version__
from iris_kv.cli.clients import clients
from iris_kv.cli.doctor import doctor_app
from iris_kv.cli.entries import entries
from iris_kv.cli.library import library, prompts
from iris_kv.cli.server import server

app = typer.Typer(
    name="iris-kv",
    help="Instructions on demand and a durable cache for LLM agents, as an MCP server.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(server)
app.add_typer(prompts)
app.add_typer(library, name="instructions")
app.add_typer(entries)
app.add_typer(clients)
app.add_typer(doctor_app)


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - typer's callback
    if wanted:
        print(f"iris-kv {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version


def main() -> None:
    """Run the command line."""
    app()
