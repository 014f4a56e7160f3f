"""One shard in a process of its own, without Ray: for calibration, and for test beds that place processes themselves.

    python -m workers.shard_process

It reads its settings, a JSON object (`ShardSettings`) with its secret, as a line of its standard input, prints its port on
standard output, and serves until its standard input ends: so it never outlives its owner.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from memory_store.bucket_files import spec_from_json
from memory_store.carriers.grpc_server import ShardServer
from memory_store.errors import StoreError
from memory_store.placement import Placement
from memory_store.process_host import process_host
from memory_store.table_spec import TableSpec
from memory_store.traces import Traces


@dataclass(frozen=True)
class ShardSettings:
    """Shard number `shard` of `shards` of `tables`, at `host`, with `threads` kernel threads, its log under `logs` and its
    cuts in `cuts`, if given; it traces what is traced of `job` into `traces`, if given."""

    tables: Sequence[TableSpec]
    shards: int
    shard: int
    host: str = "127.0.0.1"
    threads: int = 1
    token: str = ""
    logs: str | None = None
    cuts: str | None = None
    job: str = ""
    traces: str | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> ShardSettings:
        settings: dict[str, Any] = json.loads(text)
        return ShardSettings(**{**settings, "tables": [spec_from_json(spec) for spec in settings["tables"]]})


class ShardProcess(AbstractContextManager["ShardProcess"]):
    """A running shard; `launcher` is what its command begins with, such as `ip netns exec NAME`."""

    def __init__(self, settings: ShardSettings, launcher: Sequence[str] = ()) -> None:
        threads = str(settings.threads)
        environment = {"NUMBA_NUM_THREADS": threads, "OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE"}
        self._process = subprocess.Popen(
            [*launcher, sys.executable, "-m", "workers.shard_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | environment | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        self._host = settings.host
        assert self._process.stdin is not None
        self._process.stdin.write(settings.to_json().encode() + b"\n")
        self._process.stdin.flush()

    @property
    def pid(self) -> int:
        return self._process.pid

    def address(self) -> str:
        """host:port, once the shard is ready. Raises StoreError if it ended instead."""
        assert self._process.stdout is not None
        port = self._process.stdout.readline().strip()
        if not port:
            raise StoreError(
                f"The shard's process ended with status {self._process.wait()} before it was ready."
            )
        return f"{self._host}:{int(port)}"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self


def serve(settings: ShardSettings) -> None:
    """Serve until standard input ends."""
    host = process_host(
        settings.tables,
        Placement.even(settings.shards),
        settings.shard,
        secrets.token_hex(8),
        Path(settings.logs) if settings.logs is not None else None,
        Path(settings.cuts) if settings.cuts is not None else None,
    )
    spans = None
    if settings.traces is not None:
        spans = Traces(settings.job, Path(settings.traces)).of_shard(host, settings.shard)
    server = ShardServer(host, f"{settings.host}:0", settings.token)
    print(server.port, flush=True)
    sys.stdin.read()
    server.stop(0.1)
    if spans is not None:
        spans.close()


if __name__ == "__main__":
    serve(ShardSettings.from_json(sys.stdin.readline()))
