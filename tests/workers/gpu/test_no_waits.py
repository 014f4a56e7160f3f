"""In a training step the host asks a device for nothing but by copies whose ends it can wait for alone (transfers.py)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from memory_store.opening import in_process_hosts
from memory_store.shard_metrics import ShardMetrics
from tests.small_job import small_job
from tests.workers.gpu.held_streams import HeldStreams
from tests.workers.gpu.histories import CPU, History, small_table
from tests.workers.gpu.peers_in_threads import at_once, shared_stores
from tests.workers.gpu.seen_waits import kernel, seen_waits
from tests.workers.gpu.test_cached_table import two_writers
from workers import compiled_blocks, product_keys
from workers.gpu import device_store, pooling
from workers.gpu.cached_table import CachedTable
from workers.gpu.transfers import Transfers
from workers.ranks import Ranks
from workers.run_folder import RunFolder
from workers.table_placement import store_in_process
from workers.training import Trainer

HOST = {"memory__placement": "host"}
CACHED = {"memory__placement": "cached", "memory__cached_rows": 100, "store__lookup": "fetch"}
GPU = {"memory__placement": "gpu"}
MASK = torch.tensor([True, False, True])


@pytest.fixture
def played_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU as a device for each thread, to and from which copies take time, and whose kernels are its own."""
    of_thread = threading.local()

    def played_transfers(device: torch.device) -> Transfers:
        if not hasattr(of_thread, "transfers"):
            of_thread.transfers = Transfers(HeldStreams())
        transfers: Transfers = of_thread.transfers
        return transfers

    for module in ("lookup", "training", "tensor_tables", "gpu.cached_table", "gpu.transfers"):
        monkeypatch.setattr(f"workers.{module}.transfers", played_transfers)
    for name in ("_pooled_on_cpu", "_weight_gradient_on_cpu"):
        monkeypatch.setattr(pooling, name, kernel(getattr(pooling, name)))
    for name in ("update_rows", "squared_norm"):
        monkeypatch.setattr(device_store, name, kernel(getattr(device_store, name)))
    for name in ("forward", "backward"):
        method = kernel(getattr(product_keys._FusedSelection, name))
        monkeypatch.setattr(product_keys._FusedSelection, name, staticmethod(method))


@pytest.mark.parametrize(
    ("call", "seen"),
    [
        (lambda x: x[MASK], "aten::index.Tensor"),
        (lambda x: x.__setitem__(MASK, torch.zeros(2)), "aten::index_put_"),
        (lambda x: x.nonzero(), "aten::nonzero"),
        (lambda x: torch.where(x > 0), "aten::nonzero"),
        (lambda x: x.masked_select(MASK), "aten::masked_select"),
        (lambda x: x.unique(), "aten::_unique2"),
        (lambda x: x.unique(dim=0), "aten::unique_dim"),
        (lambda x: x.unique_consecutive(), "aten::unique_consecutive"),
        (lambda x: x.long().bincount(), "aten::bincount"),
        (lambda x: x.repeat_interleave(MASK.long()), "aten::repeat_interleave.Tensor"),
        (lambda x: x[0].item(), "aten::_local_scalar_dense"),
        (lambda x: float(x.sum()), "aten::_local_scalar_dense"),
        (lambda x: bool(x.any()), "aten::is_nonzero|aten::_local_scalar_dense"),
        (lambda x: torch.equal(x, x), "aten::equal"),
        (lambda x: x.cpu(), "Tensor.cpu"),
        (lambda x: x.tolist(), "Tensor.tolist"),
        (lambda x: x.numpy(), "Tensor.numpy"),
        (lambda x: np.asarray(x), "Tensor.__array__"),
    ],
)
def test_what_would_wait_is_seen(call: Callable[[Tensor], object], seen: str) -> None:
    x = torch.arange(3.0)
    with seen_waits() as waits:
        call(x)
    assert waits
    assert waits[0] in seen.split("|")
    with seen_waits() as waits:
        kernel(call)(x)
    assert waits == []
    call(x)
    assert waits == []


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x[torch.tensor([2, 0])],
        lambda x: torch.where(MASK, x, 0.0),
        lambda x: x.masked_fill(MASK, 0.0),
        lambda x: x.repeat_interleave(MASK.long(), output_size=2),
        lambda x: x.sort(),
        lambda x: x.index_add_(0, torch.tensor([0, 1]), torch.ones(2)),
    ],
)
def test_what_does_not_wait_is_not(call: Callable[[Tensor], object]) -> None:
    with seen_waits() as waits:
        call(torch.arange(3.0))
    assert waits == []


