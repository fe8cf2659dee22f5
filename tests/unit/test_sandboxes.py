"""Sandboxes that are opened at use, kept while they are used, and closed when idle or when there are too many."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from tests.conftest import Clock

from iris_kv import sandboxes as module
from iris_kv.errors import BusyError, ConflictError, InvalidArgumentError, NotFoundError, UnavailableError
from iris_kv.sandboxes import OpenSandboxes, SandboxRoot

IDLE_S = 60.0


class Resident:
    """A resident that notes what is done to it."""

    def __init__(self, sandbox: str, house: House) -> None:
        self.sandbox = sandbox
        self.house = house
        self.is_running = False

    async def run(self) -> None:
        self.is_running = True
        try:
            if self.sandbox in self.house.broken_runs:
                raise RuntimeError("background")
            await anyio.sleep_forever()
        finally:
            self.is_running = False

    async def aclose(self) -> None:
        await self.house.may_close.wait()
        self.house.closed.append(self.sandbox)
        if self.sandbox in self.house.broken_closes:
            raise RuntimeError("closing")


class House:
    """Opens residents, and notes it."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.closed: list[str] = []
        self.broken_opens: set[str] = set()
        self.broken_closes: set[str] = set()
        self.broken_runs: set[str] = set()
        self.may_open, self.may_close = anyio.Event(), anyio.Event()
        self.may_open.set()
        self.may_close.set()

    async def open(self, sandbox: str) -> Resident:
        await self.may_open.wait()
        if sandbox in self.broken_opens:
            raise UnavailableError("it is broken", "it works", "mend it")
        self.opened.append(sandbox)
        return Resident(sandbox, self)

    @asynccontextmanager
    async def sandboxes(self, clock: Clock, max_open: int = 2) -> AsyncGenerator[OpenSandboxes[Resident]]:
        found = OpenSandboxes(self.open, clock, max_open=max_open, idle_s=IDLE_S)
        with anyio.fail_after(10):
            async with found.run():
                yield found


@pytest.fixture
def house() -> House:
    return House()


async def visited(found: OpenSandboxes[Resident], *names: str) -> None:
    for name in names:
        async with found.visit(name):
            pass


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(5):
        while not condition():
            await anyio.lowlevel.checkpoint()


async def test_a_sandbox_is_opened_once_for_all_its_visitors_and_stays_open(house: House, clock: Clock) -> None:
    async with house.sandboxes(clock) as found:
        async with found.visit("a") as one, found.visit("a") as two:
            assert one is two
        await visited(found, "a")
        await until(lambda: one.is_running)
        assert (house.opened, house.closed, found.open_ids) == (["a"], [], ("a",))

    assert (house.closed, one.is_running) == (["a"], False)


async def test_an_idle_sandbox_is_closed_and_opened_anew(house: House, clock: Clock) -> None:
    async with house.sandboxes(clock) as found:
        await visited(found, "a")
        clock.move(int(IDLE_S * 1000) - 1)
        await found.close_idle()
        kept = found.open_ids
        clock.move(1)
        await found.close_idle()
        closed = found.open_ids
        await visited(found, "a")

    assert (kept, closed) == (("a",), ())
    assert (house.opened, house.closed) == (["a", "a"], ["a", "a"])


async def test_a_visited_sandbox_is_never_idle(house: House, clock: Clock) -> None:
    async with house.sandboxes(clock) as found, found.visit("a"):
        clock.move(10 * int(IDLE_S * 1000))
        await found.close_idle()
        assert found.open_ids == ("a",)


async def test_a_look_keeps_a_sandbox_open_meanwhile_but_not_awake(house: House, clock: Clock) -> None:
    async with house.sandboxes(clock) as found:
        await visited(found, "a")
        clock.move(int(IDLE_S * 1000))
        async with found.look("a") as looked, found.look("b") as missing:
            await found.close_idle()
            during = found.open_ids
        await found.close_idle()

        assert looked is not None
        assert (looked.sandbox, missing) == ("a", None)
        assert (during, found.open_ids, house.opened) == (("a",), (), ["a"])


async def test_one_more_than_may_be_open_closes_the_one_idle_for_longest(house: House, clock: Clock) -> None:
    async with house.sandboxes(clock) as found:
        for name in ("a", "b", "a", "c"):
            clock.move(1)
            await visited(found, name)

        assert house.closed == ["b"]
        assert set(found.open_ids) == {"a", "c"}


async def test_visits_wait_until_others_leave_and_every_one_of_them_gets_in(house: House, clock: Clock) -> None:
    got_in: list[str] = []
    leave = anyio.Event()

    async def hold(found: OpenSandboxes[Resident], name: str) -> None:
        async with found.visit(name):
            await leave.wait()

    async def come(found: OpenSandboxes[Resident], name: str) -> None:
        await visited(found, name)
        got_in.append(name)

    async with house.sandboxes(clock, max_open=1) as found, anyio.create_task_group() as tasks:
        tasks.start_soon(hold, found, "held")
        await until(lambda: found.open_ids == ("held",))
        for n in range(5):
            tasks.start_soon(come, found, f"waiting{n}")
        await anyio.wait_all_tasks_blocked()
        before = list(got_in)
        leave.set()

    assert before == []
    assert sorted(got_in) == [f"waiting{n}" for n in range(5)]
    assert Counter(house.opened) == Counter(house.closed)


