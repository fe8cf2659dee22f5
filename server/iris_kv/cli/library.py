"""The verbs that show and check what is served: instructions and prompt."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from iris_kv.block import install_block, uninstall_block
from iris_kv.cli.output import FoldersOption, JsonOption, WorkspaceOption, fail, given, locate, note, show
from iris_kv.errors import InvalidArgumentError, IrisError
from iris_kv.instruction_check import check
from iris_kv.instructions import Instruction, InstructionLibrary, InstructionSource, section
from iris_kv.location import Location
from iris_kv.settings import load_settings
from iris_kv.workspace import Workspace, instruction_sources

library = typer.Typer(no_args_is_help=True, help="List, show and check instructions.")
prompts = typer.Typer()


@library.command(name="list")
def list_instructions(
    workspace: WorkspaceOption = None, instructions: FoldersOption = None, as_json: JsonOption = False
) -> None:
    """List the instructions served: where each comes from, its version, and what it overrides."""
    found = _workspace(workspace, instructions, as_json=as_json).library
    rows = [
        {
            "tag": each.tag,
            "version": each.version,
            "origin": each.origin,
            "source": each.source,
            "overrides": each.overrides,
            "digest": each.digest,
            "tokens": each.tokens,
            "description": each.description,
        }
        for each in found.instructions
    ]
    data = {"instructions": rows, "errors": [error.model_dump() for error in found.errors]}
    show(data, "\n".join([*map(_listed, found.instructions), *_errors(found)]), as_json=as_json)


@library.command(name="show")
def show_instruction(
    tag: Annotated[str, typer.Argument(help="The tag or an alias.")],
    section_name: Annotated[str | None, typer.Option("--section", help="One section, by slug or title.")] = None,
    workspace: WorkspaceOption = None,
    instructions: FoldersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print an instruction's body, or one of its sections."""
    found = _workspace(workspace, instructions, as_json=as_json)
    try:
        each = found.library.get(tag)
        body = each.body
        if section_name is not None:
            part = section(each, section_name)
            body = body[part.start : part.end]
    except IrisError as error:
        fail(error, as_json=as_json)
    text = body.decode()
    data = {"tag": each.tag, "version": each.version, "origin": each.origin, "digest": each.digest, "body": text}
    show(data, text.rstrip("\n"), as_json=as_json)


@library.command(name="check")
def check_instructions(
    folders: Annotated[list[Path] | None, typer.Argument(help="Folders; without one, all that are served.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Over 3,500 tokens or 500 lines is an error.")] = False,
    workspace: WorkspaceOption = None,
    instructions: FoldersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Validate instruction files, count their tokens, and compare them with Git's HEAD."""
    served = _workspace(workspace, instructions, as_json=as_json)
    sources = (
        [InstructionSource(folder=each.absolute(), origin="folder", label=str(each)) for each in folders]
        if folders
        else instruction_sources(served.location, served.settings)
    )
    report = check(sources, served.counter, strict=[each.label for each in sources if strict])
    lines: list[str] = []
    for each in report.instructions:
        lines.append(f"{each.tag}: {each.tokens} tokens, version {each.version or 'none'} ({each.file})")
        lines += [f"    {part.tokens:>5}  {part.slug}" for part in each.sections]
        lines += [f"  warning: {warning}" for warning in each.warnings]
    lines += [f"problem in {problem.file}: {problem.problem}" for problem in report.problems]
    lines.append(f"{len(report.instructions)} instructions, {len(report.problems)} problems")
    show(report, "\n".join(lines), as_json=as_json)
    if not report.ok:
        raise SystemExit(2)


@prompts.command()
def prompt(
    variant: Annotated[str | None, typer.Option(help="compact or full; without it, as configured.")] = None,
    install: Annotated[Path | None, typer.Option(help="Write the trigger table into this file.")] = None,
    uninstall: Annotated[Path | None, typer.Option(help="Take the trigger table out of this file.")] = None,
    workspace: WorkspaceOption = None,
    instructions: FoldersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the system prompt, or keep the trigger table in a file that the host reads, such as AGENTS.md."""
    try:
        if uninstall is not None:
            uninstall_block(uninstall)
            show({"file": str(uninstall), "outcome": "removed"}, f"removed from {uninstall}", as_json=as_json)
            return
        served = _workspace(workspace, instructions, as_json=as_json)
        if install is not None:
            outcome = install_block(install, installed_text(served))
            show({"file": str(install), "outcome": outcome}, f"{outcome}: {install}", as_json=as_json)
            return
        chosen = served.prompts.select(variant)
    except IrisError as error:
        fail(error, as_json=as_json)
    note(f"{chosen.variant} (chosen by: {chosen.reason}), {served.counter.shown(chosen.text)} tokens")
    show(chosen, chosen.text.rstrip("\n"), as_json=as_json)


def installed_text(workspace: Workspace) -> str:
    """Return what `prompt --install` writes: the rule and the trigger table."""
    return "## Instructions on demand (iris-kv)\n\n" + workspace.prompts.server_instructions()


def _workspace(name: str | None, folders: list[Path] | None, *, as_json: bool) -> Workspace:
    """Return the library and the prompts; they are served without a workspace, too."""
    try:
        location: Location | None = None
        if name is not None:
            location = locate(name)
        else:
            with suppress(InvalidArgumentError):
                location = locate(None)
        settings = load_settings(None if location is None else location.root, given(folders))
        return Workspace(location, settings, face="cli", create=False)
    except IrisError as error:
        fail(error, as_json=as_json)


def _listed(each: Instruction) -> str:
    over = "" if each.overrides is None else f", overrides shipped {each.overrides}"
    return f"{each.tag} {each.version or '(no version)'} from {each.source}{over}, {each.tokens} tokens"


def _errors(found: InstructionLibrary) -> list[str]:
    return [f"error in {error.file}: {error.problem}" for error in found.errors]
