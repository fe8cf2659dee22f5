"""The folder of a split: writing it, without costing anybody a file, and reading what is in it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import Final

from pydantic import ValidationError

from iris_kv.errors import ConflictError, InvalidArgumentError, NotFoundError, UnavailableError
from iris_kv.instruction_file import printable
from iris_kv.model import digest_of
from iris_kv.regular import regular_bytes
from iris_kv.split.manifest import FOLDER, MANIFEST, Manifest

_MOST_BYTES: Final = 50_000_000
"""Of one file: the manifest of 5 MB that are all headings is below it."""
_NAMED_CHANGES: Final = 10


def write_split(folder: Path, files: Sequence[tuple[str, bytes]]) -> None:
    """Write all files: they are written beside the folder first, and put into it once all are there.

    Args:
        folder: Where they go; it must be new, empty, or a split that nobody edited or added to, which
            they take the place of. A link is followed.
        files: See `files_of`.

    Raises:
        ConflictError: The folder holds something else; the text names it.
        UnavailableError: It cannot be written.
    """
    folder = Path(os.path.realpath(folder))
    try:
        _check_replaceable(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as beside:
            _write_beside(Path(beside), folder, files)
    except OSError as error:
        raise UnavailableError(
            f"{folder.name!r} cannot be written ({error.strerror})",
            "you must be able to write to it and to the folder that it is in",
            "name another folder with --out, or free space",
        ) from None


def _check_replaceable(folder: Path) -> None:
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise _conflict(folder, "is a file")
    if not any(folder.iterdir()):
        return
    try:
        changed = _changed(folder, read_manifest(folder))
    except (InvalidArgumentError, NotFoundError):
        raise _conflict(folder, "exists and is not an unchanged split") from None
    if changed:
        named = ", ".join(map(repr, changed[:_NAMED_CHANGES]))
        more = f" and {len(changed) - _NAMED_CHANGES:,} more" if len(changed) > _NAMED_CHANGES else ""
        verb = "is" if len(changed) == 1 else "are"
        raise _conflict(folder, f"exists and is not an unchanged split: added, edited or gone {verb} {named}{more}")


def _conflict(folder: Path, wrong: str) -> ConflictError:
    return ConflictError(
        f"{folder.name!r} {wrong}",
        "files that a person may have written or edited are not overwritten",
        "name another folder with --out, or move this one away",
    )


def _changed(folder: Path, manifest: Manifest) -> list[str]:
    """Return the paths in a split's folder that are not as the split wrote them, in order."""
    written = manifest.written
    edited = [name for name, digest in written.items() if digest_of(bytes_of(folder / name) or b"") != digest]
    return sorted({*added_to(folder, written), *edited})


def added_to(folder: Path, files: Collection[str]) -> Iterator[str]:
    """Yield the paths, as they may be shown, of what a folder holds beside these files: files, folders, links."""
    folders = {".", FOLDER, *(str(PurePosixPath(name).parent) for name in files)}
    for inner in sorted(each for each in folders if (folder / each).is_dir()):
        for path in sorted((folder / inner).iterdir()):
            name = path.relative_to(folder).as_posix()
            is_ours = name in files if path.is_file() else name in folders and path.is_dir()
            if path.is_symlink() or not is_ours:
                yield printable(name)


def bytes_of(path: Path) -> bytes | None:
    """Return a regular file's bytes; None where there is none that can be read, or one of over 50 MB."""
    try:
        return regular_bytes(path, _MOST_BYTES)
    except (OSError, ValueError):
        return None


def _write_beside(beside: Path, folder: Path, files: Sequence[tuple[str, bytes]]) -> None:
    new, old = beside / "new", beside / "old"
    for made in (new / FOLDER, old):
        made.mkdir(parents=True)
    for name, content in files:
        (new / name).parent.mkdir(exist_ok=True)
        (new / name).write_bytes(content)
    # The folder itself stays: somebody may stand in it, or have a link to it.
    names = [each.name for each in new.iterdir()]
    with ExitStack() as undo:
        for source, target in ((folder, old), (new, folder)):
            for name in filter(lambda each: (source / each).exists(), names):
                (source / name).rename(target / name)
                undo.callback((target / name).rename, source / name)
        undo.pop_all()


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a split.

    Raises:
        NotFoundError: The folder has none.
        InvalidArgumentError: It is not one of ours.
    """
    try:
        return Manifest.model_validate_json(regular_bytes(folder / MANIFEST, _MOST_BYTES))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise InvalidArgumentError(
            f"{MANIFEST} is damaged: {where} {first['msg']}",
            "it is as `iris-kv split` wrote it",
            "take it back from Git, or split the prompt again into another folder",
        ) from None
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise NotFoundError(
            f"{os.path.basename(os.path.realpath(folder))!r} has no {MANIFEST} that can be read ({why})",
            "a folder that `iris-kv split` wrote has one",
            "name such a folder",
        ) from None
