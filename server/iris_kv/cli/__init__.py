"""The command line `iris-kv`."""

from __future__ import annotations

import io
import logging
import os
import sys
from typing import Annotated

import typer

from iris_kv import __version__
from iris_kv.cli.clients import clients
from iris_kv.cli.doctor import doctor_app
from iris_kv.cli.entries import entries
from iris_kv.cli.history import history_app
from iris_kv.cli.library import library, prompts
from iris_kv.cli.rollout import rollout
from iris_kv.cli.safety import safety
from iris_kv.cli.server import server
from iris_kv.cli.split import split_app
from iris_kv.cli.token import token
from iris_kv.cli.upkeep import upkeep

app = typer.Typer(
    name="iris-kv",
    help="Instructions on demand and a durable cache for LLM agents, as an MCP server.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    # Plain help and errors, the same with rich and without; rendering help with rich takes 0.8 s.
    rich_markup_mode=None,
)
app.add_typer(server)
app.add_typer(prompts)
app.add_typer(split_app)
app.add_typer(library, name="instructions")
app.add_typer(rollout, name="rollout")
app.add_typer(token, name="token")
app.add_typer(entries)
app.add_typer(history_app)
app.add_typer(upkeep)
app.add_typer(safety)
app.add_typer(clients)
app.add_typer(doctor_app)


def _print_version(wanted: bool) -> None:
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
    """Run the command line, in UTF-8 whatever the locale says, and quietly where a reader such as `head` leaves."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    # Verbs say themselves what is wrong; serve sets up its own logging.
    logging.basicConfig(level=logging.CRITICAL, format="%(message)s")
    # Whichever verb opens the store may have to wait until its index is made anew.
    logging.getLogger("iris_kv.store.rebuild").setLevel(logging.WARNING)
    try:
        try:
            app()
        finally:
            print(end="", flush=True)
    except BrokenPipeError:
        # What is still buffered would fail once more when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
