"""The store's folders, opened one after the other so that no planted link is followed.

The workspace's own path, owner and mode are its user's choice. Below it every folder is opened
relative to its parent's handle with O_NOFOLLOW. From `kv-cache` down another owner and group or
world write are refused, and what we create is 0700 and 0600 whatever the umask.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from iris_kv.errors import ForbiddenError, NotFoundError, UnavailableError
from iris_kv.model import SCOPES, Scope

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

CACHE_PATH: Final = ".iris/kv-cache"
STORE: Final = ".store"
QUARANTINE: Final = "quarantine"

_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_README: Final = """This folder is the cache of iris-kv for this workspace.

project/ and artifacts/ hold what agents stored: deleting this folder loses it.
system/ and instructions/ are copies and are written again by themselves.
Values are plain text; a value edited by hand is detected as corruption and not served.
.store/index.db is the index; each .index.json is a readable copy of its scope's part.
"""


class CacheFolders:
    """Open handles of `kv-cache`, `.store` and the scopes' folders of one workspace."""

    def __init__(self, workspace: Path, *, create: bool, trust_owner: bool) -> None:
        """Open the folders, or create them.

        Raises:
            NotFoundError: There is no cache and `create` is False.
            ForbiddenError: A folder is a link, or not safely ours.
            UnavailableError: A folder cannot be created or read.
        """
        self.workspace = workspace.resolve()
        self._index = os.fspath(self.workspace / CACHE_PATH / STORE / "index.db")
        self._handles: dict[str, int] = {}
        try:
            with _explained(CACHE_PATH):
                self._open_all(create=create, trust_owner=trust_owner)
        except BaseException:
            self.close()
            raise

    def _open_all(self, *, create: bool, trust_owner: bool) -> None:
        root = self._keep("", os.open(self.workspace, _OPEN_FOLDER & ~os.O_NOFOLLOW))
        iris = self._keep(".iris", _open_folder(root, ".iris", ".iris", 0o755, create=create))
        cache = self._open_private(iris, "kv-cache", CACHE_PATH, create=create, trust_owner=trust_owner)
        for name in (STORE, *SCOPES):
            self._open_private(cache, name, f"{CACHE_PATH}/{name}", create=create, trust_owner=trust_owner)
        store = self._handles[STORE]
        where = f"{CACHE_PATH}/{STORE}/{QUARANTINE}"
        self._open_private(store, QUARANTINE, where, create=create, trust_owner=trust_owner)
        if create:
            _write_once(cache, ".gitignore", b"*\n")
            _write_once(cache, "README.txt", _README.encode())

    def _open_private(self, parent: int, name: str, shown: str, *, create: bool, trust_owner: bool) -> int:
        handle = self._keep(name, _open_folder(parent, name, shown, 0o700, create=create))
        check_private(os.fstat(handle), shown, trust_owner=trust_owner)
        return handle

    def _keep(self, name: str, handle: int) -> int:
        self._handles[name] = handle
        return handle

    @property
    def store(self) -> int:
        """Return the handle of `.store`."""
        return self._handles[STORE]

    @property
    def quarantine(self) -> int:
        """Return the handle of `.store/quarantine`."""
        return self._handles[QUARANTINE]

    def scope(self, scope: Scope) -> int:
        """Return the handle of a scope's folder."""
        return self._handles[scope]

    def index_identity(self) -> tuple[int, int] | None:
        """Return device and inode of the index that the workspace's path leads to now; None: no index."""
        try:
            found = os.stat(self._index, follow_symlinks=False)
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def close(self) -> None:
        """Close every handle."""
        while self._handles:
            os.close(self._handles.popitem()[1])


def create_file(folder: int, name: str) -> int:
    """Create a new file of mode 0600 for writing and return its descriptor.

    Raises:
        FileExistsError: The name is taken.
    """
    handle = os.open(name, _NEW_FILE, 0o600, dir_fd=folder)
    os.fchmod(handle, 0o600)
    _give_to_owner(handle, folder)
    return handle


