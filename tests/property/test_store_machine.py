"""The file store gives every answer that the plain model in memory gives."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from iris_kv.errors import IrisError
from iris_kv.model import EntryInfo, Keep, Limits, Provenance, digest_of
from iris_kv.store.base import GRACE_MS, Store
from iris_kv.store.files import FileStore
from iris_kv.store.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Coroutine

KEYS = st.sampled_from(["a", "a/b", "a_b", "A", "é", "e\u0301", "..", "z" * 512, "", "\n"])
VALUES = st.sampled_from([b"", b"1", b"22", b"x" * 10, b"y" * 40, b"z" * 60])
SCOPES = st.sampled_from(["task", "project"])
TTLS = st.sampled_from([None, 1, 1000, 3_600_000])
DIGESTS = st.one_of(
    st.none(), st.just(""), st.just("sha256:x"), st.tuples(VALUES, st.sampled_from([16, 64])).map(lambda v: _digest(*v))
)
KEEPS = st.builds(Keep, versions=st.sampled_from([0, 1, 2]), deleted_ms=st.sampled_from([0, 1000, 3_600_000]))
VERSIONS = st.one_of(st.none(), st.integers(0, 5))
BY = Provenance(author="agent", face="mcp")


def _digest(value: bytes, length: int) -> str:
    return digest_of(value)[: 7 + length]


async def _chunked(value: bytes) -> AsyncGenerator[bytes]:
    for start in range(0, len(value), 7):
        yield value[start : start + 7]


class StoreMachine(RuleBasedStateMachine):
    make_clock: type

    def __init__(self) -> None:
        super().__init__()
        self.clock = self.make_clock()
        self.runner = asyncio.Runner()
        self.workspace = Path(tempfile.mkdtemp())
        self.memory = MemoryStore(self.clock)
        self.cursors: dict[str, tuple[str | None, str | None]] = {}

    @initialize()
    def open(self) -> None:
        self.files = self.run(FileStore.open(self.workspace, clock=self.clock, durable=False))
        self.positions = [self.run(store.changes(None)).next for store in self.stores]

    @property
    def stores(self) -> tuple[Store, Store]:
        return self.memory, self.files

    def run(self, work: Coroutine):
        return self.runner.run(work)

    def compare(self, ask) -> object:
        answers = []
        for store in self.stores:
            try:
                answers.append(self.run(ask(store)))
            except IrisError as error:
                answers.append((error.code, "" if error.code in {"quota_exceeded", "too_large"} else error.wrong))
        assert answers[0] == answers[1]
        return answers[0]

    @rule(
        scope=SCOPES,
        key=KEYS,
        value=VALUES,
        quota=st.sampled_from([50, 100, 1000]),
        chunked=st.booleans(),
        renew=st.booleans(),
        ttl_ms=TTLS,
        if_digest=DIGESTS,
        keep=KEEPS,
    )
    def put(self, scope, key, value, quota, chunked, renew, ttl_ms, if_digest, keep):
        ttl = 3_600_000 if renew else None
        limits = Limits(quota_bytes=quota, max_value_bytes=50, ttl_ms=ttl, renew=renew, keep=keep)

        def ask(store: Store) -> Coroutine:
            return store.put(
                scope,
                key,
                _chunked(value) if chunked else value,
                content_type="text/plain",
                limits=limits,
                provenance=BY,
                ttl_ms=ttl_ms,
                metadata={"n": str(len(value))},
                if_digest=if_digest,
            )

        self.check_quota(self.compare(ask), scope, quota)

    def check_quota(self, answer, scope, quota):
        if isinstance(answer, EntryInfo):
            used = self.run(self.files.usage(scope))
            assert used.bytes + used.kept_bytes <= quota

    @rule(
        scope=SCOPES,
        key=KEYS,
        version=VERSIONS,
        quota=st.sampled_from([50, 100, 1000]),
        max_value=st.sampled_from([20, 50]),
        if_digest=DIGESTS,
        keep=KEEPS,
    )
    def restore(self, scope, key, version, quota, max_value, if_digest, keep):
        limits = Limits(quota_bytes=quota, max_value_bytes=max_value, ttl_ms=1000, renew=False, keep=keep)

        def ask(store: Store) -> Coroutine:
            return store.restore_entry(scope, key, version, limits=limits, if_digest=if_digest)

        self.check_quota(self.compare(ask), scope, quota)

    @rule(scope=SCOPES, key=KEYS)
    def history(self, scope, key):
        self.compare(lambda store: store.history(scope, key))

    @rule(scope=SCOPES, cursor=st.one_of(st.none(), KEYS), limit=st.integers(0, 3))
    def deleted(self, scope, cursor, limit):
        self.compare(lambda store: store.deleted(scope, cursor=cursor, limit=limit))

    @rule(scope=SCOPES, key=KEYS)
    def get(self, scope, key):
        self.compare(lambda store: store.get(scope, key))

    @rule(scope=SCOPES, key=KEYS, offset=st.integers(0, 50), n=st.integers(0, 50))
    def read(self, scope, key, offset, n):
        async def ask(store: Store) -> tuple[EntryInfo, bytes]:
            async with store.open_value(scope, key) as reader:
                return reader.info, await reader.read(offset, n)

        self.compare(ask)

    @rule(scope=SCOPES, key=KEYS)
    def head(self, scope, key):
        self.compare(lambda store: store.head(scope, key))

    @rule(scope=SCOPES, key=KEYS, if_digest=DIGESTS, keep=KEEPS)
    def delete(self, scope, key, if_digest, keep):
        self.compare(lambda store: store.delete(scope, key, if_digest=if_digest, keep=keep))

    @rule(scope=SCOPES, keep=KEEPS)
    def clear(self, scope, keep):
        self.compare(lambda store: store.clear(scope, keep=keep))

    @rule(
        scope=SCOPES,
        prefix=st.sampled_from(["", "a", "a/", "é"]),
        cursor=st.one_of(st.none(), KEYS),
        limit=st.integers(0, 4),
        include_expired=st.booleans(),
    )
    def list(self, scope, prefix, cursor, limit, include_expired):
        self.compare(
            lambda store: store.list(scope, prefix=prefix, cursor=cursor, limit=limit, include_expired=include_expired)
        )

    @rule(
        scope=SCOPES,
        limit=st.integers(0, 5),
        prefix=st.sampled_from(["", "a", "é"]),
        without=st.sampled_from(["", "a", "a/", "é"]),
    )
    def latest(self, scope, limit, prefix, without):
        self.compare(lambda store: store.latest(scope, limit, prefix=prefix, without=without))

    @rule(scope=st.one_of(st.none(), SCOPES))
    def collect(self, scope):
        self.compare(lambda store: store.collect(scope))

    @rule(ms=st.sampled_from([1, 999, 1000, 60_000, 3_599_999, 3_600_000, GRACE_MS, -5000]))
    def move_clock(self, ms):
        self.clock.move(ms)

    @rule()
    def reopen(self):
        self.run(self.files.aclose())
        self.files = self.run(FileStore.open(self.workspace, clock=self.clock, durable=False))

    @rule(scope=SCOPES)
    def activity(self, scope):
        async def ask(store: Store) -> list[int | None]:
            return [each and each.at for each in await store.activity(scope)]

        self.compare(ask)

    @rule(day=st.sampled_from(["2026-01-01", "2026-01-02"]), n=st.integers(1, 3))
    def count(self, day, n):
        self.compare(lambda store: store.count(day, {"hit": n}))
        self.compare(lambda store: store.counts("2026-01-02"))

    @rule()
    def changes(self):
        told = []
        for n, store in enumerate(self.stores):
            answer = self.run(store.changes(self.positions[n]))
            self.positions[n] = answer.next
            made = [(each.op, each.scope, each.key) for each in answer.events]
            # A collection removes in no order that is promised.
            expired = Counter(change for change in made if change[0] == "expire")
            told.append((answer.reset, expired, [change for change in made if change[0] != "expire"]))
        assert told[0] == told[1]

    @invariant()
    def usage_agrees(self):
        if hasattr(self, "files"):
            for scope in ("task", "project"):
                used = self.compare(lambda store, scope=scope: store.usage(scope))
                folder = self.workspace / ".iris/kv-cache" / scope
                assert sum(not path.name.startswith(".") for path in folder.iterdir()) == used.entries + used.kept

    def teardown(self) -> None:
        self.compare(lambda store: store.verify())
        self.run(self.files.aclose())
        self.runner.close()
        shutil.rmtree(self.workspace)


def test_the_file_store_answers_as_the_model_does(clock) -> None:
    class Machine(StoreMachine):
        make_clock = type(clock)

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=20,
            stateful_step_count=50,
            derandomize=True,
            deadline=None,
            # Add Phase.shrink to find the fewest steps that fail: that takes minutes.
            phases=(Phase.generate,),
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
