"""How verbs run and print: the exit codes, JSON or text, and progress on stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn, TypeVar

import anyio
import typer
from pydantic import BaseModel, TypeAdapter

from iris_kv import intake
from iris_kv.errors import Code, IrisError
from iris_kv.location import Location, find_workspace
from iris_kv.model import Scope
from iris_kv.policy import Action, Principal, check_access
from iris_kv.settings import load_settings
from iris_kv.workspace import Workspace

EXIT_CODES: Final[Mapping[Code, int]] = {
    "invalid_argument": 2,
    "not_found": 3,
    "expired": 3,
    "conflict": 4,
    "quota_exceeded": 5,
    "too_large": 5,
    "read_only": 6,
    "unauthorized": 6,
    "forbidden": 6,
    "corrupt": 7,
    "busy": 8,
    "unavailable": 8,
    "uncertain": 8,
}

USER: Final = Principal(author="user", face="cli")

ScopeArgument = Annotated[str, typer.Argument(help="system, instructions, project, task or artifacts.")]
OptionalScope = Annotated[str | None, typer.Argument(help="One scope; without it, all.")]
WorkspaceOption = Annotated[
    str | None, typer.Option("--workspace", help="The workspace's folder; without it, found as `doctor` says.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
FoldersOption = Annotated[
    list[Path] | None,
    typer.Option("--instructions", help="A folder of instructions, over the shipped ones; repeatable."),
]
PromptOption = Annotated[
    Path | None, typer.Option("--prompt", help="The file that the system prompt is rendered from, not the shipped one.")
]
SubjectOption = Annotated[
    str | None, typer.Option("--subject", help="For whom the rollout decides; without it, the workspace's id.")
]
TrustOption = Annotated[bool, typer.Option("--trust-owner", help="Accept a cache that another user owns.")]

_PROGRESS_AFTER_S: Final = 1.0
_T = TypeVar("_T")


def given(folders: Sequence[Path] | None = None, prompt: Path | None = None, **options: object) -> dict[str, object]:
    """Return the settings that options name; an option that was not given sets nothing."""
    arguments = {name: value for name, value in options.items() if value is not None and value is not False}
    if folders:
        arguments["instructions.folders"] = [_absolute(each) for each in folders]
    if prompt is not None:
        arguments["prompt.source"] = _absolute(prompt)
    return arguments


def _absolute(path: Path) -> Path:
    # A client's configuration has no shell that would fill in the ~.
    return Path(os.path.abspath(os.path.expanduser(path)))


def allowed(scope: str, action: Action) -> Scope:
    """Return a scope on which the user may do something, before anything is read or asked."""
    checked = intake.check_scope(scope)
    check_access(USER, checked, action)
    return checked


def locate(workspace: str | None) -> Location:
    """Return the workspace that a verb works on."""
    return find_workspace(workspace, os.environ)


@asynccontextmanager
async def opened(
    workspace: str | None, arguments: Mapping[str, object] | None = None, *, create: bool = False
) -> AsyncGenerator[Workspace]:
    """Open the workspace of a verb, without background work; only a verb that writes creates a cache."""
    location = locate(workspace)
    settings = load_settings(location.root, arguments)
    found = Workspace(location, settings, face="cli", create=create)
    try:
        yield found
    finally:
        await found.aclose()


def run(work: Callable[[], Coroutine[Any, Any, _T]], *, as_json: bool = False) -> _T:
    """Run a verb's work on the store and return its result."""
    with reported(as_json=as_json):
        return anyio.run(work)


@contextmanager
def reported(*, as_json: bool) -> Generator[None]:
    """Print an error of ours to stderr and end the process with its exit code."""
    try:
        yield
    except IrisError as error:
        fail(error, as_json=as_json)


def fail(error: IrisError, *, as_json: bool) -> NoReturn:
    """Print an error and exit with its code."""
    if as_json:
        fields = {"code": error.code, "wrong": error.wrong, "allowed": error.allowed, "todo": error.todo}
        note(json.dumps({"error": fields}, ensure_ascii=False))
    else:
        note(f"iris-kv: {error}")
    raise SystemExit(EXIT_CODES[error.code])


def show(data: BaseModel | Sequence[BaseModel] | Mapping[str, object], text: str, *, as_json: bool) -> None:
    """Print a result as JSON, or as text with one line end after it."""
    if as_json:
        print(json.dumps(TypeAdapter(Any).dump_python(data, mode="json"), ensure_ascii=False, indent=2))
    elif text:
        print(text.removesuffix("\n"))


def note(text: str) -> None:
    """Tell the person something on stderr that is not the result."""
    print(text, file=sys.stderr)


@asynccontextmanager
async def progress(doing: str) -> AsyncGenerator[None]:
    """Say on stderr what is being done, from the second on in which it is not finished."""

    async def tell() -> None:
        seconds = 0
        while True:
            await anyio.sleep(_PROGRESS_AFTER_S)
            seconds += 1
            note(f"{doing} … {seconds} s")

    failure: IrisError | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(tell)
        try:
            yield
        except IrisError as error:
            # Raised below: a task group would wrap it in an ExceptionGroup.
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure


def undo(hours: float, verb: str) -> str:
    """Return a line that says how a deletion is undone, to stand behind its result; nothing where it cannot be."""
    return f"\nundo it within {hours:g} hours: {verb}" if hours else ""


def quantity(n_bytes: int) -> str:
    """Return a number of bytes for people."""
    if n_bytes < 1000:
        return f"{n_bytes} B"
    return f"{n_bytes / 1000:,.1f} kB" if n_bytes < 1_000_000 else f"{n_bytes / 1_000_000:,.1f} MB"