def open_or_create(folder: int, name: str, flags: int) -> int:
    """Open a file, which is created first if it is not there, and return its descriptor."""
    try:
        return os.open(name, flags, dir_fd=folder)
    except FileNotFoundError:
        with suppress(FileExistsError):
            os.close(create_file(folder, name))
        return os.open(name, flags, dir_fd=folder)


def _give_to_owner(handle: int, folder: int) -> None:
    """Give what root creates in another user's folder to that user, whose own processes could not use it otherwise."""
    if os.geteuid() == 0:
        owner = os.fstat(folder)
        if owner.st_uid:
            os.fchown(handle, owner.st_uid, owner.st_gid)


def write_all(handle: int, data: bytes | memoryview) -> None:
    """Write every byte to a descriptor."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(handle, rest) :]


def check_regular(folder: int, name: str, shown: str, *, trust_owner: bool) -> bool:
    """Tell whether a file exists, and refuse one that is a link, has two names or is another user's.

    Raises:
        ForbiddenError: It is there and is not a plain file of ours.
    """
    try:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        raise ForbiddenError(
            f"{shown} is a link or not a regular file",
            "the store's files are plain files with one name",
            f"find out who put it there, and delete it: rm {shown}",
        )
    check_private(found, shown, trust_owner=trust_owner)
    return True


def check_private(found: os.stat_result, shown: str, *, trust_owner: bool) -> None:
    """Refuse what another user owns, or what group or world may write.

    Raises:
        ForbiddenError: It is not safely ours.
    """
    me = os.geteuid()
    if me not in (found.st_uid, 0) and not trust_owner:
        raise ForbiddenError(
            f"{shown} belongs to the user {_user_name(found.st_uid)!r}, not to {_user_name(me)!r}",
            "the cache is used only by its owner, as another could change what is served",
            "run as its owner, or start with --trust-owner if you trust that user",
        )
    if found.st_mode & 0o022:
        raise ForbiddenError(
            f"{shown} can be written by group or others (mode {stat.S_IMODE(found.st_mode):04o})",
            "only its owner may write the cache",
            f"chmod go-w {shown}",
        )


def _open_folder(parent: int, name: str, shown: str, mode: int, *, create: bool) -> int:
    try:
        return os.open(name, _OPEN_FOLDER, dir_fd=parent)
    except FileNotFoundError:
        if not create:
            raise NotFoundError(
                "this workspace has no cache yet",
                f"it is created at {CACHE_PATH} by the first write",
                "put something, or start `iris-kv serve`",
            ) from None
    except (NotADirectoryError, OSError) as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            raise ForbiddenError(
                f"{shown} is a link or not a folder",
                "the store follows no links below the workspace",
                f"find out who put it there, and delete it: rm {shown}",
            ) from None
        raise
    is_new = False
    with suppress(FileExistsError):
        os.mkdir(name, mode, dir_fd=parent)
        os.fsync(parent)
        is_new = True
    handle = os.open(name, _OPEN_FOLDER, dir_fd=parent)
    if is_new:
        _give_to_owner(handle, parent)
    return handle


def _write_once(folder: int, name: str, content: bytes) -> None:
    """Lay down a file unless it is there; on a full or read-only disk the store does without it."""
    with suppress(OSError):
        handle = create_file(folder, name)
        try:
            write_all(handle, content)
        finally:
            os.close(handle)


def _user_name(uid: int) -> str:
    import pwd  # noqa: PLC0415 - POSIX only, and needed only for this message

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


@contextmanager
def _explained(shown: str) -> Generator[None]:
    try:
        yield
    except PermissionError as error:
        raise UnavailableError(
            f"{shown} cannot be opened or created ({os.strerror(error.errno or errno.EACCES)})",
            "the store needs a workspace that this user may write",
            "mend the permissions, or choose another workspace with --workspace",
        ) from None
    except OSError as error:
        raise UnavailableError(
            f"{shown} cannot be opened or created ({error.strerror})",
            "the store needs a writable folder on a working disk",
            "mend it, or choose another workspace with --workspace",
        ) from None
