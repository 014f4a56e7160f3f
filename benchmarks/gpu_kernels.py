"""The kernels of workers/gpu against their floors, and beside their peers.

A kernel's floor is the time in which its bytes could be copied (each module says which bytes), or its operations be done in a
large product of matrices; it reaches the share floor / time. The scores of a selection can be made in float32, or with
as much precision as three products in TF32, which has a floor of its own. Peers: EmbeddingBag, FBGEMM where it is installed,
and the selection that writes all scores. Sorts are torch's: that of a row update's entries is timed apart, that of sub-keys'
sums is part of their time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.bags import FbgemmRowwiseAdagrad, fbgemm_bag
from benchmarks.cases import Cases
from benchmarks.device_clock import seconds_on
from benchmarks.gpu_ceilings import Ceilings
from benchmarks.training_steps import LEARNING_RATE, VALUES
from workers.gpu import pooling, row_update, selection
from workers.gpu.row_gradients import RowGradients, sort_floor_bytes

BYTES, FLOAT32, TF32 = "bytes", "float32 operations", "three TF32 products"


@dataclass(frozen=True)
class KernelSize:
    """T bags of M entries in a table of K rows of D numbers; selections of k among n sub-keys of C numbers for H heads."""

    tokens: int
    entries: int
    rows: int
    dim: int
    heads: int
    sub_keys: int
    width: int
    k: int
    repeats: int


def measure_kernels(cases: Cases, size: KernelSize, device: torch.device, ceilings: Ceilings) -> None:
    """Time of every kernel, its rate and its share of each of its floors; time and rate of the peers."""
    generator = torch.Generator(device).manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    tokens, entries, dim = size.tokens, size.entries, size.dim
    values, weights, gradient = drawn(size.rows, dim), drawn(tokens, entries), drawn(tokens, dim)
    chosen = torch.randint(0, size.rows, (tokens, entries), generator=generator, device=device)
    queries = drawn(tokens, size.heads, 2, size.width)
    sub_keys = drawn(size.heads, 2, size.sub_keys, size.width)
    of_halves = 2 * size.heads * size.sub_keys
    sub_keys_chosen = torch.randint(
        0, of_halves, (2 * tokens * size.heads, size.k), generator=generator, device=device
    )
    their_weights, query_rows = drawn(*sub_keys_chosen.shape), queries.view(-1, size.width)
    widths = VALUES.state_widths(dim)
    table = row_update.RowTensors(
        values,
        torch.zeros(size.rows, widths[0], device=device),
        torch.zeros(size.rows, widths[1], device=device),
        torch.zeros(size.rows, dtype=torch.int32, device=device),
    )
    bags = torch.arange(chosen.numel(), device=device) // entries
    one = torch.ones((), device=device)

    def gradients_of(rows: Tensor) -> RowGradients:
        return RowGradients(rows, bags, weights.flatten(), gradient, size.rows)

    evenly = gradients_of(chosen.flatten())
    # As text reads rows: few of them often. The first gets one entry of K^(1/3).
    unevenly = gradients_of(
        (size.rows * torch.rand(bags.shape, generator=generator, device=device) ** 3).long()
    )

    pooled = pooling.pooling_floor_bytes(tokens, entries, dim)
    summed = pooling.sum_floor_bytes(of_halves, sub_keys_chosen.numel(), size.width)
    squared = row_update.floor_bytes(chosen.numel(), 0, dim, 0)
    updated, updated_unevenly = (
        row_update.floor_bytes(entries.rows.numel(), entries.rows.unique().numel(), dim, sum(widths))
        for entries in (evenly, unevenly)
    )
    selected = selection.floor_bytes(tokens, size.heads, size.sub_keys, size.width, size.k)
    scored = selection.floor_operations(tokens, size.heads, size.sub_keys, size.width)

    def update(gradients: RowGradients) -> None:
        row_update.update_rows(
            VALUES, table, gradients, step=1, learning_rate=LEARNING_RATE, scale=one, seed=0
        )

    def measure(
        name: str, floor_bytes: int, work: Callable[[], object], *, operations: int = 0, peer: bool = False
    ) -> None:
        def case() -> None:
            seconds = [seconds_on(device, work) for _ in range(size.repeats + 1)][1:]
            recorder = cases.recorder
            recorder.add("kernel time", "ms", [1e3 * second for second in seconds], kernel=name)
            recorder.add(
                "kernel rate", "GB/s", [floor_bytes / second / 1e9 for second in seconds], kernel=name
            )
            floors = {BYTES: floor_bytes / ceilings.copy}
            if operations:
                floors |= {FLOAT32: operations / ceilings.float32, TF32: 3 * operations / ceilings.tf32}
            for floor, least in floors.items() if not peer else ():
                shares = [least / second for second in seconds]
                recorder.add("share of the floor", "share", shares, kernel=name, floor=floor)

        cases.run(f"kernel {name}", case)

    measure("pool", pooled, lambda: pooling.pool(values, chosen, weights))
    measure("weight gradient", pooled, lambda: pooling.weight_gradient(values, chosen, gradient))
    measure(
        "sum by row",
        summed,
        lambda: pooling.sum_by_row(of_halves, sub_keys_chosen, their_weights, query_rows),
    )
    measure(
        "sort by row",
        sort_floor_bytes(bags.numel()),
        lambda: gradients_of(chosen.flatten()).by_row,
        peer=True,
    )
    measure("row update", updated, lambda: update(evenly))
    measure("row update, few rows often", updated_unevenly, lambda: update(unevenly))
    measure("squared norm", squared, lambda: row_update.squared_norm(evenly))
    measure("selection", selected, lambda: selection.select(queries, sub_keys, size.k), operations=scored)
    measure(
        "selection: all scores",
        selected,
        lambda: selection.select_reference(queries, sub_keys, size.k),
        peer=True,
    )
    measure(
        "pool: EmbeddingBag",
        pooled,
        lambda: F.embedding_bag(chosen, values, per_sample_weights=weights, mode="sum"),
        peer=True,
    )

    def fbgemm() -> None:
        sums, both_passes = _fbgemm(values, chosen, weights, gradient)
        measure("pool: FBGEMM", pooled, sums, peer=True)
        measure("pool and row-wise update: FBGEMM", pooled + updated, both_passes, peer=True)

    if FbgemmRowwiseAdagrad.installed():
        cases.run("kernels of FBGEMM", fbgemm)
    else:
        cases.recorder.missing("kernels of FBGEMM", "fbgemm_gpu is not installed")


def _fbgemm(
    values: Tensor, chosen: Tensor, weights: Tensor, gradient: Tensor
) -> tuple[Callable[[], object], Callable[[], object]]:
    """FBGEMM's table-batched embedding of the same rows: its sums, and both passes, row-wise Adagrad in the second."""
    bag = fbgemm_bag(values.shape[0], values.shape[1], values.device)
    bag.split_embedding_weights()[0].copy_(values)
    offsets = torch.arange(0, chosen.numel() + 1, chosen.shape[1], device=values.device)
    rows, entry_weights = chosen.flatten(), weights.flatten()

    def sums() -> None:
        with torch.no_grad():
            bag(rows, offsets, per_sample_weights=entry_weights)

    def both_passes() -> None:
        bag(rows, offsets, per_sample_weights=entry_weights).backward(gradient)

    return sums, both_passes
