"""Inspection: the same figures as a count by hand of what the model selects on held-out text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from memory_store.errors import UsageError
from tests.small_job import small_job
from workers.inspection import Inspection, draw_inspection, inspect_run
from workers.memory_layer import MemoryLayer
from workers.run_folder import RunFolder
from workers.trained_model import load_trained_model
from workers.trainer_group import train


def trained_run(corpus: Path, folder: Path, **changes: object) -> RunFolder:
    job = small_job(corpus, train__steps=6, train__cut_every=6, **changes)
    run = RunFolder(folder)
    run.create(job)
    train(job, run, on_progress=lambda _: None)
    return run


@pytest.fixture(scope="module")
def two_tables(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("inspection") / "run"
    return trained_run(corpus, folder, memory__layers=[1, 2], memory__shared_table=False)


def test_figures_and_map_are_those_of_a_count_by_hand(two_tables: RunFolder, monkeypatch: pytest.MonkeyPatch):
    inspection = inspect_run(two_tables)
    assert [table.name for table in inspection.tables] == ["memory-1", "memory-2"]
    assert inspection.step == 6

    # The rows that each layer selects for every validation token, all windows of the text in one go.
    trained = load_trained_model(two_tables)
    length = trained.job.data.sequence_length
    tokens = trained.corpus.tokens("validation").astype(np.int64)
    inputs = tokens[:-1]
    weights = {layer: np.zeros(32 * 32) for layer in (1, 2)}
    counts = {layer: np.zeros(32 * 32, dtype=int) for layer in (1, 2)}
    numbers = iter([1, 2] * (len(inputs) // length + 1))
    for layer in (module for module in trained.model.modules() if isinstance(module, MemoryLayer)):
        original = layer.product_keys.select

        def select(queries: torch.Tensor, k: int, original=original):  # type: ignore[no-untyped-def]
            selection, number = original(queries, k), next(numbers)
            rows, shares = selection.rows.flatten().numpy(), selection.scores.softmax(-1).flatten().numpy()
            np.add.at(weights[number], rows, shares)
            np.add.at(counts[number], rows, 1)
            return selection

        monkeypatch.setattr(layer.product_keys, "select", select)
    with torch.no_grad():
        for begin in range(0, len(inputs), length):
            trained.model(torch.from_numpy(inputs[None, begin : begin + length]))

    for table, layer in zip(inspection.tables, (1, 2), strict=True):
        share = weights[layer] / weights[layer].sum()
        used = counts[layer] > 0
        assert table.access.accesses == counts[layer].sum() == len(inputs) * 2 * 8
        assert table.access.dead_slots == (~used).sum()
        assert table.access.usage == used.mean()
        kl = np.log(32 * 32) + (share[used] * np.log(share[used])).sum()
        assert table.access.kl_to_uniform == pytest.approx(kl, rel=1e-3)
        np.testing.assert_allclose(table.access_map, weights[layer].reshape(32, 32), rtol=1e-3, atol=1e-3)


def test_each_table_is_drawn_into_a_file_of_its_own(two_tables: RunFolder, tmp_path: Path):
    both = inspect_run(two_tables, "test")
    one = Inspection(both.name, both.step, both.tables[:1])
    assert draw_inspection(one, tmp_path / "map.png") == [tmp_path / "map.png"]
    drawn = draw_inspection(both, tmp_path / "map.png")
    assert drawn == [tmp_path / "map-memory-1.png", tmp_path / "map-memory-2.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (tmp_path / "map.png", *drawn))


def test_a_dense_model_has_nothing_to_inspect(corpus: Path, tmp_path: Path):
    run = trained_run(corpus, tmp_path / "run", memory=None)
    with pytest.raises(UsageError, match="has no memory"):
        inspect_run(run)
