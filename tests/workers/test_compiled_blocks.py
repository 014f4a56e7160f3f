"""Compiled blocks compute what the model computes as it is written, from few graphs, and leave nothing else changed."""

from __future__ import annotations

import re
import sysconfig
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from memory_store.cuts import complete_cuts
from memory_store.errors import UsageError
from memory_store.table_handle import TableHandle
from tests.small_job import dense_weights, small_job, table_content
from tests.workers.played_graphs import PlayedGraphs
from workers import compiled_blocks
from workers.compiled_blocks import check_compiler
from workers.evaluation import evaluate
from workers.gpu import compilation
from workers.job_spec import JobSpec
from workers.preflight import check_device, check_job
from workers.ranks import Ranks
from workers.report import StepRecord, read_records
from workers.run_folder import RunFolder
from workers.table_placement import store_in_process
from workers.trainer_group import train
from workers.training import Trainer

pytestmark = [
    # Dynamo hides this warning of its own, which a filter that makes errors of warnings does not let it do.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),
    # Inductor's own imports.
    pytest.mark.filterwarnings("ignore:`torch.jit.*deprecated:DeprecationWarning"),
]

CPU = torch.device("cpu")
THREE_LAYERS = {"layers": 3, "dim": 32, "heads": 2}


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> PlayedGraphs:
    graphs = PlayedGraphs()
    torch.compiler.reset()
    monkeypatch.setattr(compiled_blocks, "check_compiler", lambda device: None)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=graphs))
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", graphs.begin_round)
    return graphs


def new_trainer(job: JobSpec, folder: Path) -> Trainer:
    run = RunFolder(folder)
    run.create(job)
    store = store_in_process(job, CPU, None) if job.memory else None
    trainer = Trainer(job, run, Ranks(), store)
    trainer._start()
    return trainer


def values(table: TableHandle) -> Tensor:
    ones = np.ones((table.rows, 1), dtype=np.float32)
    return torch.from_numpy(table.lookup(np.arange(table.rows)[:, None], ones, keep=False).output)


def numbers(trainer: Trainer) -> dict[str, Tensor]:
    """All that a trainer has learned, and its last gradients."""
    found = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    for name, parameter in trainer.model.named_parameters():
        if parameter.grad is not None:
            found[f"gradient of {name}"] = parameter.grad.clone()
    for number, layer in trainer.model.memories().items():
        found[f"values {number}"] = values(layer.table)
    return found


@pytest.mark.parametrize(
    "changes",
    [
        {"memory__layers": [2]},
        {"memory__layers": [2], "train__gradient_accumulation": 2},
        {"memory__layers": [2], "memory__placement": "cached", "train__gradient_accumulation": 2},
        {"memory__layers": [3], "memory__look_ahead": 2, "memory__position": "beside", "memory__gate": True},
        {"memory__layers": [1, 3], "memory__slots": "experts", "memory__shared_table": False},
        {"memory": None},
    ],
    ids=str,
)
def test_steps_are_those_of_the_model_as_it_is_written(
    changes: dict[str, Any], corpus: Path, tmp_path: Path, played: PlayedGraphs
) -> None:
    """In a played GPU too, whose graphs use their memory again in the next forward pass."""
    plain = new_trainer(small_job(corpus, model=THREE_LAYERS, **changes), tmp_path / "plain")
    job = small_job(corpus, model=THREE_LAYERS, train__compile=True, **changes)
    compiled = new_trainer(job, tmp_path / "compiled")
    for _ in range(4):
        expected, found = plain.train_step(), compiled.train_step()
        assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    expected_numbers, found_numbers = numbers(plain), numbers(compiled)
    assert list(found_numbers) == list(expected_numbers)
    for name, exact in expected_numbers.items():
        torch.testing.assert_close(found_numbers[name], exact, rtol=1e-3, atol=1e-5, msg=name)


