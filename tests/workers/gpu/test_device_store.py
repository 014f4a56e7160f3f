"""Whole tables on the device against tables in shards, over the same random histories."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from memory_store import NonFiniteGradientError, OptimizerSpec, UsageError, in_process_store
from memory_store.statistics import access_report, clear_accesses, touched_share
from tests.memory_store.written_cuts import write_cut
from tests.small_job import table_content
from tests.workers.gpu.held_streams import HeldStreams
from tests.workers.gpu.histories import CPU, History, ordinary, small_table
from workers.gpu.device_store import DeviceStore
from workers.gpu.transfers import Transfers
from workers.lookup import begin_lookup


def on_device(seed: int, **changes: Any) -> History:
    store = DeviceStore([small_table(**changes)], CPU)
    return History(store, store.table("memory"), seed)


@pytest.mark.parametrize("kind", ["sgd", "adagrad", "rowwise_adagrad", "adam", "rowwise_adam"])
def test_a_table_on_the_device_is_that_of_the_shards(kind: Any) -> None:
    expected, found = (make(2, optimizer=OptimizerSpec(kind)).run() for make in (ordinary, on_device))
    for ours, theirs in zip(found.seen, expected.seen, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.everything(), expected.everything(), rtol=1e-3, atol=1e-4)
    assert found.store.version == expected.store.version
    for since in (10, 49):
        assert touched_share(found.store, "memory", since) == touched_share(expected.store, "memory", since)


def test_norms_and_clipping_are_those_of_the_shards() -> None:
    told = []
    for history in (ordinary(3), on_device(3)):
        history.look_up()
        result = history.store.step({"memory": 0.1}, {"memory": 0.01})
        told.append((result.version, result.gradient_norms["memory"], history.everything()))
    torch.testing.assert_close(told[0], told[1], rtol=1e-5, atol=1e-6)
    history = on_device(3)
    history.store.step({"memory": 0.1}, {"memory": 0.01})  # with nothing contributed
    with pytest.raises(UsageError, match="needs a learning rate"):
        history.store.step({})


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cuts_go_from_the_device_to_shards_and_back(
    slow: bool, dtype: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if slow:  # tables cross in many pieces
        copies = Transfers(HeldStreams())
        monkeypatch.setattr("workers.gpu.device_store.transfers", lambda device: copies)
        monkeypatch.setattr("workers.gpu.transfers._PIECE_BYTES", 5000)
    trained = on_device(4, dtype=dtype)
    for steps in (1, 30, 1, 5):  # two of all rows, then of what was touched since
        trained.run(steps)
        cut = write_cut(trained.store, tmp_path / "device")
    shards = ordinary(0, 3, dtype=dtype)
    shards.store.load_cut(str(cut), trained.store.version)
    assert torch.equal(shards.everything(), trained.everything())
    again = write_cut(shards.store, tmp_path / "shards")
    assert table_content(again) == table_content(cut)
    fresh = on_device(9, dtype=dtype)
    fresh.store.load_cut(str(again), shards.store.version)
    assert fresh.store.version == trained.store.version
    trained.random, trained.seen = np.random.default_rng(9), []
    assert fresh.run(5).equals(trained.run(5))


def test_a_cut_is_of_its_step_whatever_comes_after(tmp_path: Path) -> None:
    history = on_device(5).run(5)
    one = tmp_path / "one"
    one.mkdir()
    first = history.store.begin_cut(str(one))
    history.run(5)
    write_cut(
        history.store, tmp_path / "other"
    )  # begun, as it may be, before anybody has asked for the first one
    first()
    expected = write_cut(on_device(5).run(5).store, tmp_path / "expected")
    files = sorted(path.name for path in one.iterdir())
    assert files
    for name in files:
        assert (one / name).read_bytes() == (expected / name).read_bytes()


def test_first_values_come_back_after_a_cut(tmp_path: Path) -> None:
    history = on_device(6)
    first = history.everything()
    history.run(5)
    write_cut(history.store, tmp_path)
    history.store.initialise()
    assert torch.equal(history.everything(), first)
    assert history.store.version == 0


@pytest.mark.parametrize(
    ("factor", "clip"),
    # The last one is finite, and its square is not.
    [(torch.inf, {}), (torch.nan, {}), (torch.inf, {"memory": 1.0}), (1e30, {"memory": 1.0})],
)
def test_a_gradient_that_is_not_finite_touches_no_row(factor: float, clip: dict[str, float]) -> None:
    history = on_device(5)
    before = history.everything()
    weights = torch.ones(1, 1, requires_grad=True)
    begin_lookup(history.table, torch.tensor([[3]]), weights)().sum().mul(factor).backward()
    with pytest.raises(NonFiniteGradientError):
        history.store.step({"memory": 0.1}, clip)
    history.store.skip_step()
    assert torch.equal(history.everything(), before)
    assert history.store.version == 1


def test_accesses_are_counted_as_shards_count_them() -> None:
    rows, weights = torch.tensor([[1, 2], [2, 2400]]), torch.tensor([[0.5, 0.5], [0.25, 0.75]])
    reports = []
    for store in (DeviceStore([small_table()], CPU), in_process_store([small_table()], 2)):
        clear_accesses(store, "memory")
        with torch.no_grad():
            begin_lookup(store.table("memory"), rows, weights, track=True)()
        reports.append(access_report(store, "memory"))
    assert reports[0] == reports[1]


def test_what_a_device_can_not_hold_is_refused() -> None:
    with pytest.raises(UsageError, match="float32 or bfloat16"):
        on_device(0, dtype="float64")
    with pytest.raises(UsageError, match="2 trainers can't share them"):
        on_device(0).store.take_over(2)
