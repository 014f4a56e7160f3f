"""The `kernels` benchmark: the value table on one shard, without any wire.

Two questions. How much faster is a whole pass over the table (lookup, backward, row update) than what PyTorch
and FBGEMM do with the same bags? And how close does each kernel come to the machine's copy bandwidth
(kernel_bandwidth.py)? Passes are compared as they follow one another; beside that, single passes in turn with the
peer's, after each of which caches and the processor's way to pages are the other table's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from benchmarks.bags import (
    BETAS,
    EPS,
    Bags,
    BagTable,
    FbgemmRowwiseAdagrad,
    Floats,
    OurTable,
    TorchSparseAdam,
    agree,
)
from benchmarks.copy_bandwidth import MemoryCopy
from benchmarks.kernel_bandwidth import BandwidthSize, measure_bandwidth
from benchmarks.local_store import LocalStore
from benchmarks.measuring import paired_seconds
from benchmarks.results import BenchmarkRun, Recorder
from benchmarks.threads import CORES, use_threads
from memory_store.table_spec import OptimizerKind, OptimizerSpec, TableSpec


@dataclass(frozen=True)
class KernelsSize:
    """The table and the bags of a whole pass, and the sizes at which kernels are compared with copying."""

    rows: int
    dim: int
    bags: int
    per_bag: int
    repeats: int
    single_passes: int
    bandwidth: BandwidthSize


_DIMS = (64, 128, 256, 512, 1024)
FULL = KernelsSize(2**20, 256, 6400, 32, 15, 9, BandwidthSize(2**30, _DIMS, _DIMS, 200 << 20, 15))
QUICK = KernelsSize(2**20, 256, 6400, 32, 3, 2, BandwidthSize(2**29, (64, 256), (256,), 100 << 20, 2))


def run(size: KernelsSize, *, quick: bool) -> BenchmarkRun:
    """Measure whole passes against the peers, then each kernel against copying."""
    recorder = Recorder("kernels", quick=quick)
    use_threads(CORES)
    bags = Bags.drawn(size.rows, size.dim, size.bags, size.per_bag)
    _compare(recorder, size, bags, "lazy_adam_vs_torch_sparse_adam", "adam", TorchSparseAdam)
    if FbgemmRowwiseAdagrad.installed():
        _compare(
            recorder, size, bags, "rowwise_adagrad_vs_fbgemm_cpu", "rowwise_adagrad", FbgemmRowwiseAdagrad
        )
    else:
        recorder.missing("rowwise_adagrad_vs_fbgemm_cpu", "fbgemm-gpu-cpu is not installed (extra `bench`)")
    measure_bandwidth(recorder, size.bandwidth)
    return recorder.finish()


def _compare(
    recorder: Recorder,
    size: KernelsSize,
    bags: Bags,
    ratio: str,
    kind: OptimizerKind,
    make_peer: Callable[[Floats, Bags], BagTable],
) -> None:
    """Whole passes of our table with optimizer `kind` and of a peer, in turn."""
    optimizer = OptimizerSpec(kind, betas=BETAS, eps=EPS)
    store = LocalStore(TableSpec("memory", size.rows, size.dim, optimizer=optimizer), lookup="pool")
    ours, peer = OurTable(store, bags), make_peer(store.read_all(), bags)
    agree(ours, peer, bags)

    copy = MemoryCopy(CORES)
    actions = {"ours": ours.step, "peer": peer.step, "copy": partial(copy.run, CORES)}
    seconds = paired_seconds(actions, size.repeats, equally_long=True)
    for who, name in (("ours", f"pkm {kind}"), ("peer", type(peer).__name__)):
        recorder.add("whole pass", "million rows/s", bags.rows.size / seconds[who] / 1e6, table=name)
    least = _bytes_of_pass(store.spec, bags) / copy.bytes_moved * seconds["copy"]
    recorder.add(
        "whole pass / a copy of as many bytes", "ratio", seconds["ours"] / least, table=f"pkm {kind}"
    )
    recorder.ratio(ratio, recorder.add(ratio, "ratio", seconds["peer"] / seconds["ours"]))
    single = paired_seconds({"ours": ours.step, "peer": peer.step}, size.single_passes, slow=True)
    recorder.add(f"{ratio}, single passes in turn", "ratio", single["peer"] / single["ours"])
    recorder.ceiling(ratio, recorder.add(f"{ratio}, copy", "ratio", seconds["peer"] / least).median)


def _bytes_of_pass(spec: TableSpec, bags: Bags) -> int:
    """What a pass must read and write of a float32 table: rows for the sums, again for the gradient of the weights,
    and every distinct row with its state for the update, both ways; the sums and their gradient.
    """
    row_bytes, state_bytes = 4 * spec.dim, 4 * sum(spec.optimizer.state_widths(spec.dim))
    distinct = np.unique(bags.rows).size
    return (
        2 * bags.rows.size * row_bytes
        + 2 * bags.output_gradient.nbytes
        + 2 * distinct * (row_bytes + state_bytes)
    )
