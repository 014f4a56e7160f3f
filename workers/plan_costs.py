"""What this machine takes for each kind of work of a training step: the numbers that workers/plan.py adds up.

A cost has two parts, because a shard's sort runs on one core while its kernels run on all: on a machine of C cores,
n units of work that P processes share take

    n * (serial / min(P, C) + parallel / C)   seconds,

and they keep n * (serial + parallel) seconds of cores busy.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Seconds per unit of work: of the part that runs on one core, and core-seconds of the part that runs on all."""

    serial_s: float
    parallel_s: float

    @staticmethod
    def on_one_core(seconds: float) -> Cost:
        return Cost(seconds, 0.0)

    @staticmethod
    def on_all_cores(seconds: float, cores: int) -> Cost:
        return Cost(0.0, seconds * cores)

    @staticmethod
    def on_two_cores(seconds: float, cores: int) -> Cost:
        """A sender and a receiver, each busy all the time."""
        if cores == 1:
            return Cost.on_one_core(seconds)
        parallel_s = (
            seconds * cores / (cores - 1)
        )  # so that wall is `seconds` and cores are busy for twice that
        return Cost(seconds - parallel_s / cores, parallel_s)

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.serial_s + other.serial_s, self.parallel_s + other.parallel_s)

    def seconds(self, units: float, cores: int, processes: int = 1) -> float:
        """Seconds for `units` in all, shared evenly by processes of one machine."""
        return units * (self.serial_s / min(processes, cores) + self.parallel_s / cores)

    def core_seconds(self, units: float) -> float:
        """How long `units` would keep a single core busy."""
        return units * (self.serial_s + self.parallel_s)


@dataclass(frozen=True)
class DenseCosts:
    """The transformer outside the lookups, for one trainer with all cores; seconds.

    forward_backward_s: a micro-batch through all layers but their memories. selection_s: query network, selection and
    softmax of one memory layer for a micro-batch, forward and backward. optimizer_s: clipping and AdamW.
    activation_bytes: what autograd keeps of a micro-batch until its backward pass.
    """

    forward_backward_s: float
    selection_s: float
    optimizer_s: float
    parameters: int
    activation_bytes: float


@dataclass(frozen=True)
class ClientCosts:
    """What a trainer does with an entry (token, head, selected row) of a lookup, outside messages.

    choose: row number to address, and the cost rule. split: entries by shard. read, weigh: rows in place are pooled,
    the weights' gradient is made. group: entries sorted by row; pool_fetched, sum_fetched, weigh_fetched: fetched rows
    are pooled, the rows' gradients summed, the weights' made.
    """

    choose: Cost
    split: Cost
    read: Cost
    weigh: Cost
    group: Cost
    pool_fetched: Cost
    sum_fetched: Cost
    weigh_fetched: Cost


@dataclass(frozen=True)
class DeviceCosts:
    """Seconds for an entry on a trainer's own device: grouped by row, pooled, the weights' gradient, rows updated."""

    group_s: float
    pool_s: float
    weigh_s: float
    update_s: float


@dataclass(frozen=True)
class ShardCosts:
    """What a shard does, checks included: per entry, and for fetched lookups per distinct row.

    `take` of an in-place lookup's entries, `update` once the step is complete (grouping by row, row optimizer).
    """

    pool: Cost
    pool_gradient: Cost
    take: Cost
    update: Cost
    fetch_row: Cost
    take_row: Cost
    update_row: Cost


@dataclass(frozen=True)
class WireCosts:
    """Messages over loopback, both ends on this machine: per byte to a shard, per byte from it, per empty call."""

    sent: Cost
    received: Cost
    message_s: float


@dataclass(frozen=True)
class Calibration:
    """All of it, for one job's shapes. `client` and `shard` are None for a job without memory, `device` for one whose tables
    are in shards alone.
    """

    cores: int
    dense: DenseCosts
    client: ClientCosts | None
    shard: ShardCosts | None
    wire: WireCosts
    device: DeviceCosts | None = None
