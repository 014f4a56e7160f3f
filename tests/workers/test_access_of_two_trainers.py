"""Access statistics of a real run with two trainers, against a brute-force count in one process."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.small_job import small_job
from workers.batches import evaluation_batches
from workers.memory_layer import MemoryLayer
from workers.report import Report
from workers.run_folder import RunFolder
from workers.trained_model import load_trained_model
from workers.trainer_group import train


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "settings",
    [
        {"store__carrier": "auto", "store__shards": 3},
        pytest.param({"memory__placement": "gpu", "store__shards": 1}, marks=pytest.mark.slow),
    ],
    ids=["in shards", "on the devices of both"],
)
def test_usage_and_kl_equal_a_brute_force_count(
    settings: dict[str, Any], corpus: Path, tmp_path: Path
) -> None:
    job = small_job(corpus, train__steps=12, train__trainers=2, **settings)
    run = RunFolder(tmp_path / "run")
    run.create(job)
    report = train(job, run, on_progress=lambda _: None)
    weights = count_by_hand(run)

    share = weights / weights.sum()
    used = share[share > 0]
    top = np.sort(share)[::-1][: math.ceil(share.size / 100)].sum()
    assert isinstance(report, Report)
    assert report.memory_usage == np.count_nonzero(weights) / weights.size
    assert report.kl_to_uniform == pytest.approx(
        math.log(weights.size) + float((used * np.log(used)).sum()), abs=1e-4
    )
    assert report.top1_share == pytest.approx(float(top), abs=1e-4)
    assert report.dead_slots == weights.size - np.count_nonzero(weights)


def count_by_hand(run: RunFolder) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Sum of softmax weights of every row over the whole test text, one sequence at a time, without the store."""
    trained = load_trained_model(run)
    (layer,) = (module for module in trained.model.modules() if isinstance(module, MemoryLayer))
    weights = np.zeros(trained.job.table_rows())
    seen: list[torch.Tensor] = []
    handle = layer.query_network.register_forward_hook(lambda *parts: seen.append(parts[-1].detach()))
    length = trained.job.data.sequence_length
    with torch.no_grad():
        for tokens, _, mask in evaluation_batches(trained.corpus.tokens("test"), length, 1):
            trained.model(torch.from_numpy(tokens), torch.from_numpy(mask))
            selection = layer.product_keys.select(seen.pop(), trained.job.memory.k)  # type: ignore[union-attr]
            chosen = torch.softmax(selection.scores, dim=-1)
            np.add.at(weights, selection.rows.numpy().reshape(-1), chosen.numpy().reshape(-1))
    handle.remove()
    return weights
