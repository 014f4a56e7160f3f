"""The `kernels` benchmark: the value table on one shard, without any wire.

Two questions. How much faster is a whole pass over the table (lookup, backward, row update) than what PyTorch
and FBGEMM do on the same bags? And how close does each kernel come to the machine's copy bandwidth
(kernel_bandwidth.py)?
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.bags import BETAS, EPS, Bags, BagTable, FbgemmRowwiseAdagrad, OurTable, TorchSparseAdam, agree
from benchmarks.kernel_bandwidth import BandwidthSize, measure_bandwidth
from benchmarks.local_store import LocalStore
from benchmarks.measuring import paired_seconds
from benchmarks.results import BenchmarkRun, Recorder
from benchmarks.threads import CORES, use_threads
from memory_store.table_spec import OptimizerKind, OptimizerSpec, TableSpec
from workers.bags_placeholder import Floats  # noqa
