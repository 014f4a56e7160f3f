"""Jobs with each option of the memory: the same bytes on any number of shards and after a stop; inspected and planned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.small_job import dense_weights, small_job, table_content
from tests.workers.test_training import last_cut, run_interrupted, run_job
from workers.inspection import inspect_run
from workers.run_folder import RunFolder

VARIANTS: dict[str, dict[str, Any]] = {
    "memory+": {"layers": [1, 2], "gate": True, "qk_norm": True},
    "peer": {"slots": "experts"},
    "ultramem": {
        "weights": "scores",
        "value_dim": 16,
        "value_expansion": 4,
        "values": {"lr": 0.01, "schedule": "linear", "lr_end": 0.001},
    },
    "flat": {"keys": "flat", "sub_keys": 16},
}


def variant(name: str) -> dict[str, Any]:
    return {f"memory__{key}": value for key, value in VARIANTS[name].items()}


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", VARIANTS)
def test_shards_and_stops_change_no_byte(
    name: str, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    settings = {**variant(name), "train__steps": 8, "train__cut_every": 4, "store__lookup": "fetch"}
    run_job(small_job(corpus, **settings), tmp_path / "two")
    run_interrupted(small_job(corpus, **settings), tmp_path / "moved", 6, monkeypatch)
    run_job(small_job(corpus, **settings, store__shards=1), tmp_path / "moved", resume=True)
    assert dense_weights(last_cut(tmp_path / "two")) == dense_weights(last_cut(tmp_path / "moved"))
    assert table_content(last_cut(tmp_path / "two")) == table_content(last_cut(tmp_path / "moved"))

    job = small_job(corpus, **settings)
    (table,) = inspect_run(RunFolder(tmp_path / "two")).tables
    (spec,) = job.tables()
    assert table.access.rows == spec.rows
    assert 0 < table.access.usage <= 1
    assert sum(age.rows for age in table.ages) == spec.rows
