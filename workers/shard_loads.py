"""Looking at how busy the shards of a job are, every few seconds, for the run's folder (shard_load.py)."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

from memory_store.actor import ShardGroup, ShardUse
from memory_store.errors import StoreError
from workers.shard_load import LOADS, ShardLoad, tell_loads

_EVERY_S = 2.0
_TIMEOUT_S = 5.0

_log = logging.getLogger(__name__)


class LoadWatch:
    """Looks at the shards of a job in a thread of its own, until `stop`; what it sees is in the folder `run`."""

    def __init__(self, shards: ShardGroup, run: Path) -> None:
        self._shards, self._run_path = shards, run
        self._before: dict[int, tuple[float, ShardUse]] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="shard-loads", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()
        (self._run_path / LOADS).unlink(missing_ok=True)

    def _run(self) -> None:
        while not self._stopped.wait(_EVERY_S):
            try:
                loads = [self._look(shard) for shard in range(self._shards.shards)]
                tell_loads(self._run_path, [load for load in loads if load is not None])
            except Exception:
                _log.exception("the load of the shards could not be seen")

    def _look(self, shard: int) -> ShardLoad | None:
        """None for a shard that is being started, and the first time."""
        try:
            use = self._shards.use(shard, _TIMEOUT_S)
        except StoreError:
            self._before.pop(shard, None)
            return None
        now = time.monotonic()
        before = self._before.get(shard)
        self._before[shard] = now, use
        if before is None or before[1].incarnation != use.incarnation:
            return None
        seconds, last = now - before[0], before[1]
        return ShardLoad(
            shard=shard,
            address=use.address,
            busy_cores=(use.processor_seconds - last.processor_seconds) / seconds,
            calls_per_second=(use.calls - last.calls) / seconds,
            memory_bytes=use.memory_bytes,
        )
