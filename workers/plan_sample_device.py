"""What a trainer's own device takes for the rows that lie on it, and what autograd keeps there.

Timed where the job would run; without a GPU here the CPU is timed in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from workers.gpu.entry_groups import group_entries
from workers.gpu.pooling import pool, weight_gradient
from workers.gpu.row_gradients import RowGradients
from workers.gpu.row_update import RowTensors, update_rows
from workers.job_spec import JobSpec
from workers.plan_clock import Stopwatch, repeat
from workers.plan_costs import DeviceCosts

_ENTRIES_MAX = 1 << 21
_ROWS_BYTES_MAX = 256 << 20
_BUDGET_S = 1.0


def device_of(job: JobSpec) -> torch.device:
    """Where the job's trainers would compute on this machine: a CPU stands in for a GPU that is not here."""
    return torch.device("cuda" if job.train.device != "cpu" and torch.cuda.is_available() else "cpu")


def settle(device: torch.device) -> None:
    """Wait for the accelerator."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def kept_bytes(parameters: Iterable[Tensor]) -> Iterator[Callable[[], int]]:
    """What it gives says how many bytes autograd keeps of what is computed inside, each memory once, parameters left out."""
    not_counted = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    # The storages too, lest one be let go of and its place counted as another's.
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in not_counted:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield lambda: sum(storage.nbytes() for storage in kept.values())


def device_costs(job: JobSpec) -> DeviceCosts:
    """For a job with memory: a sample of its entries, over as many rows as a sample may have."""
    memory, spec, device = job.memory, job.tables()[0], device_of(job)
    assert memory is not None
    per_bag = 1 if memory.reads_each_row else memory.heads * memory.k
    width = spec.dim + sum(spec.optimizer.state_widths(spec.dim))
    rows = min(spec.rows, max(1, _ROWS_BYTES_MAX // (4 * width)))
    most = min(_ENTRIES_MAX, _ROWS_BYTES_MAX // (4 * spec.dim))
    micro_batch = job.train.batch_tokens // (job.train.trainers * job.train.gradient_accumulation)
    bags = max(1, min(micro_batch * memory.heads * memory.k, most) // per_bag)
    random = torch.Generator(device).manual_seed(0)
    chosen = torch.randint(rows, (bags, per_bag), generator=random, device=device)
    weights = torch.rand(bags, per_bag, generator=random, device=device)
    gradient = torch.randn(bags, spec.dim, generator=random, device=device)
    dtype = torch.bfloat16 if spec.dtype == "bfloat16" else torch.float32
    first, second = (torch.zeros(rows, n, device=device) for n in spec.optimizer.state_widths(spec.dim))
    last_step = torch.zeros(rows, dtype=torch.int32, device=device)
    table = RowTensors(torch.zeros(rows, spec.dim, dtype=dtype, device=device), first, second, last_step)
    bag_of_entry = torch.arange(chosen.numel(), device=device) // per_bag
    one = torch.ones((), device=device)

    def update() -> None:
        # Anew, since a step's entries are sorted once.
        entries = RowGradients(chosen.flatten(), bag_of_entry, weights.flatten(), gradient, rows)
        update_rows(spec.optimizer, table, entries, step=1, learning_rate=1e-3, scale=one, seed=0)

    clock = Stopwatch()

    def seconds(name: str, action: Callable[[], object]) -> float:
        def settled() -> None:
            action()
            settle(device)

        repeat(partial(clock.time, name, settled), _BUDGET_S / 2)
        return clock.seconds(name) / chosen.numel()

    return DeviceCosts(
        group_s=seconds("group", lambda: group_entries(chosen.flatten())),
        pool_s=seconds("pool", lambda: pool(table.values, chosen, weights)),
        weigh_s=seconds("weigh", lambda: weight_gradient(table.values, chosen, gradient)),
        update_s=seconds("update", update) if memory.placement == "gpu" else 0.0,
    )
