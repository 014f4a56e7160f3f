"""What shards count, against what was asked of them; and how many series that makes at most."""

from __future__ import annotations

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from memory_store import errors
from memory_store import messages as m
from memory_store.client import StoreClient
from memory_store.errors import StoreError
from memory_store.metric_registry import OTHER_TABLES, SERIES_MAX, TABLES_NAMED_MAX, new_registry
from memory_store.opening import in_process_store
from memory_store.placement import Placement
from memory_store.shard import ShardCore
from memory_store.shard_host import ShardHost
from memory_store.shard_metrics import REQUESTS, ShardMetrics
from memory_store.table_spec import TableSpec

DIM, TOKENS, ENTRIES = 4, 6, 3
TIMEOUT_S = 60.0


def value(registry: CollectorRegistry, name: str, **labels: str) -> float:
    return registry.get_sample_value(name, labels) or 0.0


def store_of(lookup: str) -> tuple[StoreClient, CollectorRegistry]:
    metrics = ShardMetrics(new_registry(), "in_process")
    specs = [TableSpec("memory", rows=2048, dim=DIM)]
    return in_process_store(specs, 2, lookup=lookup, metrics=metrics), metrics.registry  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["fetch", "pool"])
def test_lookups_and_updates_are_counted_as_they_were_asked(kind: str) -> None:
    store, registry = store_of(kind)
    random = np.random.default_rng(0)
    rows_read = value_bytes = entries_updated = gradient_bytes = 0
    for _ in range(3):
        rows = random.integers(0, 2048, (TOKENS, ENTRIES))
        weights = random.random((TOKENS, ENTRIES), dtype=np.float32)
        found = store.table("memory").lookup(rows, weights, keep=True)
        found.backward(np.ones_like(found.output))
        store.step({"memory": 0.1})
        distinct = np.unique(rows).size
        if kind == "fetch":
            rows_read += distinct
            value_bytes += distinct * DIM * 4
            entries_updated += distinct
            gradient_bytes += distinct * DIM * 4
        else:  # the sums of all tokens come from both shards, and their gradient goes to both
            rows_read += rows.size
            value_bytes += 2 * TOKENS * DIM * 4
            entries_updated += rows.size
            gradient_bytes += 2 * TOKENS * DIM * 4
    store.synchronise()
    lookup = {"table": "memory", "kind": kind, "carrier": "in_process"}
    update = {"kind": "rows" if kind == "fetch" else "pooled", "carrier": "in_process"}
    assert value(registry, "pkm_lookups_total", **lookup) == 6
    assert value(registry, "pkm_lookup_rows_total", **lookup) == rows_read
    assert value(registry, "pkm_lookup_bytes_total", **lookup) == value_bytes
    assert value(registry, "pkm_lookup_seconds_count", kind=kind, carrier="in_process") == 6
    assert value(registry, "pkm_shard_updates_total", **update) == 6
    assert value(registry, "pkm_shard_update_rows_total", **update) == entries_updated
    assert value(registry, "pkm_shard_update_bytes_total", **update) == gradient_bytes
    assert value(registry, "pkm_shard_commits_total") == 6
    assert value(registry, "pkm_shard_optimizer_seconds_count") == 6
    assert value(registry, "pkm_shard_version") == 3
    assert value(registry, "pkm_shard_duplicates_refused_total") == 0
    assert value(registry, "pkm_shard_lookup_staleness_steps_count") == 6
    assert value(registry, "pkm_shard_lookup_staleness_steps_sum") == 0
    assert value(registry, "pkm_shard_rows", table="memory") == 2048


def opened_host(writers: int = 1) -> tuple[ShardHost, m.Sender]:
    core = ShardCore([TableSpec("memory", 16, DIM)], Placement.even(1), 0, max_staleness=2)
    host, sender = ShardHost(core), m.Sender("session", 1, 0)
    host.call(m.OpenGroup("session", 1, writers), TIMEOUT_S)
    return host, sender


def commit(sender: m.Sender, seq: int, step: int, contributions: int = 0) -> m.Commit:
    return m.Commit(sender, seq, step, contributions, False, 1.0, np.array([0.1]))


