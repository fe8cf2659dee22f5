"""The workspaces of a platform: folders below one root, opened at use and closed when idle."""

from __future__ import annotations

import logging
import os
import re
import secrets
import stat
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final, Generic, Protocol, TypeVar

import anyio
from anyio.abc import TaskGroup

from iris_kv.errors import BusyError, ConflictError, InvalidArgumentError, NotFoundError, UnavailableError
from iris_kv.model import Clock

DEFAULT: Final = "default"
"""The id of the only workspace where there is no root of sandboxes."""

_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_FOLDER_MODE: Final = 0o700
_FULL_WAIT_S: Final = 5.0
_LEAVING_S: Final = 5.0

_log = logging.getLogger(__name__)


class Resident(Protocol):
    """What is kept open for a sandbox: its workspace, and whatever runs beside it."""

    async def run(self) -> None:
        """Work until cancelled."""
        ...

    async def aclose(self) -> None:
        """Finish what was acknowledged, and close."""
        ...


R = TypeVar("R", bound=Resident)


class SandboxRoot:
    """A folder whose folders are sandboxes."""

    def __init__(self, root: Path) -> None:
        """Use an existing folder.

        Raises:
            InvalidArgumentError: There is no such folder.
        """
        if not root.is_dir():
            raise InvalidArgumentError(
                f"{str(root)!r} is not a folder", "--sandboxes names the folder that holds the sandboxes", "create it"
            )
        self._root = Path(os.path.realpath(root))

    def folder(self, sandbox: str) -> Path:
        """Return a sandbox's folder; blocks on the file system.

        Raises:
            InvalidArgumentError: The id is malformed.
            NotFoundError: There is no such sandbox.
        """
        path = self._root / check_id(sandbox)
        try:
            is_folder = stat.S_ISDIR(os.lstat(path).st_mode)
        except OSError:
            is_folder = False
        if not is_folder:
            raise no_sandbox(sandbox)
        return path

    def create(self, sandbox: str) -> None:
        """Create a sandbox; blocks on the file system.

        Raises:
            InvalidArgumentError: The id is malformed.
            ConflictError: It exists.
        """
        try:
            os.mkdir(self._root / check_id(sandbox), _FOLDER_MODE)
        except FileExistsError:
            raise ConflictError(
                f"the sandbox {sandbox!r} exists", "an id is used once", "use it, or take another id"
            ) from None
        except OSError as error:
            raise UnavailableError(
                f"the sandbox {sandbox!r} cannot be created: {error.strerror}",
                "the server must be able to write to the folder of the sandboxes",
                "mend its permissions or free space",
            ) from None

    def check_writable(self) -> None:
        """Create a folder that is no sandbox, and remove it; blocks on the file system.

        Raises:
            UnavailableError: It cannot be created.
        """
        try:
            path = self._root / f".ready-{secrets.token_hex(8)}"
            os.mkdir(path, _FOLDER_MODE)
            os.rmdir(path)
        except OSError as error:
            raise UnavailableError(
                f"the folder of the sandboxes cannot be written: {error.strerror}",
                "sandboxes are created in it",
                "mend its permissions or free space",
            ) from None

    def ids(self) -> list[str]:
        """Return the ids of all sandboxes in order; blocks on the file system.

        Raises:
            UnavailableError: The folder cannot be read.
        """
        try:
            with os.scandir(self._root) as found:
                return sorted(
                    each.name for each in found if _ID.fullmatch(each.name) and each.is_dir(follow_symlinks=False)
                )
        except OSError as error:
            raise UnavailableError(
                f"the folder of the sandboxes cannot be read: {error.strerror}",
                "the server must be able to read it",
                "mend its permissions, or put it back",
            ) from None


def check_id(sandbox: str) -> str:
    """Return a sandbox's id.

    Raises:
        InvalidArgumentError: It is malformed.
    """
    if _ID.fullmatch(sandbox) is None:
        raise InvalidArgumentError(
            f"the sandbox id {sandbox[:80]!r} is malformed", "1 to 64 of A-Z, a-z, 0-9, _ and -", "mend the id"
        )
    return sandbox


def no_sandbox(sandbox: str) -> NotFoundError:
    """Return the error for a sandbox that does not exist, or that the caller may not know of."""
    return NotFoundError(
        f"no sandbox {sandbox!r}", "an administrator creates sandboxes with POST /api/sandboxes", "mend the id"
    )


class _Room(Generic[R]):
    """One sandbox: its resident while it is open, and how many visit it now."""

    def __init__(self) -> None:
        self.lock = anyio.Lock(fast_acquire=True)
        self.resident: R | None = None
        self.scope = anyio.CancelScope()
        self.visitors = 0
        self.left_at_ms = 0

    @property
    def is_idle(self) -> bool:
        """Whether it is open and nobody visits it."""
        return self.resident is not None and not self.visitors


