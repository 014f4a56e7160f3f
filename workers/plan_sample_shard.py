"""What a shard takes for its work, measured on a sample of the job's table inside this process.

The sample has the table's width, type and optimizer, and is cut like a shard; but it takes at most 512 MiB, which is
past the caches of most machines, though not past what a translation buffer covers: a shard of a hundred gigabytes
may be somewhat slower. Its entries are as dense as the job's (entries of a step per row), so that as many share a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memory_store import messages as m
from memory_store.errors import PkmError
from memory_store.grouping import group_by_address
from memory_store.placement import BUCKETS, Placement
from memory_store.shard import ShardCore
from memory_store.table_spec import TableSpec
from workers.job_spec import JobSpec
from workers.plan_clock import CORES, Stopwatch, repeat
from workers.plan_costs import Cost, ShardCosts

SAMPLE_BYTES_MAX = 512 << 20
ENTRIES_MAX = 1 << 22
_BUDGET_S = 1.5


@dataclass(frozen=True)
class Sample:
    """Rows of the sample; tokens, and entries that each token has at one shard."""

    rows: int
    tokens: int
    per_token: int

    @staticmethod
    def of(job: JobSpec) -> Sample:
        """The sample for a job with memory."""
        memory, table = job.memory, job.tables()[0]
        assert memory is not None
        shards = job.store.shards
        rows = min(table.rows // shards, SAMPLE_BYTES_MAX // table.bytes_per_row)
        rows = max(BUCKETS, rows // BUCKETS * BUCKETS)
        per_token = max(1, memory.heads * memory.k // shards)
        tokens_of_step = job.train.batch_tokens * len(memory.layers) // len(job.tables())
        entries_of_step = tokens_of_step * per_token
        dense_as_job = entries_of_step * rows * shards // table.rows
        entries = min(entries_of_step, max(dense_as_job, rows // 8), ENTRIES_MAX)
        return Sample(rows, max(1, entries // per_token), per_token)


class SampleShard:
    """One shard in this process, and the requests of a step of each kind of lookup."""

    def __init__(self, spec: TableSpec, clock: Stopwatch) -> None:
        self.core = ShardCore([spec], Placement.even(1), 0, incarnation="sample", shared=True)
        self._name, self._clock = spec.name, clock
        self._sender = m.Sender("sample", 1, 0)
        self._seq = self._step = 0
        self._ask(m.OpenGroup("sample", 1, 1))

    def _ask(self, request: m.Request, name: str = "") -> None:
        def ask() -> None:
            for answer in self.core.handle(0, request):
                if isinstance(answer.reply, PkmError):
                    raise answer.reply

        self._clock.time(name or "unnamed", ask)

    def _next(self) -> dict[str, Any]:
        self._seq += 1
        return {"sender": self._sender, "seq": self._seq, "step": self._step}

    def _commit(self, name: str) -> None:
        numbered = self._next()
        rates = np.array([1e-3])
        self._ask(m.Commit(**numbered, contributions=1, hold=False, scale=1.0, learning_rates=rates), name)
        self._step += 1

    def pooled_step(
        self,
        offsets: NDArray[np.int32],
        addresses: NDArray[np.uint32],
        weights: NDArray[np.float32],
        gradient: NDArray[np.float32],
    ) -> None:
        """A pooled lookup, its gradient, its update; then the same entries as read in place."""
        pool = m.Pool(
            sender=self._sender,
            table=self._name,
            version=self._step,
            lookup=1,
            keep=True,
            track=False,
            offsets=offsets,
            addresses=addresses,
            weights=weights,
        )
        self._ask(pool, "pool")
        self._ask(m.PoolGradient(**self._next(), lookup=1, output_gradient=gradient), "pool gradient")
        self._commit("update")
        in_place = m.EntryGradient(
            **self._next(),
            table=self._name,
            offsets=offsets,
            addresses=addresses,
            weights=weights,
            output_gradient=gradient,
        )
        self._ask(in_place, "take")
        self._commit("update in place")

    def fetched_step(self, addresses: NDArray[np.uint32], gradients: NDArray[np.float32]) -> None:
        """A fetch of distinct rows, their gradients, their update."""
        none = np.empty(0, dtype=np.uint32), np.empty(0, dtype=np.float32)
        self._ask(m.Fetch(self._name, self._step, False, addresses, *none), "fetch")
        rows = m.RowGradient(**self._next(), table=self._name, addresses=addresses, gradients=gradients)
        self._ask(rows, "take rows")
        self._commit("update rows")


def shard_costs(job: JobSpec) -> ShardCosts:
    """Measure them, for a job with memory."""
    table, sample, clock = job.tables()[0], Sample.of(job), Stopwatch()
    spec = TableSpec("sample", sample.rows, table.dim, table.dtype, optimizer=table.optimizer)
    shard = SampleShard(spec, clock)
    random = np.random.default_rng(0)
    entries = sample.tokens * sample.per_token
    offsets = np.arange(sample.tokens + 1, dtype=np.int32) * np.int32(sample.per_token)
    addresses = random.integers(sample.rows, size=entries).astype(np.uint32)
    weights = random.random(entries, dtype=np.float32)
    gradient = random.standard_normal((sample.tokens, table.dim), dtype=np.float32)
    repeat(lambda: shard.pooled_step(offsets, addresses, weights, gradient), _BUDGET_S)
    distinct = np.unique(addresses)
    rows_gradient = random.standard_normal((distinct.size, table.dim), dtype=np.float32)
    repeat(lambda: shard.fetched_step(distinct, rows_gradient), _BUDGET_S)
    repeat(lambda: clock.time("group", lambda: group_by_address(addresses)), _BUDGET_S / 4)

    def kernel(name: str, units: int) -> Cost:
        return Cost.on_all_cores(clock.seconds(name) / units, CORES)

    def update(name: str, units: int) -> Cost:
        """Entries are grouped on one core, then rows updated on all."""
        whole, group = clock.seconds(name) / units, clock.seconds("group") / entries
        return Cost.on_one_core(min(group, whole)) + Cost.on_all_cores(max(0.0, whole - group), CORES)

    return ShardCosts(
        pool=kernel("pool", entries),
        pool_gradient=kernel("pool gradient", entries),
        take=Cost.on_one_core(clock.seconds("take") / entries),
        update=update("update", entries),
        fetch_row=kernel("fetch", distinct.size),
        take_row=Cost.on_one_core(clock.seconds("take rows") / distinct.size),
        update_row=update("update rows", distinct.size),
    )
