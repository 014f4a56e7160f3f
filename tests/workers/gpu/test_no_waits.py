"""In a training step the host asks a device for nothing but by copies whose ends it can wait for alone (transfers.py)."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from memory_store.shard_metrics import ShardMetrics
from tests.small_job import small_job
from workers.ranks import Ranks
from workers.run_folder import RunFolder
from workers.table_placement import store_in_process
from workers.training import Trainer

# What waits for all that a GPU was given, if its tensor lies there: reading a number, and shapes that depend on numbers.
_WAITING = (
    "_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "_unique2", "repeat_interleave", "bincount",
)  # fmt: skip


class _Waits(TorchDispatchMode):
    """Where operations are called that wait. AdamW counts its steps in tensors of the host, wherever the weights lie."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name().removeprefix("aten::").split(".")[0] in _WAITING:
            stack = traceback.extract_stack()
            if not any("torch/optim" in frame.filename for frame in stack):
                ours = [
                    frame
                    for frame in stack
                    if "/workers/" in frame.filename and "tests" not in frame.filename
                ]
                self.seen.append(f"{func.name()} in {ours[-1].filename}:{ours[-1].lineno}")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "settings",
    [
        {"memory__placement": "host"},
        {"memory__placement": "cached", "memory__cached_rows": 100, "store__lookup": "fetch"},
        {"memory__placement": "host", "train__clip_norm": 0.1, "memory__query_norm": "layer"},
        {
            "memory__placement": "host",
            "memory__gate": True,
            "memory__qk_norm": True,
            "train__non_finite": "skip",
            "memory__revive_dead_after": 50,
        },
    ],
)
def test_a_step_asks_the_device_for_no_number(settings: dict[str, Any], corpus: Path, tmp_path: Path) -> None:
    job = small_job(corpus, store__shards=1, **settings)
    run = RunFolder(tmp_path / "run")
    run.create(job)
    cpu = torch.device("cpu")
    store = store_in_process(job, cpu, ShardMetrics())
    trainer = Trainer(job, run, Ranks(device=cpu), store)
    trainer._start()
    trainer.train_step()  # what is made once is made here
    waits = _Waits()
    with waits:
        for _ in range(3):
            trainer.train_step()
    assert waits.seen == []
