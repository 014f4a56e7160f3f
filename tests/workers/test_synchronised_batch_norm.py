"""Batch norm over several processes against one process that has all tokens.

Run as a program, this file is one of the processes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from workers.synchronised_batch_norm import SynchronisedBatchNorm

FEATURES = 6
STEPS = 3
CUTS = (4, 11)  # tokens of the first of two ranks; with 11, the second has none at all


def batch(step: int) -> tuple[Tensor, Tensor]:
    """Tokens and the upstream gradient of all ranks `[11, F]`, far from mean 0."""
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randn(11, FEATURES, generator=generator, dtype=torch.float64) * 3 + 20
    return tokens, torch.randn(11, FEATURES, generator=generator, dtype=torch.float64)


def new_norm(cls: type[nn.BatchNorm1d]) -> nn.BatchNorm1d:
    norm = cls(FEATURES).double()
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2, FEATURES))
        norm.bias.copy_(torch.linspace(-1, 1, FEATURES))
    return norm


def run(norm: nn.BatchNorm1d, begin: int, end: int) -> dict[str, Tensor]:
    """Outputs, gradients and final state of a rank that holds tokens begin .. end - 1 of every batch."""
    found: dict[str, Tensor] = {}
    for step in range(STEPS):
        tokens, upstream = batch(step)
        part = tokens[begin:end].clone().requires_grad_()
        output = norm(part)
        (output * upstream[begin:end]).sum().backward()
        assert part.grad is not None
        found[f"output-{step}"], found[f"gradient-{step}"] = output.detach(), part.grad
    found["weight-gradient"], found["bias-gradient"] = norm.weight.grad, norm.bias.grad
    return found | {f"state-{name}": value for name, value in norm.state_dict().items()}


def rank_program(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    for cut in CUTS:
        begin, end = (0, cut) if rank == 0 else (cut, 11)
        save_file(run(new_norm(SynchronisedBatchNorm), begin, end), folder / f"{cut}-{rank}.safetensors")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two ranks have left what they found."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    ranks = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(folder)], env=environment)
        for rank in (0, 1)
    ]
    assert [rank.wait(timeout=100) for rank in ranks] == [0, 0]
    return folder


@pytest.mark.parametrize("cut", CUTS)
def test_two_ranks_equal_one_process_with_all_tokens(cut: int, two_ranks: Path) -> None:
    found = [load_file(two_ranks / f"{cut}-{rank}.safetensors") for rank in (0, 1)]
    expected = run(new_norm(nn.BatchNorm1d), 0, 11)
    for name, value in expected.items():
        parts = [rank[name] for rank in found]
        if name.startswith("state-"):
            assert torch.equal(*parts), f"{name} differs between the ranks"
            torch.testing.assert_close(parts[0], value)
        elif name in ("weight-gradient", "bias-gradient"):  # each rank's share; DDP adds them up
            torch.testing.assert_close(parts[0] + parts[1], value)
        else:
            torch.testing.assert_close(torch.cat(parts), value)


def test_one_process_is_batch_norm() -> None:
    synchronised, plain = new_norm(SynchronisedBatchNorm), new_norm(nn.BatchNorm1d)
    found, expected = run(synchronised, 0, 11), run(plain, 0, 11)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    tokens, _ = batch(9)
    torch.testing.assert_close(synchronised.eval()(tokens), plain.eval()(tokens))


@pytest.mark.parametrize("tokens", [0, 1])
def test_too_few_tokens_give_no_nan_and_leave_the_running_statistics(tokens: int) -> None:
    norm = new_norm(SynchronisedBatchNorm)
    run(norm, 0, 11)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    x = batch(0)[0][:tokens].requires_grad_()
    output = norm(x)
    output.sum().backward()
    assert output.shape == (tokens, FEATURES)
    assert output.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert all(torch.equal(before[name], value) for name, value in norm.state_dict().items())


if __name__ == "__main__":
    rank_program(int(sys.argv[1]), Path(sys.argv[2]))