def test_an_update_that_comes_again_is_a_duplicate_and_one_that_waits_is_none() -> None:
    host, sender = opened_host(writers=2)
    registry = host.metrics.registry
    update = m.RowGradient(
        sender, 1, 0, "memory", np.array([3], dtype=np.uint32), np.ones((1, DIM), dtype=np.float32)
    )
    host.call(update, TIMEOUT_S)
    host.call(update, TIMEOUT_S)
    waiting = host.submit(commit(sender, 2, 0, 1))  # it is served again when the other one has come
    assert not waiting.done()
    again = host.submit(commit(sender, 2, 0, 1))
    host.call(commit(m.Sender("session", 1, 1), 1, 0), TIMEOUT_S)
    assert waiting.result(TIMEOUT_S) == again.result(TIMEOUT_S)
    host.call(commit(sender, 2, 0, 1), TIMEOUT_S)
    assert value(registry, "pkm_shard_updates_total", kind="rows", carrier="grpc") == 1
    assert value(registry, "pkm_shard_commits_total") == 2
    assert value(registry, "pkm_shard_duplicates_refused_total") == 3


def test_rows_put_in_the_place_of_others_are_updates_of_their_own_kind() -> None:
    host, sender = opened_host()
    addresses = np.array([3, 5, 8], dtype=np.uint32)
    host.call(
        m.ReplaceRows(sender, 1, 0, "memory", addresses, np.ones((3, DIM), dtype=np.float32)), TIMEOUT_S
    )
    kind = {"kind": "replaced", "carrier": "grpc"}
    registry = host.metrics.registry
    assert value(registry, "pkm_shard_updates_total", **kind) == 1
    assert value(registry, "pkm_shard_update_rows_total", **kind) == 3
    assert value(registry, "pkm_shard_update_bytes_total", **kind) == 3 * DIM * 4


def test_staleness_is_that_of_the_lookups_served() -> None:
    host, _ = opened_host()
    nothing = np.empty(0, dtype=np.uint32), np.empty(0, dtype=np.float32)
    for version in (0, 2, 2):
        host.call(m.Fetch("memory", version, False, np.array([1], dtype=np.uint32), *nothing), TIMEOUT_S)
    name = "pkm_shard_lookup_staleness_steps"
    buckets = [value(host.metrics.registry, f"{name}_bucket", le=le) for le in ("0.0", "1.0", "+Inf")]
    assert buckets == [1, 1, 3]
    assert value(host.metrics.registry, f"{name}_sum") == 4


def test_what_was_refused_is_counted_by_its_error() -> None:
    host, _ = opened_host()
    with pytest.raises(StoreError):
        host.call(m.CountTouched("no such table", 0), TIMEOUT_S)
    stale = m.Sender("another", 7, 0)
    with pytest.raises(StoreError):
        host.call(commit(stale, 1, 0), TIMEOUT_S)
    registry = host.metrics.registry
    requests = "pkm_shard_requests_total"
    assert value(registry, requests, request="CountTouched", outcome="StoreError") == 1
    assert value(registry, requests, request="Commit", outcome="FencedError") == 1
    assert value(registry, "pkm_shard_commits_total") == 0


def test_a_shard_of_many_tables_has_few_series() -> None:
    specs = [TableSpec(f"memory-{number}", rows=64, dim=DIM) for number in range(60)]
    metrics = ShardMetrics(new_registry(), "in_process")
    rows, weights = np.arange(6).reshape(2, 3), np.ones((2, 3), dtype=np.float32)
    for lookup in ("fetch", "pool"):
        store = in_process_store(specs, 1, lookup=lookup, metrics=metrics)  # type: ignore[arg-type]
        for spec in specs:
            found = store.table(spec.name).lookup(rows, weights, keep=True)
            found.backward(np.ones_like(found.output))
        store.step(dict.fromkeys(store.specs, 0.1))
        store.synchronise()
    outcomes = ["ok", *(name for name, kind in vars(errors).items() if isinstance(kind, type))]
    for request in REQUESTS:
        for outcome in outcomes:
            metrics.requests.labels(request, outcome)
    samples = [sample for family in metrics.registry.collect() for sample in family.samples]
    tables = {sample.labels["table"] for sample in samples if "table" in sample.labels}
    assert len(samples) <= SERIES_MAX
    assert len(tables) == TABLES_NAMED_MAX + 1
    others = {"table": OTHER_TABLES, "kind": "fetch", "carrier": "in_process"}
    assert value(metrics.registry, "pkm_lookups_total", **others) == 60 - TABLES_NAMED_MAX
