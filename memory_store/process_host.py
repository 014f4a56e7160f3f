"""A shard that has a process to itself: with its log, recovered, and ending with it."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path

from memory_store.placement import Placement
from memory_store.recovery import take_over_or_begin_anew
from memory_store.shard import ShardCore
from memory_store.shard_host import ShardHost
from memory_store.shard_metrics import ShardMetrics
from memory_store.table_spec import TableSpec

_log = logging.getLogger(__name__)


def process_host(
    specs: Sequence[TableSpec],
    placement: Placement,
    shard: int,
    incarnation: str,
    logs: Path | None,
    cuts: Path | None,
) -> ShardHost:
    """Shard number `shard`, for trainers on the same host to read in place; with `logs`, its log is in a folder there.
    With `cuts`, it reads and writes no cut elsewhere.

    The process ends, to be started again, when the log can't be written for good or another process has taken it over.
    """
    if logs is None:
        return ShardHost(ShardCore(specs, placement, shard, incarnation=incarnation, shared=True), cuts=cuts)
    core = ShardCore(
        specs, placement, shard, incarnation=incarnation, shared=True, logged=True, first_values=False
    )
    metrics, begun = ShardMetrics(), time.perf_counter()
    log = take_over_or_begin_anew(core, logs / f"shard-{shard:04d}")
    metrics.replay_seconds.set(time.perf_counter() - begun)
    return ShardHost(core, log, _end_process, cuts, metrics)


def _end_process(reason: str) -> None:
    _log.critical("the shard's process ends: %s", reason)
    os._exit(1)
