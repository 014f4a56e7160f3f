"""The map of the rows that the training reads now: counted as a plain loop counts; nothing of a run depends on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from memory_store.opening import in_process_store
from tests.small_job import dense_weights, small_job, table_content
from workers import training_map
from workers.job_spec import JobSpec
from workers.memory_layer import MemoryLayer
from workers.product_keys import ProductKeys
from workers.ranks import Ranks
from workers.run_folder import RunFolder
from workers.training import Trainer
from workers.training_map import RecentMap, TrainingMap, load_map, save_map


class Layer:
    on_select: Callable[[torch.Tensor], None]


def counting(
    path: Path, sub_keys: int, step: int = 0
) -> tuple[TrainingMap, Callable[[torch.Tensor], None], list[float]]:
    layer, clock = Layer(), [0.0]
    counted = TrainingMap(path, [layer], sub_keys, step, now=lambda: clock[0])  # type: ignore[list-item]
    return counted, layer.on_select, clock


def plain_counts(rows: torch.Tensor, sub_keys: int, side: int) -> np.ndarray:
    counts = np.zeros((side, side), dtype=np.uint32)
    for row in rows.flatten().tolist():
        counts[row // sub_keys * side // sub_keys, row % sub_keys * side // sub_keys] += 1
    return counts


@pytest.mark.parametrize(("sub_keys", "side_max"), [(16, 1024), (48, 16), (50, 7)])
def test_every_read_is_counted_where_its_sub_keys_meet(
    tmp_path: Path, sub_keys: int, side_max: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_map, "SIDE_MAX", side_max)
    counted, read, clock = counting(tmp_path / "map", sub_keys)
    rows = torch.randint(sub_keys**2, (30, 2, 8))
    read(rows[:10])
    read(rows[10:])
    counted.end_of_step(1)
    assert load_map(tmp_path / "map") is None  # not yet
    clock[0] = 6.0
    counted.end_of_step(2)
    found = load_map(tmp_path / "map")
    assert found is not None
    assert (found.since, found.step, found.sub_keys) == (0, 2, sub_keys)
    np.testing.assert_array_equal(found.counts, plain_counts(rows, sub_keys, min(sub_keys, side_max)))


def test_reads_before_the_window_are_forgotten(tmp_path: Path) -> None:
    """Each step reads the row of its own number: what stands in the map is what the window holds."""
    counted, read, clock = counting(tmp_path / "map", 32, step=100)
    for step in range(101, 424):
        read(torch.full((1, 1, 1), step))
        clock[0] += 6.0
        counted.end_of_step(step)
        found = load_map(tmp_path / "map")
        assert found is not None
        assert np.flatnonzero(found.counts).tolist() == list(range(found.since + 1, step + 1))
        assert step - found.since <= training_map.WINDOW_STEPS
        assert step - found.since > training_map.WINDOW_STEPS // 2 or found.since == 100


def test_of_many_tokens_an_even_part_is_counted(tmp_path: Path) -> None:
    counted, read, _ = counting(tmp_path / "map", 100)
    read(torch.arange(3 * training_map.TOKENS_MAX).reshape(-1, 1, 1))
    counted.end_of_step(1, last=True)
    found = load_map(tmp_path / "map")
    assert found is not None
    assert np.flatnonzero(found.counts).tolist() == list(range(0, 3 * training_map.TOKENS_MAX, 3))


def trained(corpus: Path, folder: Path, job: JobSpec) -> RunFolder:
    run = RunFolder(folder)
    run.create(job)
    torch.manual_seed(
        0
    )  # a cut keeps the state of the process's random numbers, which other tests have drawn from
    Trainer(job, run, Ranks(), in_process_store(job.tables(), 2)).train()
    return run


def test_a_run_ends_with_the_same_bytes_with_the_map_and_without(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = small_job(corpus, train__steps=20, train__cut_every=20)
    monkeypatch.setattr(training_map, "_EVERY_S", 0.0)
    selected: list[torch.Tensor] = []
    select = ProductKeys.select

    def noted(self: ProductKeys, queries: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        rows, scores = select(self, queries, k)
        if torch.is_grad_enabled():
            selected.append(rows.detach().clone())
        return rows, scores

    monkeypatch.setattr(ProductKeys, "select", noted)
    with_map = trained(corpus, tmp_path / "with", job)
    found = load_map(with_map.training_map_path)
    assert found is not None
    assert (found.since, found.step) == (0, 20)
    np.testing.assert_array_equal(found.counts, plain_counts(torch.cat(selected), 32, 32))

    monkeypatch.setattr(Trainer, "_new_map", lambda trainer: None)
    without = trained(corpus, tmp_path / "without", job)
    assert not without.training_map_path.exists()
    cuts = [next(path for path in run.cuts_path.iterdir()) for run in (with_map, without)]
    assert dense_weights(cuts[0]) == dense_weights(cuts[1])
    assert table_content(cuts[0]) == table_content(cuts[1])


def test_a_disk_that_takes_no_map_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    counted, read, _ = counting(tmp_path / "no" / "folder", 16)
    for step in range(3):
        read(torch.zeros(1, 1, 1, dtype=torch.int64))
        counted.end_of_step(step, last=True)
    assert len(caplog.records) == 1
    assert "the training goes on" in caplog.text


def test_a_layer_that_evaluates_tells_nothing() -> None:
    store = in_process_store(small_job(Path("/none")).tables())
    layer = MemoryLayer(32, store.table("memory"), sub_keys=32, k=8, heads=2, query_dim=16)
    told: list[torch.Tensor] = []
    layer.on_select = told.append
    layer.eval()(torch.randn(5, 32))
    assert told == []
    layer.train()(torch.randn(5, 32))
    assert told[0].shape == (5, 2, 8)


@pytest.mark.parametrize("kept", [0, 10, 200, -1])
def test_a_damaged_file_is_no_map(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "map"
    save_map(path, RecentMap(0, 1, 16, np.ones((16, 16), dtype=np.uint32)))
    assert load_map(path) is not None
    path.write_bytes(path.read_bytes()[:kept])
    assert load_map(path) is None
