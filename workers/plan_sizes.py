"""The sizes of a job's step, by the letters in which plan.py writes its formulas."""

from __future__ import annotations

from collections.abc import Sequence

from memory_store.placement import Placement
from memory_store.table import part_bytes
from memory_store.table_spec import TableSpec
from workers.job_spec import JobSpec


def expected_distinct(rows: int, accesses: float) -> float:
    """Expected number of different rows among uniform accesses: K (1 - (1 - 1/K)^N)."""
    return float(rows * (1 - (1 - 1 / rows) ** accesses)) if rows > 1 else float(rows)


def shard_bytes(tables: Sequence[TableSpec], shards: int) -> int:
    """Bytes of table memory of the fullest shard."""
    placement = Placement.even(shards)
    return max(
        sum(sum(part_bytes(table, placement, shard)) for table in tables)
        for shard in {0, shards - 1, shards // 2}
    )


class Sizes:
    """The letters, for one job; `f` is the share of a table's rows that have copies with placement cached."""

    def __init__(self, job: JobSpec) -> None:
        train = job.train
        self.W, self.A = train.trainers, train.gradient_accumulation
        self.T = train.batch_tokens // (self.W * self.A)
        self.D, self.S, self.L = 0, job.store.shards, 0
        self.N = self.K = 0
        self.U = 0.0
        self.b = 4
        self.f = 0.0
        self.placement = "host"
        self.first_layer = 1
        if job.memory is not None:
            self.L = len(job.memory.layers)
            self.N = self.T * job.memory.heads * job.memory.k
            table = job.tables()[0]
            self.K, self.D = table.rows, table.dim
            if job.memory.reads_each_row:
                self.T = self.N  # every entry is a lookup's token of its own
            self.U = expected_distinct(self.K, self.N)
            self.first_layer = min(job.memory.layers)
            self.placement = job.memory.placement
            if self.placement == "gpu":
                self.S = self.W  # each trainer's device has what a shard would have
            if self.placement == "cached":
                self.f = min(job.memory.cached_rows, self.K) / self.K