def test_the_first_step_compiles_two_graphs_and_nothing_later_does(
    corpus: Path, tmp_path: Path, played: PlayedGraphs
) -> None:
    job = small_job(
        corpus,
        model=THREE_LAYERS,
        memory__layers=[2],
        train__compile=True,
        train__gradient_accumulation=2,
        train__evaluation_tokens=1000,  # the last batch is a short one
    )
    trainer = new_trainer(job, tmp_path / "run")
    trainer.train_step()
    # Attention of three layers and feed-forward of two, each shape once; forward and backward.
    assert (played.compiled, played.compiled_backward) == (2, 2)
    assert len(played.written) == 2 * (3 + 2)
    assert played.rounds == 2
    places = [
        parameter.grad.data_ptr() for parameter in trainer.model.parameters() if parameter.grad is not None
    ]
    evaluate(trainer.model, trainer.store, trainer.corpus, job, "validation", tokens_max=1000)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(3):
            trainer.train_step()
    assert (played.compiled, played.compiled_backward) == (2, 2)
    assert len(played.written) == 2 * (3 + 2)
    assert places == [
        parameter.grad.data_ptr() for parameter in trainer.model.parameters() if parameter.grad is not None
    ]
    assert len(places) == len(list(trainer.model.parameters()))


def test_evaluation_runs_as_it_is_written(corpus: Path, tmp_path: Path, played: PlayedGraphs) -> None:
    plain = new_trainer(small_job(corpus), tmp_path / "plain")
    compiled = new_trainer(small_job(corpus, train__compile=True), tmp_path / "compiled")
    found, expected = (
        evaluate(trainer.model, trainer.store, trainer.corpus, trainer.job, "validation", tokens_max=1000)
        for trainer in (compiled, plain)
    )
    assert found == expected
    assert played.compiled == 0


def test_under_autocast_a_block_computes_in_bfloat16(
    corpus: Path, tmp_path: Path, played: PlayedGraphs
) -> None:
    """Forward and backward, as the model as it is written does."""
    found = {}
    for precision, compiled in (("float32", False), ("bfloat16", False), ("bfloat16", True)):
        job = small_job(
            corpus, model=THREE_LAYERS, memory=None, train__precision=precision, train__compile=compiled
        )
        trainer = new_trainer(job, tmp_path / f"{precision}-{compiled}")
        trainer.train_step()
        found[precision, compiled] = torch.cat(
            [
                parameter.grad.flatten()
                for parameter in trainer.model.parameters()
                if parameter.grad is not None
            ]
        )
    exact, plain = found["float32", False], found["bfloat16", False]
    rounding = float((plain - exact).norm())
    assert float((found["bfloat16", True] - plain).norm()) < 0.1 * rounding


def test_with_gradients_averaged_over_trainers(corpus: Path, tmp_path: Path, played: PlayedGraphs) -> None:
    """DistributedDataParallel in front of compiled blocks, in a group of one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        losses = []
        for compiled in (False, True):
            job = small_job(corpus, train__compile=compiled, train__gradient_accumulation=2)
            trainer = new_trainer(job, tmp_path / str(compiled))
            trainer.parallel = DistributedDataParallel(trainer.parallel)
            losses.append([trainer.train_step().loss for _ in range(4)])
        assert losses[1] == pytest.approx(losses[0], rel=1e-5)
        assert (played.compiled, played.compiled_backward) == (2, 2)
    finally:
        dist.destroy_process_group()


@pytest.fixture
def made_up_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with all that compiling needs, and nothing else is to be found."""
    for variable in ("CC", "CXX"):
        monkeypatch.delenv(variable, raising=False)
    folder = tmp_path / "made-up"
    folder.mkdir()
    for name, mode in (("g++", 0o755), ("clang", 0o755), ("Python.h", 0o644)):
        (folder / name).touch(mode)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(folder))
    return folder


