"""Which folder is the workspace, and why."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from iris_kv.errors import InvalidArgumentError
from iris_kv.model import Frozen

VARIABLE: Final = "IRIS_KV_WORKSPACE"
_VCS: Final = (".git", ".hg", ".jj", ".svn")


class Location(Frozen):
    """The workspace's folder, and what it was chosen by."""

    root: Path
    reason: str


def find_workspace(argument: str | None, environment: Mapping[str, str], cwd: Path | None = None) -> Location:
    """Return the workspace: the argument, `IRIS_KV_WORKSPACE`, the nearest `.iris` upwards, the nearest VCS root.

    The home folder and `/` are taken only where they are named, never found upwards.

    Args:
        argument: A path, with `~` and relative to the current folder if need be; None: none was given.
        environment: The variables; an empty one counts as not set.
        cwd: Where the search upwards starts; None: the current folder.

    Raises:
        InvalidArgumentError: The folder named does not exist, or none was named and none is found.
    """
    if argument is not None:
        return _named("--workspace", argument)
    if environment.get(VARIABLE):
        return _named(VARIABLE, environment[VARIABLE])
    start = cwd or _current_folder()
    candidates = [folder for folder in (start, *start.parents) if not _is_too_wide(folder)]
    for folder in candidates:
        if os.path.isdir(folder / ".iris"):
            return Location(root=folder, reason="the nearest .iris folder upwards")
    for folder in candidates:
        # In a worktree or a submodule .git is a file.
        if any(os.path.exists(folder / name) for name in _VCS):
            return Location(root=folder, reason="the nearest version control root upwards")
    raise InvalidArgumentError(
        "no workspace was named, and none is found upwards from the current folder",
        f"a workspace is named by --workspace or {VARIABLE}, or has an .iris folder or version control",
        "name it with --workspace FOLDER, or set IRIS_KV_WORKSPACE in the client's configuration",
    )


def _named(name: str, value: str) -> Location:
    # os.path and not Path: a home that is not known, a long name and a closed folder make Path raise.
    folder = os.path.expanduser(value)
    if value and os.path.isdir(folder):
        absolute = folder if os.path.isabs(folder) else os.path.join(_current_folder(), folder)
        return Location(root=Path(os.path.normpath(absolute)), reason=name)
    raise InvalidArgumentError(
        f"{name} is {value!r}, which is not a folder",
        "it is the path of an existing folder, with every variable filled in",
        "create the folder, or mend the path",
    )


def _current_folder() -> Path:
    try:
        return Path.cwd()
    except FileNotFoundError:
        raise InvalidArgumentError(
            "the current folder was deleted", "relative paths start at a folder that exists", "change to one"
        ) from None


def _is_too_wide(folder: Path) -> bool:
    if folder == Path(folder.anchor):
        return True
    try:
        return folder.samefile(Path.home())
    except (OSError, RuntimeError):
        return False
