"""Shards in processes of their own, with logs, which tests kill."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack
from pathlib import Path

from memory_store import OptimizerSpec, StoreClient, TableSpec, connect
from workers.shard_process import ShardProcess, ShardSettings

SPEC = TableSpec("memory", rows=128 * 128, dim=64, seed=5, optimizer=OptimizerSpec("adam"))
SHARDS = 2


class Shards:
    """Shard processes with logs, each replaced by a new one when it is killed."""

    def __init__(self, logs: Path | None) -> None:
        self._logs = logs
        self._stack = ExitStack()
        self._processes = [self._start(shard) for shard in range(SHARDS)]
        self._addresses = [process.address() for process in self._processes]

    def _start(self, shard: int) -> ShardProcess:
        logs = str(self._logs) if self._logs is not None else None
        settings = ShardSettings([SPEC], SHARDS, shard, token="token", logs=logs)
        return self._stack.enter_context(ShardProcess(settings))

    def connect(self, **settings: object) -> StoreClient:
        return connect(self._addresses, token="token", find=self._find, timeout_s=60, **settings)  # type: ignore[arg-type]

    def _find(self, shard: int) -> str:
        return self._addresses[shard]

    def kill(self, shard: int) -> None:
        os.kill(self._processes[shard].pid, signal.SIGKILL)
        self._processes[shard] = self._start(shard)
        self._addresses[shard] = self._processes[shard].address()

    def close(self) -> None:
        self._stack.close()
