"""The verbs that show and check what is served: instructions and prompt."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import anyio
import typer

from iris_kv.block import install_block, uninstall_block
from iris_kv.cli.output import (
    FoldersOption,
    JsonOption,
    PromptOption,
    SubjectOption,
    WorkspaceOption,
    given,
    locate,
    note,
    reported,
    show,
)
from iris_kv.errors import InvalidArgumentError
from iris_kv.guidance import instruction_sources
from iris_kv.instruction_check import check
from iris_kv.instruction_reading import served_instructions
from iris_kv.instructions import Instruction, InstructionLibrary, InstructionSource, section
from iris_kv.location import VARIABLE, Location
from iris_kv.prompts import Prompt
from iris_kv.settings import load_settings
from iris_kv.tokens import TokenCounter
from iris_kv.workspace import Workspace

library = typer.Typer(no_args_is_help=True, help="List, show and check instructions.")
prompts = typer.Typer()


@library.command(name="list", short_help="List the instructions served.")
def list_instructions(
    workspace: WorkspaceOption = None,
    instructions: FoldersOption = None,
    source: PromptOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the instructions served: where each comes from, its version, and what it overrides."""
    with reported(as_json=as_json):
        served = _workspace(workspace, instructions, source)
    found = served.library
    data = served_instructions(found, served.counter)
    show(data, "\n".join([*map(_listed, found.instructions), *_errors(found)]), as_json=as_json)


@library.command(name="show", short_help="Print an instruction, or a section of it.")
def show_instruction(
    tag: Annotated[str, typer.Argument(help="The tag or an alias.")],
    section_name: Annotated[str | None, typer.Option("--section", help="One section, by slug or title.")] = None,
    workspace: WorkspaceOption = None,
    instructions: FoldersOption = None,
    source: PromptOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print an instruction's body, or one of its sections."""
    with reported(as_json=as_json):
        each = _workspace(workspace, instructions, source).library.get(tag)
        part = None if section_name is None else section(each, section_name)
    text = (each.body if part is None else each.body[part.start : part.end]).decode()
    data = {
        "tag": each.tag,
        "version": each.version,
        "origin": each.origin,
        "digest": each.digest,
        "section": None if part is None else part.slug,
        "body": text,
    }
    show(data, text, as_json=as_json)


@library.command(name="check", short_help="Validate instruction files.")
def check_instructions(
    folders: Annotated[list[Path] | None, typer.Argument(help="Folders; without one, all that are served.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Over 3,500 tokens or 500 lines is an error.")] = False,
    workspace: WorkspaceOption = None,
    instructions: FoldersOption = None,
    source: PromptOption = None,
    as_json: JsonOption = False,
) -> None:
    """Validate instruction files, count their tokens, and compare them with Git's HEAD."""
    with reported(as_json=as_json):
        sources = _sources(folders, workspace, given(instructions, source))
    report = check(sources, TokenCounter(), strict=sources if strict else ())
    about = _about(exact=report.exact)
    lines: list[str] = []
    for each in report.instructions:
        lines.append(f"{each.tag}: {about}{each.tokens} tokens ({each.file})")
        lines += [f"    {about + str(part.tokens):>5}  {part.slug}" for part in each.sections]
        lines += [f"  warning: {warning}" for warning in each.warnings]
    lines += [f"problem in {problem.file}: {problem.problem}" for problem in report.problems]
    lines.append(f"{len(report.instructions)} instructions, {len(report.problems)} problems")
    show(report, "\n".join(lines), as_json=as_json)
    if not report.ok:
        raise SystemExit(2)


@prompts.command(short_help="Print the system prompt, or install it.")
def prompt(
    variant: Annotated[str | None, typer.Option(help="compact or full; without it, as the rollout decides.")] = None,
    subject: SubjectOption = None,
    source: PromptOption = None,
    install: Annotated[Path | None, typer.Option(help="Write the trigger table into this file.")] = None,
    uninstall: Annotated[Path | None, typer.Option(help="Take the trigger table out of this file.")] = None,
    workspace: WorkspaceOption = None,
    instructions: FoldersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the system prompt, or keep the trigger table in a file that the host reads, such as AGENTS.md."""
    with reported(as_json=as_json):
        if [variant, install, uninstall].count(None) < 2:
            raise InvalidArgumentError(
                "--variant, --install and --uninstall together", "each is a work of its own", "give one of them"
            )
        if uninstall is not None:
            uninstall_block(uninstall)
            show({"file": str(uninstall), "outcome": "removed"}, f"removed: {uninstall}", as_json=as_json)
            return
        served = _workspace(workspace, instructions, source)
        if install is not None:
            outcome = install_block(install, installed_text(served))
            show({"file": str(install), "outcome": outcome}, f"{outcome}: {install}", as_json=as_json)
            return
        chosen = anyio.run(_preview, served, variant, subject)
    note(f"{chosen.variant} (chosen by: {chosen.shown}), {served.counter.shown(chosen.text)} tokens")
    if chosen.note:
        note(chosen.note)
    if not served.library.instructions:
        note("no instructions are served with this prompt; name yours with --instructions FOLDER")
    show(chosen, chosen.text, as_json=as_json)


def installed_text(workspace: Workspace) -> str:
    """Return what `prompt --install` writes: the rule and the trigger table."""
    return "## Instructions on demand (iris-kv)\n\n" + workspace.prompts.installed()


async def _preview(served: Workspace, variant: str | None, subject: str | None) -> Prompt:
    try:
        return await served.preview(variant, subject=subject)
    finally:
        await served.aclose()


def _workspace(name: str | None, folders: list[Path] | None, prompt: Path | None = None) -> Workspace:
    """Return the library and the prompts; they are served where no workspace is named or found, too."""
    location = _location(name)
    settings = load_settings(None if location is None else location.root, given(folders, prompt))
    return Workspace(location, settings, face="cli", create=False)


def _location(name: str | None) -> Location | None:
    try:
        return locate(name)
    except InvalidArgumentError:
        if name is not None or os.environ.get(VARIABLE):
            raise
        return None


def _sources(
    checked: list[Path] | None, workspace: str | None, arguments: Mapping[str, object]
) -> Sequence[InstructionSource]:
    if checked:
        return [InstructionSource(folder=each.absolute(), origin="folder", label=str(each)) for each in checked]
    location = _location(workspace)
    return instruction_sources(location, load_settings(None if location is None else location.root, arguments))


def _listed(each: Instruction) -> str:
    over = "" if each.overrides is None else f", overrides shipped {each.overrides}"
    tokens = f"{_about(exact=each.counter.exact)}{each.tokens} tokens"
    return f"{each.tag} {each.version or '(no version)'} from {each.source}{over}, {tokens}"


def _about(*, exact: bool) -> str:
    return "" if exact else "~"


def _errors(found: InstructionLibrary) -> list[str]:
    return [f"error in {error.file}: {error.problem}" for error in found.errors]
