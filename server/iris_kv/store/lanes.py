"""Lanes: how a coroutine has work done in a thread, so much of it at a time, in the order in which it came.

A hop through anyio takes 105 us where this one takes 45: it neither turns the event loop before and
after nor goes through a queue that is written in Python. Without asyncio it is anyio's.
"""

from __future__ import annotations

import asyncio
import math
import os
import threading
from collections import deque
from contextlib import suppress
from contextvars import copy_context
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast

from anyio import CancelScope, CapacityLimiter, current_effective_deadline, from_thread, to_thread
from anyio.lowlevel import checkpoint_if_cancelled

if TYPE_CHECKING:
    from collections.abc import Callable

_IDLE_S: Final = 10.0
"""After so long without work a thread ends."""

_T = TypeVar("_T")


class Lane:
    """A lane of one store; its threads are shared with all others."""

    def __init__(self, most: int) -> None:
        """Allow so many pieces of work at a time."""
        self._most = most
        self._running = 0
        self._waiting: deque[_Job[Any]] = deque()
        self._mutex = threading.Lock()
        self._limiter = CapacityLimiter(most)

    async def run(self, work: Callable[[], _T]) -> _T:
        """Do some work in a thread and return what it returns.

        What a cancelled task waits for is not begun, or else goes on to its end; see `check_cancelled`.
        """
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return await to_thread.run_sync(work, limiter=self._limiter)
        # What anyio cancels is told at each turn, but not while work that has begun comes to its end.
        await checkpoint_if_cancelled()
        job = _Job(work, loop)
        self._add(job)
        try:
            await job.future
        except asyncio.CancelledError:
            if self._withdraw(job):
                raise
            await job.end()
            # What anyio cancels learns of it at its next turn, too, and what was done is not to be lost.
            if job.gave_up or current_effective_deadline() != -math.inf:
                raise
        return job.result()

    def _add(self, job: _Job[Any]) -> None:
        with self._mutex:
            if self._running == self._most:
                self._waiting.append(job)
                return
            self._running += 1
        try:
            _work(self, job)
        except BaseException:
            # No thread can be started; what ends meanwhile is not to wait for one.
            with self._mutex:
                self._running -= 1
            raise

    def _withdraw(self, job: _Job[Any]) -> bool:
        with self._mutex, suppress(ValueError):
            self._waiting.remove(job)
            return True
        return False

    def next_job(self, queue: SimpleQueue[_Task]) -> _Job[Any] | None:
        """Return what a thread is to do after a piece of work has ended; None: nothing waits, and it is idle."""
        with self._mutex:
            if self._waiting:
                return self._waiting.popleft()
            # First, as otherwise a new thread would be made for work that comes in between.
            _idle.append(queue)
            self._running -= 1
            return None


class _Job(Generic[_T]):
    """A piece of work, and the task that waits for it."""

    def __init__(self, work: Callable[[], _T], loop: asyncio.AbstractEventLoop) -> None:
        self._work = work
        self._loop = loop
        self._context = copy_context()
        self._value: _T | None = None
        self._error: BaseException | None = None
        self._has_ended = False
        self.future: asyncio.Future[None] = loop.create_future()
        self.is_cancelled = False

    def do(self) -> None:
        """Do the work, in a thread."""
        try:
            self._value = self._context.run(self._work)
        except BaseException as error:  # noqa: BLE001 - the task that waits gets it
            self._error = error

    def tell(self) -> None:
        """Tell the task that the work has ended, from a thread."""
        # The loop may be closed, if nobody waits any more.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._settle)

    def _settle(self) -> None:
        self._has_ended = True
        if not self.future.done():
            self.future.set_result(None)

    async def end(self) -> None:
        """Wait for the end of work whose task was cancelled."""
        self.is_cancelled = True
        if not self._has_ended:
            self.future = self._loop.create_future()
            with CancelScope(shield=True):
                await self.future

    @property
    def gave_up(self) -> bool:
        """Tell whether the work ended early because its task was cancelled."""
        return isinstance(self._error, asyncio.CancelledError)

    def result(self) -> _T:
        """Return what the work returned, or raise what it raised."""
        error, self._error = self._error, None
        if error is None:
            return cast("_T", self._value)
        try:
            raise error
        finally:
            del error


_Task = tuple[Lane, "_Job[Any]"]

_idle: deque[SimpleQueue[_Task]] = deque()
"""The threads that have nothing to do, each by the queue that it waits at."""
_here = threading.local()

# A forked child has none of them.
os.register_at_fork(after_in_child=_idle.clear)


def _work(lane: Lane, job: _Job[Any]) -> None:
    """Have a thread do some work, and whatever waits in its lane then."""
    try:
        queue = _idle.pop()
    except IndexError:
        queue = SimpleQueue[_Task]()
        threading.Thread(target=_serve, args=(queue,), name="iris-kv store", daemon=True).start()
    queue.put((lane, job))


def _serve(queue: SimpleQueue[_Task]) -> None:
    while True:
        try:
            lane, job = queue.get(timeout=_IDLE_S)
        except Empty:
            try:
                _idle.remove(queue)
            except ValueError:
                # It was just taken, so work is on its way.
                continue
            return
        following: _Job[Any] | None = job
        while following is not None:
            job = _here.job = following
            job.do()
            following = lane.next_job(queue)
            job.tell()
        # Nothing of it is held while there is nothing to do.
        del lane, job, _here.job


def check_cancelled() -> None:
    """Raise if the task that waits for this thread was cancelled; a thread that none waits for goes on."""
    job: _Job[Any] | None = getattr(_here, "job", None)
    if job is None:
        with suppress(RuntimeError):
            from_thread.check_cancelled()
    elif job.is_cancelled:
        raise asyncio.CancelledError
