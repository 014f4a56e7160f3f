"""How busy each shard of a job is, as the run's folder says while the job runs (shard_loads.py writes it)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter

from memory_store.durable_files import replace_file

LOADS = "shards.json"


class ShardLoad(BaseModel):
    """Of one shard: cores that it keeps busy, calls it answers (rows that are read in place need none), bytes it holds."""

    model_config = ConfigDict(frozen=True)

    shard: int
    address: str
    busy_cores: float
    calls_per_second: float
    memory_bytes: int


_Loads = TypeAdapter(tuple[ShardLoad, ...])


def tell_loads(run: Path, loads: Sequence[ShardLoad]) -> None:
    """Keep what was seen last."""
    replace_file(run / LOADS, _Loads.dump_json(tuple(loads)))


def read_loads(run: Path) -> tuple[ShardLoad, ...]:
    """What was seen last of a job that runs; nothing of one that does not."""
    try:
        return _Loads.validate_json((run / LOADS).read_bytes())
    except FileNotFoundError:
        return ()
