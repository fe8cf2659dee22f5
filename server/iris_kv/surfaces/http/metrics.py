"""What an operator measures, for Prometheus. No label holds what a client chose: no id, key or name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from iris_kv.model import SCOPES, Scope

Refusal = Literal[
    "rate_limited",
    "too_large",
    "too_slow",
    "too_many_headers",
    "too_many_requests",
    "too_many_connections",
    "two_lengths",
]

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4
OTHER: Final = "other"

_OPERATIONS: Final = 200
"""So many operations get a label of their own; there are about forty."""

_LATENCIES: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_WAITS: Final = (0.001, 0.01, 0.1, 1, 10)


class Metrics:
    """The metrics of one server, in a registry of their own; a `Watch` of its workspaces, too."""

    def __init__(self) -> None:
        """Start at zero."""
        # When each counter was made tells nothing, and doubles what is scraped.
        disable_created_metrics()
        self._registry = registry = CollectorRegistry()
        self._known: set[str] = set()
        ProcessCollector(registry=registry)
        self._operations = Counter(
            "iris_kv_operations", "Requests by operation and outcome", ("operation", "outcome"), registry=registry
        )
        self._seconds = Histogram(
            "iris_kv_operation_seconds",
            "Time from a request's head to its answer's end; streams that stand are not in it",
            ("operation",),
            buckets=_LATENCIES,
            registry=registry,
        )
        self._received = Counter("iris_kv_received_bytes", "Bytes of request bodies", registry=registry)
        self._sent = Counter("iris_kv_sent_bytes", "Bytes of answers' bodies", registry=registry)
        self._refused = Counter(
            "iris_kv_refused_requests", "Requests that a limit of the server refused", ("reason",), registry=registry
        )
        self.open_requests = Gauge("iris_kv_open_requests", "Requests being answered", registry=registry)
        self.open_workspaces = Gauge("iris_kv_open_workspaces", "Workspaces that are open", registry=registry)
        self._reads = Counter(
            "iris_kv_reads", "Values asked of stores, by what came of it", ("scope", "result"), registry=registry
        )
        self._waits = Histogram(
            "iris_kv_lock_wait_seconds",
            "Waits of writes for another process's lock",
            buckets=_WAITS,
            registry=registry,
        )
        self._prompts = Counter("iris_kv_prompts", "System prompts fetched", ("variant",), registry=registry)
        self._used = Gauge(
            "iris_kv_used_bytes", "Bytes stored, over the workspaces that are open", ("scope",), registry=registry
        )
        self._quota = Gauge(
            "iris_kv_quota_bytes", "Bytes that may be stored, over the same", ("scope",), registry=registry
        )

    def operation(self, name: str, outcome: str, seconds: float | None) -> None:
        """Count a request that ended; `seconds` None leaves it out of the latencies."""
        operation = self._bounded(name)
        self._operations.labels(operation, outcome).inc()
        if seconds is not None:
            self._seconds.labels(operation).observe(seconds)

    def transferred(self, received: int, sent: int) -> None:
        """Count the bytes of a request's and an answer's body."""
        self._received.inc(received)
        self._sent.inc(sent)

    def refused(self, reason: Refusal) -> None:
        """Count a request that a limit refused."""
        self._refused.labels(reason).inc()

    def usage(self, used_bytes: Mapping[Scope, int], quota_bytes: Mapping[Scope, int]) -> None:
        """Say what is stored now, and what may be."""
        for scope in SCOPES:
            self._used.labels(scope).set(used_bytes.get(scope, 0))
            self._quota.labels(scope).set(quota_bytes.get(scope, 0))

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self._registry)

    # What workspaces tell

    def read(self, scope: Scope, *, hit: bool) -> None:
        """See `Watch`."""
        self._reads.labels(scope, "hit" if hit else "miss").inc()

    def waited(self, seconds: float) -> None:
        """See `Watch`."""
        self._waits.observe(seconds)

    def prompted(self, variant: str) -> None:
        """See `Watch`."""
        self._prompts.labels(variant).inc()

    def _bounded(self, operation: str) -> str:
        """Return the label of an operation; a name that should not be there takes no memory."""
        if operation not in self._known:
            if len(self._known) >= _OPERATIONS:
                return OTHER
            self._known.add(operation)
        return operation