async def test_a_visit_that_waits_too_long_is_told_and_leaves_nothing_behind(
    house: House, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FULL_WAIT_S", 0.01)
    async with house.sandboxes(clock, max_open=1) as found:
        async with found.visit("a"):
            with pytest.raises(BusyError, match="--max-open"):
                await visited(found, "b")
        await visited(found, "b")

    assert house.opened == ["a", "b"]


async def test_a_cancelled_opening_gives_its_place_back(house: House, clock: Clock) -> None:
    house.may_open = anyio.Event()
    async with house.sandboxes(clock, max_open=1) as found:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(visited, found, "a")
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        house.may_open.set()
        await visited(found, "b")

    assert (house.opened, house.closed) == (["b"], ["b"])


async def test_a_visit_cancelled_while_it_closes_another_sandbox_closes_it_to_the_end(
    house: House, clock: Clock
) -> None:
    async with house.sandboxes(clock, max_open=1) as found:
        await visited(found, "a")
        house.may_close = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(visited, found, "b")
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
            house.may_close.set()
        await visited(found, "c")

    assert (house.opened, house.closed) == (["a", "c"], ["a", "c"])


async def test_what_fails_to_open_is_tried_again_and_takes_no_place(house: House, clock: Clock) -> None:
    house.broken_opens = {"a"}
    async with house.sandboxes(clock, max_open=1) as found:
        for _ in range(3):
            with pytest.raises(UnavailableError):
                await visited(found, "a")
        house.broken_opens = set()
        await visited(found, "a")

        assert (house.opened, found.open_ids) == (["a"], ("a",))


async def test_what_fails_to_close_or_in_the_background_hinders_no_other(house: House, clock: Clock) -> None:
    house.broken_closes, house.broken_runs = {"a"}, {"b"}
    async with house.sandboxes(clock, max_open=1) as found:
        await visited(found, "a", "b", "c")

    assert house.opened == house.closed == ["a", "b", "c"]


async def test_the_end_waits_for_visitors_and_lets_nobody_in(house: House, clock: Clock) -> None:
    ends: list[str] = []
    leave = anyio.Event()
    found = OpenSandboxes(house.open, clock, max_open=2, idle_s=IDLE_S)

    async def serve(started: anyio.Event, end: anyio.Event) -> None:
        async with found.run():
            started.set()
            await end.wait()
        ends.append("closed")

    async def stay(inside: anyio.Event) -> None:
        async with found.visit("a"):
            inside.set()
            await leave.wait()
            assert house.closed == []
            ends.append("left")

    started, end, inside = anyio.Event(), anyio.Event(), anyio.Event()
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(serve, started, end)
            await started.wait()
            tasks.start_soon(stay, inside)
            await inside.wait()
            end.set()
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(UnavailableError, match="shutting down"):
                await visited(found, "b")
            leave.set()

    assert (ends, house.closed) == (["left", "closed"], ["a"])


async def test_the_end_does_not_wait_for_a_visitor_for_good(
    house: House, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LEAVING_S", 0.01)
    leave, inside = anyio.Event(), anyio.Event()

    async def stay(found: OpenSandboxes[Resident]) -> None:
        async with found.visit("a"):
            inside.set()
            await leave.wait()

    async with anyio.create_task_group() as tasks:
        async with house.sandboxes(clock) as found:
            tasks.start_soon(stay, found)
            await inside.wait()
        assert house.closed == ["a"]
        leave.set()


def test_a_root_creates_finds_and_lists_sandboxes(tmp_path: Path) -> None:
    root = SandboxRoot(tmp_path)
    root.create("b")
    root.create("A-1_")
    (tmp_path / "file").write_text("")
    (tmp_path / "not an id").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "b")
    root.check_writable()

    assert root.ids() == ["A-1_", "b"]
    assert root.folder("b") == tmp_path / "b"
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o700
    assert sorted(path.name for path in tmp_path.iterdir()) == ["A-1_", "b", "file", "link", "not an id"]
    with pytest.raises(ConflictError):
        root.create("b")
    for name in ("link", "file", "c"):
        with pytest.raises(NotFoundError):
            root.folder(name)


@pytest.mark.parametrize("sandbox", ["", "..", ".", "a/b", "a\0", "a\n", "ä", "a b", "a" * 65, ".ready-1"])
def test_an_id_that_is_none_never_reaches_the_file_system(tmp_path: Path, sandbox: str) -> None:
    root = SandboxRoot(tmp_path)

    for use in (root.folder, root.create):
        with pytest.raises(InvalidArgumentError, match="malformed"):
            use(sandbox)
    assert list(tmp_path.iterdir()) == []


def test_a_root_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    root = SandboxRoot(tmp_path / "root")
    (tmp_path / "root").rmdir()

    with pytest.raises(UnavailableError, match="cannot be written"):
        root.check_writable()
