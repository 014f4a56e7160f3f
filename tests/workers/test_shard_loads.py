"""The load of shards, from what their processes say that they have used."""

from __future__ import annotations

import time
from pathlib import Path
from typing import cast

import pytest

from memory_store.actor import ShardGroup, ShardUse
from memory_store.errors import StoreError
from workers import shard_loads
from workers.shard_load import read_loads
from workers.shard_loads import LoadWatch


class Group:
    """Shard 0 keeps half a core busy and answers 30 calls a second; shard 1 does not answer."""

    shards = 2

    def use(self, shard: int, timeout_s: float) -> ShardUse:
        if shard:
            raise StoreError("it does not say")
        now = time.monotonic()
        return ShardUse("10.0.0.1:99", "first", now / 2, int(now * 30), 5 << 20)


def test_what_shards_use_becomes_their_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_loads, "_EVERY_S", 0.2)
    assert read_loads(tmp_path) == ()
    watch = LoadWatch(cast("ShardGroup", Group()), tmp_path)
    try:
        deadline = time.monotonic() + 20
        while not read_loads(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.02)
        (load,) = read_loads(tmp_path)
    finally:
        watch.stop()
    assert (load.shard, load.address, load.memory_bytes) == (0, "10.0.0.1:99", 5 << 20)
    assert load.busy_cores == pytest.approx(0.5, abs=0.1)
    assert load.calls_per_second == pytest.approx(30, abs=8)
    assert read_loads(tmp_path) == ()