class OpenSandboxes(Generic[R]):
    """Keeps at most so many sandboxes open: each from its first visit until it was idle for a while."""

    def __init__(
        self, open_resident: Callable[[str], Awaitable[R]], clock: Clock, *, max_open: int, idle_s: float
    ) -> None:
        """Prepare; `run` must be entered before the first visit.

        Args:
            open_resident: Opens a sandbox by its id; what it raises, the visit raises.
            clock: Tells how long a sandbox was idle.
            max_open: A visit that would open one more closes an idle one, or waits for one.
            idle_s: After how many seconds without a visit a sandbox is closed.
        """
        self._open_resident = open_resident
        self._clock = clock
        self._max_open = max_open
        self._idle_ms = idle_s * 1000
        self._rooms: dict[str, _Room[R]] = {}
        self._in_use = 0
        self._left: anyio.Event | None = None
        """Set when a visitor leaves; None: nobody waits for that."""
        self._is_closing = False
        self._tasks: TaskGroup | None = None

    @property
    def open_ids(self) -> tuple[str, ...]:
        """The ids of those that are open now."""
        return tuple(sandbox for sandbox, room in self._rooms.items() if room.resident is not None)

    def is_open(self, sandbox: str) -> bool:
        """Tell whether a sandbox is open now."""
        room = self._rooms.get(sandbox)
        return room is not None and room.resident is not None

    @property
    def residents(self) -> tuple[R, ...]:
        """What is open now."""
        return tuple(room.resident for room in self._rooms.values() if room.resident is not None)

    @asynccontextmanager
    async def run(self) -> AsyncGenerator[None]:
        """Let sandboxes be visited; in the end every one is closed, once its visitors have left, if they do soon."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            tasks.start_soon(self._close_idle_regularly)
            try:
                yield
            finally:
                self._is_closing = True
                with anyio.CancelScope(shield=True):
                    await self._close_all()
                tasks.cancel_scope.cancel()

    @asynccontextmanager
    async def visit(self, sandbox: str) -> AsyncGenerator[R]:
        """Open a sandbox if it is closed, and keep it open meanwhile.

        Raises:
            BusyError: As many as may be open are open and in use.
            UnavailableError: All are being closed.
        """
        if self._is_closing:
            raise UnavailableError("the server is shutting down", "it takes no new work", "try again in a moment")
        room = self._rooms.get(sandbox)
        if room is None:
            room = self._rooms[sandbox] = _Room()
        # Counted before it is looked at, so that nobody closes it in between.
        room.visitors += 1
        try:
            resident = room.resident
            if resident is None:
                async with room.lock:
                    resident = room.resident = room.resident or await self._opened(room, sandbox)
            yield resident
        finally:
            room.visitors -= 1
            room.left_at_ms = self._clock.now_ms()
            self._note_left(sandbox, room)

    @asynccontextmanager
    async def look(self, sandbox: str) -> AsyncGenerator[R | None]:
        """Keep a sandbox open meanwhile, if it is; None: it is not. It counts as idle all the same."""
        room = self._rooms.get(sandbox)
        if room is None or room.resident is None:
            yield None
            return
        room.visitors += 1
        try:
            yield room.resident
        finally:
            room.visitors -= 1
            self._note_left(sandbox, room)

    async def _opened(self, room: _Room[R], sandbox: str) -> R:
        await self._make_room()
        self._in_use += 1
        try:
            resident = await self._open_resident(sandbox)
        except BaseException:
            self._in_use -= 1
            raise
        room.scope = anyio.CancelScope()
        if self._tasks is not None:
            self._tasks.start_soon(_run_in, room.scope, resident)
        return resident

    async def _make_room(self) -> None:
        """Wait until one more may be open."""
        with anyio.move_on_after(_FULL_WAIT_S):
            while self._in_use >= self._max_open:
                left = self._next_left()
                if not await self._close_longest_idle():
                    await left.wait()
            return
        raise BusyError(
            f"{self._max_open} sandboxes are open and in use",
            "no more may be open at once",
            "try again soon, or start the server with a larger --max-open",
        )

    async def _close_longest_idle(self) -> bool:
        idle = [(room.left_at_ms, sandbox) for sandbox, room in self._rooms.items() if room.is_idle]
        return bool(idle) and await self._close(min(idle)[1])

    async def close_idle(self) -> None:
        """Close what was idle for long enough."""
        before_ms = self._clock.now_ms() - self._idle_ms
        for sandbox, room in list(self._rooms.items()):
            if room.is_idle and room.left_at_ms <= before_ms:
                await self._close(sandbox)

    async def _close_idle_regularly(self) -> None:
        while True:
            await anyio.sleep(max(1.0, self._idle_ms / 4000))
            await self.close_idle()

    async def _close_all(self) -> None:
        """Close every sandbox at once: one that waits for another process's lock holds no other up."""
        with anyio.move_on_after(_LEAVING_S):
            while any(room.visitors for room in self._rooms.values()):
                await self._next_left().wait()
        async with anyio.create_task_group() as tasks:
            for sandbox in list(self._rooms):
                tasks.start_soon(partial(self._close, sandbox, even_visited=True))

    async def _close(self, sandbox: str, *, even_visited: bool = False) -> bool:
        """Close a sandbox that nobody visits; tell whether it was closed."""
        room = self._rooms.get(sandbox)
        if room is None:
            return False
        async with room.lock:
            if room.resident is None or (room.visitors and not even_visited):
                return False
            resident, room.resident = room.resident, None
            room.scope.cancel()
            # What was begun is ended: a store that is half closed would hold its place for good.
            with anyio.CancelScope(shield=True):
                try:
                    await resident.aclose()
                except Exception:
                    _log.exception("closing the sandbox %s failed", sandbox)
            self._in_use -= 1
        self._note_left(sandbox, room)
        return True

    def _note_left(self, sandbox: str, room: _Room[R]) -> None:
        """Forget a closed sandbox that nobody visits, and wake whoever waits for one to be left."""
        if room.resident is None and not room.visitors and self._rooms.get(sandbox) is room:
            del self._rooms[sandbox]
        left, self._left = self._left, None
        if left is not None:
            left.set()

    def _next_left(self) -> anyio.Event:
        self._left = self._left or anyio.Event()
        return self._left


async def _run_in(scope: anyio.CancelScope, resident: Resident) -> None:
    with scope:
        try:
            await resident.run()
        except Exception:
            # One sandbox's background must not end the others'.
            _log.exception("the background work of a sandbox failed")
