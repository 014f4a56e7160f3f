"""Under autocast the memory computes in float32 all the same: scores, softmax, sums of rows, and their gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from memory_store import TableSpec, in_process_store
from tests.small_job import small_job
from workers import training
from workers.gpu import pooling
from workers.memory_layer import MemoryLayer
from workers.ranks import Ranks
from workers.run_folder import RunFolder
from workers.training import Trainer


def under_autocast(*, on: bool) -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=on)


def test_the_references_pool_in_float32() -> None:
    """They are what a GPU without Triton runs."""
    values, rows = torch.randn(50, 16), torch.randint(50, (7, 5))
    weights, gradient = torch.randn(7, 5), torch.randn(7, 16)

    def found(on: bool) -> list[torch.Tensor]:
        with under_autocast(on=on):
            return [
                pooling.pool_reference(values, rows, weights),
                pooling.weight_gradient_reference(values, rows, gradient),
                pooling.sum_by_row_reference(50, rows, weights, gradient),
            ]

    for inside, outside in zip(found(True), found(False), strict=True):
        assert inside.dtype == torch.float32
        assert torch.equal(inside, outside)


@pytest.mark.parametrize(
    "options",
    [{}, {"slots": "experts"}, {"value_expansion": 2}, {"weights": "scores"}, {"keys": "flat"}],
)
def test_a_memory_under_autocast_sums_in_float32(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From equal queries, which come of a network that is cast, the same sums come as without."""
    experts = options.get("slots") == "experts"
    spec = TableSpec("memory", 8 * 8 // options.get("value_expansion", 1), 32 if experts else 16, seed=1)
    tokens = torch.randn(20, 16)
    if "value_expansion" in options:
        # The blocks' matrices are cast, as the dense part is; what they are given is not.
        monkeypatch.setattr("workers.slots.torch.einsum", lambda formula, sums, matrices: sums.sum(1))

    def found(on: bool) -> list[torch.Tensor]:
        layer = MemoryLayer(
            16, in_process_store([spec], 2).table("memory"), sub_keys=8, k=4, heads=2, query_dim=8, **options
        )
        network = layer.query_network.forward

        def in_float32(x: torch.Tensor) -> torch.Tensor:
            with under_autocast(on=False):
                return network(x)

        layer.query_network.forward = in_float32  # type: ignore[method-assign]
        given = tokens.clone().requires_grad_()
        with under_autocast(on=on):
            output = layer(given)
        output.float().square().sum().backward()
        assert given.grad is not None
        gradients = [parameter.grad for parameter in layer.parameters() if parameter.grad is not None]
        return [output, given.grad, *gradients]

    for inside, outside in zip(found(True), found(False), strict=True):
        torch.testing.assert_close(inside, outside, rtol=1e-5, atol=1e-6)


def test_a_step_computes_its_gradients_outside_autocast(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inside it, products of float32 tensors in the backward pass would be cast, those of the scores among them."""
    job = small_job(corpus, train__precision="bfloat16", train__device="auto")
    run = RunFolder(tmp_path / "run")
    run.create(job)
    trainer = Trainer(job, run, Ranks(), in_process_store(job.tables(), 2))
    trainer._start()
    forward, backward = [], []
    original = training._Loss.forward

    def watched(self: Any, *batch: torch.Tensor) -> torch.Tensor:
        forward.append(torch.is_autocast_enabled("cpu"))
        return original(self, *batch)

    monkeypatch.setattr(training._Loss, "forward", watched)
    for parameter in trainer.model.parameters():
        parameter.register_hook(lambda gradient: backward.append(torch.is_autocast_enabled("cpu")))  # type: ignore[no-untyped-call]
    trainer.train_step()
    assert forward == [True]
    assert len(backward) > 0
    assert not any(backward)
