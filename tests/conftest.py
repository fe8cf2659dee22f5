"""What all tests share: a clock moved by hand, and openers of stores."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Protocol

import pytest
from hypothesis import settings

from iris_kv.model import KEEP_NOTHING, EntryInfo, Keep, Limits, Provenance, Scope
from iris_kv.store.files import FileStore

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Mapping
    from pathlib import Path

    from iris_kv.store.base import Store

MEGABYTE = 1_000_000
FAULTS = "tests/faults/"

settings.register_profile("always the same", derandomize=True, database=None, deadline=None, print_blob=False)
settings.register_profile("soak", database=None, deadline=None, max_examples=1000, print_blob=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let `make soak` ask for more."""
    parser.addoption("--soak", action="store_true", help="Try faults more often, and fuzz at random.")
    parser.addoption("--seed", type=int, default=1, help="At which moments faults happen.")


def pytest_configure(config: pytest.Config) -> None:
    """Let hypothesis find the same examples every time, or others every time."""
    settings.load_profile("soak" if config.getoption("soak") else "always the same")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name each skipped fault test above the summary: there, something is not proved."""
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if report.nodeid.startswith(FAULTS)]
    if skipped:
        terminalreporter.section("fault tests that did not run here")
    for report in skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        terminalreporter.write_line(f"{report.nodeid}: {reason}")


class Clock:
    """A clock that stands still until a test moves it."""

    def __init__(self) -> None:
        self.at_ms = 1_767_225_600_000

    def now_ms(self) -> int:
        return self.at_ms

    def move(self, ms: int) -> None:
        self.at_ms += ms


class OpenFileStore(Protocol):
    """Opens a file store, by default in the test's own workspace; used with `async with`."""

    def __call__(
        self, workspace: Path | None = None, *, create: bool = ..., trust_owner: bool = ..., lock_timeout_s: float = ...
    ) -> AbstractAsyncContextManager[FileStore]: ...


class Put(Protocol):
    """Puts a value with what most tests do not care about filled in."""

    def __call__(
        self,
        store: Store,
        key: str,
        value: bytes | AsyncIterable[bytes] = ...,
        *,
        scope: Scope = ...,
        quota: int = ...,
        max_value: int = ...,
        renew: bool = ...,
        default_ttl_ms: int | None = ...,
        content_type: str = ...,
        ttl_ms: int | None = ...,
        metadata: Mapping[str, str] | None = ...,
        if_digest: str | None = ...,
        keep: Keep = ...,
    ) -> Awaitable[EntryInfo]: ...


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def open_file_store(workspace: Path, clock: Clock) -> OpenFileStore:
    @asynccontextmanager
    async def opener(
        where: Path | None = None, *, create: bool = True, trust_owner: bool = False, lock_timeout_s: float = 10.0
    ) -> AsyncGenerator[FileStore]:
        store = await FileStore.open(
            where or workspace,
            clock=clock,
            create=create,
            durable=False,
            trust_owner=trust_owner,
            lock_timeout_s=lock_timeout_s,
        )
        async with aclosing(store):
            yield store

    return opener


@pytest.fixture
def put() -> Put:
    async def put_with_defaults(
        store: Store,
        key: str,
        value: bytes | AsyncIterable[bytes] = b"value",
        *,
        scope: Scope = "task",
        quota: int = 10 * MEGABYTE,
        max_value: int = MEGABYTE,
        renew: bool = False,
        default_ttl_ms: int | None = None,
        content_type: str = "text/plain",
        ttl_ms: int | None = None,
        metadata: Mapping[str, str] | None = None,
        if_digest: str | None = None,
        keep: Keep = KEEP_NOTHING,
    ) -> EntryInfo:
        return await store.put(
            scope,
            key,
            value,
            content_type=content_type,
            limits=Limits(quota_bytes=quota, max_value_bytes=max_value, ttl_ms=default_ttl_ms, renew=renew, keep=keep),
            provenance=Provenance(author="agent", face="mcp"),
            ttl_ms=ttl_ms,
            metadata=metadata,
            if_digest=if_digest,
        )

    return put_with_defaults