@pytest.mark.parametrize("missing", ["g++", "Python.h"])
def test_without_a_compiler_a_job_is_refused(
    missing: str, corpus: Path, tmp_path: Path, made_up_compiler: Path
) -> None:
    job = small_job(corpus, train__compile=True)
    check_job(job)
    (made_up_compiler / missing).unlink()
    sentence = f"{re.escape(missing)} is not there; install .*, or set train.compile to false"
    with pytest.raises(UsageError, match=sentence):
        check_job(job)
    with pytest.raises(UsageError, match=sentence):
        new_trainer(job, tmp_path / "run")
    check_job(small_job(corpus))


def test_a_compiler_is_that_of_the_device_or_of_the_environment(
    made_up_compiler: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = torch.device("cuda")
    check_compiler(gpu)
    (made_up_compiler / "clang").unlink()
    with pytest.raises(UsageError, match=r"need a C compiler, and gcc or clang is not there"):
        check_compiler(gpu)
    monkeypatch.setenv("CC", "g++")
    check_compiler(gpu)
    monkeypatch.setenv("CXX", "another")
    with pytest.raises(UsageError, match=r"needs a C\+\+ compiler, and another is not there"):
        check_compiler(CPU)


def test_the_kernels_of_a_memory_on_a_gpu_need_a_compiler_too(
    corpus: Path, made_up_compiler: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(compilation, "triton", object())
    (made_up_compiler / "clang").unlink()
    with pytest.raises(
        UsageError, match=r"Kernels on a GPU need a C compiler, .*, or set train\.device to cpu"
    ):
        check_job(small_job(corpus))
    with pytest.raises(UsageError, match="Kernels on a GPU need a C compiler"):  # in a trainer of a cluster
        check_device(small_job(corpus), torch.device("cuda"))
    check_job(small_job(corpus, train__device="cpu"))
    check_job(small_job(corpus, memory=None))
    monkeypatch.setattr(compilation, "triton", None)  # then the references run
    check_job(small_job(corpus))


class PlantedError(Exception):
    """The stop that a test plants."""


def run_on(job: JobSpec, folder: Path, stop: int | None = None) -> dict[int, float]:
    """Begin a run, or go on with it; with `stop` until that step has begun. Returns the losses."""
    run = RunFolder(folder)
    resume = run.exists()
    if not resume:
        run.create(job)
    original = Trainer.train_step

    def step(trainer: Trainer) -> StepRecord:
        if trainer.step == stop:
            trainer.cuts.finish()
            raise PlantedError
        return original(trainer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", step)
        with nullcontext() if stop is None else pytest.raises(PlantedError):
            train(job, run, resume=resume, on_progress=lambda _: None)
    return {record.step: record.loss for record in read_records(run.metrics_path)}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_run_that_inductor_compiles(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Near the plain run; the same bytes after a stop; and on from cuts of the other kind, there and back."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    torch.compiler.reset()
    few = {"train__steps": 12, "train__cut_every": 4, "memory__layers": [2], "memory__position": "beside"}
    plain, compiled = (small_job(corpus, train__compile=on, **few) for on in (False, True))
    expected = run_on(plain, tmp_path / "plain")
    whole = run_on(compiled, tmp_path / "whole")
    assert whole == pytest.approx(expected, rel=1e-4)

    run_on(compiled, tmp_path / "stopped", stop=6)
    assert run_on(compiled, tmp_path / "stopped") == whole

    run_on(plain, tmp_path / "changing", stop=6)
    run_on(compiled, tmp_path / "changing", stop=10)
    changing = run_on(plain, tmp_path / "changing")
    assert list(changing) == list(expected)
    assert changing == pytest.approx(expected, rel=1e-4)

    cuts = {
        run: complete_cuts(tmp_path / run / "cuts")[-1] for run in ("plain", "whole", "stopped", "changing")
    }
    weights = {run: dense_weights(cut) for run, cut in cuts.items()}
    assert weights["stopped"] == weights["whole"]
    assert table_content(cuts["stopped"]) == table_content(cuts["whole"])
    # Compiled sums are rounded in another order, so that these show what was compiled.
    assert weights["plain"] != weights["whole"] != weights["changing"] != weights["plain"]
