"""What a job takes of the device of each trainer: memory, and bytes over PCIe. Letters are those of plan.py.

**Memory.** Tables: with placement gpu, for each address of the device's buckets (1024 / W) the bytes of the values, 4 for a
number of state and 4 for the step of the last update; with cached, C = min(cached_rows, K) rows of 4 D bytes. The dense part
takes 16 bytes a parameter: weight, gradient, two moments. Activations are what autograd keeps of a micro-batch, counted while
the model is timed. Besides, a lookup holds until its backward pass

    host     4 T D                       the sums
    cached   4 T D + 4 U D + 8 N         and the different rows, and which of them each entry is
    gpu      4 T D + 12 W N              and rows and weights of all trainers, and W N more if W > 1, which rows are here;
                                         from then to the step W (4 T D + 20 N)

What the allocator and the libraries take besides is not counted.

**PCIe** bytes of a lookup and its backward pass, f being the share of different rows that have copies, C / K:

    host     out: 12 N, then 4 T D       in: 4 T D, then 4 N
    cached   out: 4 N + 8, then 4 T D    in: 4 (2 - f) U + 4 (1 - f) U D
    gpu      none

With cached, 8 N + 4 (U + 1) bytes that only the backward pass needs go out behind the lookup, and the copies that a step has
touched come in again, 4 D + 4 bytes each: f times the different rows of all lookups of the step, and all C of each table with
several trainers. The batch comes in with 16 bytes a token.

**Between GPUs**, with placement gpu, each trainer sends and receives for a lookup and its backward pass

    gpu      (W - 1) (12 N + 4 T D), then (W - 1) (4 T D + 4 N)
"""

from __future__ import annotations

from dataclasses import dataclass

from memory_store.errors import UsageError
from memory_store.placement import BUCKETS, bucket_capacity
from memory_store.table_spec import TableSpec
from workers.job_spec import JobSpec
from workers.plan_costs import DenseCosts
from workers.plan_sizes import Sizes

PCIE_BYTES_PER_SECOND = 25e9  # four fifths of the rate of PCIe 4.0 with 16 lanes
GIB = 1 << 30


@dataclass(frozen=True)
class Gpu:
    """Every trainer's own. `memory_bytes` is None where it isn't known; rates are of each direction, `link_bytes_per_second`
    between the GPUs of one host: None where that is PCIe.
    """

    memory_bytes: float | None = None
    pcie_bytes_per_second: float = PCIE_BYTES_PER_SECOND
    link_bytes_per_second: float | None = None

    @property
    def peer_bytes_per_second(self) -> float:
        """Rate between the GPUs of one host."""
        return self.link_bytes_per_second or self.pcie_bytes_per_second


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes on the device of each trainer, by what takes them."""

    tables: int
    dense: int
    activations: float
    lookups: float

    @property
    def total(self) -> float:
        return self.tables + self.dense + self.activations + self.lookups


@dataclass(frozen=True)
class Crossing:
    """Bytes over PCIe, for one lookup: forward and backward; `entries`: to the host between the two."""

    asked: float = 0.0
    answered: float = 0.0
    entries: float = 0.0
    gradient: float = 0.0
    weight_gradient: float = 0.0


def table_bytes_on_device(job: JobSpec) -> int:
    """Bytes of the tables of a job, or of the copies of their rows, on the device of each trainer."""
    if job.memory is None or job.memory.placement == "host":
        return 0
    if job.memory.placement == "cached":
        return sum(4 * table.dim * min(job.memory.cached_rows, table.rows) for table in job.tables())
    buckets = -(-BUCKETS // job.train.trainers)
    return sum(buckets * bucket_capacity(table.rows) * _row_bytes(table) for table in job.tables())


def _row_bytes(table: TableSpec) -> int:
    numbers_of_state = sum(table.optimizer.state_widths(table.dim))
    return table.dim * table.storage_dtype.itemsize + 4 * numbers_of_state + 4


def device_memory(job: JobSpec, sizes: Sizes, dense: DenseCosts) -> DeviceMemory:
    """What a trainer takes of its device at the most: all lookups of a micro-batch, and what waits for the step."""
    held = sizes.L * held_bytes(sizes, until_step=False)
    pending = sizes.A * sizes.L * held_bytes(sizes, until_step=True)
    return DeviceMemory(
        tables=table_bytes_on_device(job),
        dense=16 * dense.parameters,
        activations=dense.activation_bytes,
        lookups=held + pending,
    )


def held_bytes(s: Sizes, *, until_step: bool) -> float:
    """Bytes that one lookup holds on the device until its backward pass, or from then to the step."""
    if s.placement == "gpu":
        if until_step:
            return s.W * (4 * s.T * s.D + 20 * s.N)
        return 4 * s.T * s.D + (12 if s.W == 1 else 13) * s.W * s.N
    if until_step:
        return 0
    return 4 * s.T * s.D + (4 * s.U * s.D + 8 * s.N if s.placement == "cached" else 0)


def crossing(s: Sizes) -> Crossing:
    """What one lookup and its backward pass put on PCIe."""
    if s.placement == "gpu":
        return Crossing()
    sums = 4 * s.T * s.D
    if s.placement == "host":
        return Crossing(asked=12 * s.N, answered=sums, gradient=sums, weight_gradient=4 * s.N)
    answered = 4 * (2 - s.f) * s.U + 4 * (1 - s.f) * s.U * s.D
    return Crossing(asked=4 * s.N + 8, answered=answered, entries=8 * s.N + 4 * (s.U + 1), gradient=sums)


@dataclass(frozen=True)
class Exchange:
    """Bytes that a trainer sends to the devices of the others for one lookup, and receives: forward and backward."""

    forward: float
    backward: float


def exchange(s: Sizes) -> Exchange:
    """What parts of a table on several devices tell each other; nothing with other placements."""
    others = s.W - 1 if s.placement == "gpu" else 0
    sums = 4 * s.T * s.D
    return Exchange(others * (12 * s.N + sums), others * (sums + 4 * s.N))


def check_tables_fit(job: JobSpec, gpu: Gpu | None) -> None:
    """Raises UsageError if the tables, or the copies, of a job alone are more than a GPU's memory."""
    if gpu is None or gpu.memory_bytes is None or job.memory is None:
        return
    needed = table_bytes_on_device(job)
    if needed > gpu.memory_bytes:
        raise UsageError(
            f"memory.placement {job.memory.placement} puts {needed / GIB:,.3g} GiB on a GPU of "
            f"{gpu.memory_bytes / GIB:,.3g} GiB; use placement host, or cached with fewer cached_rows."
        )


def shortage(memory: DeviceMemory, gpu: Gpu) -> str | None:
    """A sentence if a job takes more than a GPU's memory; None if it fits, or if nobody knows."""
    if gpu.memory_bytes is None or memory.total <= gpu.memory_bytes:
        return None
    return (
        f"a trainer takes about {memory.total / GIB:,.3g} GiB of a GPU of {gpu.memory_bytes / GIB:,.3g} GiB: "
        f"tables {memory.tables / GIB:,.3g}, dense part {memory.dense / GIB:,.3g}, "
        f"activations {memory.activations / GIB:,.3g}, lookups {memory.lookups / GIB:,.3g}; "
        "raise train.gradient_accumulation or train.trainers, or keep less of the tables there"
    )
