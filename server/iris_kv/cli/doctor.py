"""The verb doctor: what is chosen and why, what happened lately, and what to do."""

from __future__ import annotations

import os
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

import typer

from iris_kv import __version__
from iris_kv.cli.output import (
    FoldersOption,
    JsonOption,
    PromptOption,
    TrustOption,
    WorkspaceOption,
    given,
    locate,
    run,
    show,
)
from iris_kv.errorlog import ServerError, described, error_log_path, last_errors
from iris_kv.errors import IrisError, NotFoundError
from iris_kv.instructions import LibraryError
from iris_kv.location import Location
from iris_kv.model import DAY_MS, Frozen, utc_text
from iris_kv.settings import settings_at_hand
from iris_kv.store.disks import SHARED, file_system
from iris_kv.workspace import ScopeActivity, Workspace

doctor_app = typer.Typer()

_FIXED_SQLITE = (3, 51, 3)
_NEWEST_ERRORS = 10
_SYNCED = ("onedrive", "dropbox", "icloud", "mobile documents", "google drive")


class Diagnosis(Frozen):
    """What `doctor` found."""

    version: str
    python: str
    sqlite: str
    workspace: str | None
    workspace_reason: str
    settings: dict[str, str]
    """Which layer set each setting that has not its default."""
    prompt: str
    activity: tuple[ScopeActivity, ...]
    instruction_calls: dict[str, int]
    """Fetches of each instruction in the last seven days, by any process."""
    library_errors: tuple[LibraryError, ...]
    server_errors: tuple[ServerError, ...]
    """Of servers for this workspace, and of those that found none; oldest first."""
    notes: tuple[str, ...]
    """What is not wrong, and good to know."""
    problems: tuple[str, ...]
    """What is wrong, each with what to do; empty: nothing was found."""


@doctor_app.command(short_help="Say what is chosen and what is wrong.")
def doctor(
    workspace: WorkspaceOption = None,
    instructions: FoldersOption = None,
    prompt: PromptOption = None,
    trust_owner: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Say which workspace is used and why, what was written and read lately, and what is wrong."""
    arguments = given(instructions, prompt, trust_owner=trust_owner)
    found = run(lambda: diagnose(workspace, arguments), as_json=as_json)
    show(found, "\n".join(_lines(found)), as_json=as_json)
    if found.problems:
        raise SystemExit(1)


async def diagnose(workspace: str | None, arguments: dict[str, object]) -> Diagnosis:
    """Look at everything that can be looked at, whatever is broken."""
    problems: list[str] = []
    notes: list[str] = []
    location: Location | None = None
    try:
        location = locate(workspace)
    except IrisError as error:
        problems.append(str(error))
    settings, broken = settings_at_hand(None if location is None else location.root, arguments)
    problems += [] if broken is None else [str(broken)]
    found = Workspace(location, settings, face="cli", create=False)
    try:
        prompt = await found.choice()
        activity, calls = await _history(found, location, notes, problems)
    finally:
        await found.aclose()
    problems += [f"{error.file}: {error.problem}" for error in found.library.errors]
    problems += found.prompts.errors
    problems += _place_problems(location)
    notes += _place_notes(location)
    root = None if location is None else str(location.root)
    return Diagnosis(
        version=__version__,
        python=sys.version.split()[0],
        sqlite=sqlite3.sqlite_version,
        workspace=root,
        workspace_reason="none found" if location is None else location.reason,
        settings=dict(settings.origins),
        prompt=f"{prompt.variant} ({prompt.shown})",
        activity=activity,
        instruction_calls=calls,
        library_errors=found.library.errors,
        server_errors=tuple(each for each in last_errors(error_log_path()) if each.workspace in (root, "none")),
        notes=tuple(notes),
        problems=tuple(problems),
    )


async def _history(
    found: Workspace, location: Location | None, notes: list[str], problems: list[str]
) -> tuple[tuple[ScopeActivity, ...], dict[str, int]]:
    if location is None:
        return (), {}
    try:
        activity, calls = await found.activity(), await found.instruction_calls()
    except NotFoundError as error:
        notes.append(f"this workspace has no cache yet: {error.todo}")
        return (), {}
    except IrisError as error:
        problems.append(str(error))
        return (), {}
    if not calls:
        # A cache of the last day says nothing yet: nobody may have had a task of such a kind.
        first = min((info.created_at for info in (await found.list("system")).entries), default=found.clock.now_ms())
        told = problems if found.clock.now_ms() - first > DAY_MS else notes
        told.append(
            "no process called get_instruction in the last seven days, so the trigger table may not reach the model:"
            " run `iris-kv prompt --install AGENTS.md` (or CLAUDE.md) in the project, and restart the client"
        )
    return activity, calls


def _place_problems(location: Location | None) -> Iterator[str]:
    if location is not None and any(name in str(location.root).lower() for name in _SYNCED):
        yield "the workspace seems to be in a synced folder, which can damage a database: move it out"


def _place_notes(location: Location | None) -> Iterator[str]:
    kind = "" if location is None else _file_system(location.root)
    if kind in SHARED:
        yield (
            f"the workspace is on a disk that other machines may use ({kind}): writes are slower there;"
            " run servers for it on one machine at a time"
        )


def _file_system(folder: Path) -> str:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return file_system(handle)
    finally:
        os.close(handle)


def _lines(found: Diagnosis) -> Iterator[str]:
    yield f"iris-kv {found.version}, Python {found.python}, SQLite {found.sqlite}{_sqlite_note()}"
    yield f"workspace: {found.workspace or 'none'} (chosen by: {found.workspace_reason})"
    yield f"prompt: {found.prompt}"
    for name, layer in sorted(found.settings.items()):
        yield f"setting {name} from {layer}"
    for each in found.activity:
        written = "never" if each.written is None else f"{utc_text(each.written.at)} by {each.written.by}"
        read = "never" if each.read is None else f"{utc_text(each.read.at)} by {each.read.by}"
        yield f"{each.scope}: last written {written}; last read {read}"
    fetched = ", ".join(f"{tag} {n}" for tag, n in sorted(found.instruction_calls.items()))
    yield f"get_instruction in the last seven days: {fetched or 'no calls'}"
    older = len(found.server_errors) - _NEWEST_ERRORS
    if older > 0:
        yield f"server errors: the newest {_NEWEST_ERRORS}; {older} older ones with --json"
    yield from (f"server error: {described(error)}" for error in found.server_errors[-_NEWEST_ERRORS:])
    yield from (f"note: {text}" for text in found.notes)
    yield from (f"problem: {problem}" for problem in found.problems)
    yield f"problems found: {len(found.problems) or 'none'}"


def _sqlite_note() -> str:
    if sqlite3.sqlite_version_info >= _FIXED_SQLITE:
        return ""
    return " (before 3.51.3, whose WAL-reset fault the write lock avoids)"