@pytest.mark.parametrize(
    "settings",
    [
        HOST,
        CACHED,
        GPU,
        {**HOST, "train__clip_norm": 0.1, "memory__query_norm": "layer"},
        {**GPU, "memory__values": {"lr": 0.01, "clip_norm": 0.5}, "train__gradient_accumulation": 2},
        {
            **HOST,
            "memory__gate": True,
            "memory__qk_norm": True,
            "train__non_finite": "skip",
            "memory__revive_dead_after": 50,
        },
    ],
    ids=str,
)
@pytest.mark.usefixtures("played_gpu")
def test_a_step_asks_the_device_for_no_number(settings: dict[str, Any], corpus: Path, tmp_path: Path) -> None:
    trainer = trainer_of(settings, corpus, tmp_path)
    with seen_waits() as waits:
        for _ in range(3):
            trainer.train_step()
    assert waits == []


@pytest.mark.parametrize("settings", [HOST, CACHED, GPU], ids=str)
@pytest.mark.usefixtures("played_gpu")
# Inductor's own imports.
@pytest.mark.filterwarnings("ignore:`torch.jit.*deprecated:DeprecationWarning")
def test_nor_does_one_with_compiled_blocks(
    settings: dict[str, Any], corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dynamo compiles nothing while operations are looked at, so that blocks run as written, with all that is round them."""
    compiled: list[str] = []

    def as_written(function: Callable[..., Any], **settings: Any) -> Callable[..., Any]:
        assert settings["fullgraph"]  # of itself it refuses what would wait
        compiled.append(function.__name__)
        return function

    monkeypatch.setattr(compiled_blocks, "check_compiler", lambda device: None)
    monkeypatch.setattr(torch, "compile", as_written)
    trainer = trainer_of({**settings, "train__compile": True}, corpus, tmp_path)
    with seen_waits() as waits:
        for _ in range(3):
            trainer.train_step()
    assert waits == []
    assert compiled == ["attend", "add_feed_forward"]


def trainer_of(settings: dict[str, Any], corpus: Path, folder: Path) -> Trainer:
    """A trainer whose first two steps, in which things are made once, are over."""
    job = small_job(corpus, store__shards=1, **settings)
    run = RunFolder(folder / "run")
    run.create(job)
    trainer = Trainer(job, run, Ranks(device=CPU), store_in_process(job, CPU, ShardMetrics()))
    trainer._start()
    for _ in range(2):
        trainer.train_step()
    return trainer


@pytest.mark.parametrize("placement", ["host", "cached", "gpu"])
@pytest.mark.usefixtures("played_gpu")
def test_nor_do_lookups_and_steps_of_several_trainers(placement: str) -> None:
    table = small_table()
    if placement == "gpu":
        stores: Any = shared_stores([table], 2)
    else:
        stores = two_writers(in_process_hosts([table], 2), table)

    def steps(rank: int) -> list[str]:
        store = stores[rank]
        handle = CachedTable(store, table, 50, CPU) if placement == "cached" else store.table("memory")
        history = History(store, handle, seed=0)  # on devices all look up as many tokens at once
        history.step()
        with seen_waits() as waits:
            history.step(clip=0.5)
            history.step()
        return waits

    assert at_once(2, steps) == [[], []]
