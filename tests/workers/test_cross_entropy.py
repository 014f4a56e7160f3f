"""Both ways to the loss give the same, in value and gradients, as the cross entropy of all logits at once."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from workers.cross_entropy import (
    PADDING,
    TOKENS_AT_ONCE,
    summed_cross_entropy,
    summed_in_parts,
    tensor_float_32,
)

DIM, VOCABULARY = 8, 30
TOKENS = (1, TOKENS_AT_ONCE, 2 * TOKENS_AT_ONCE + 37)


def drawn(tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    hidden = torch.randn(tokens, DIM, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(VOCABULARY, DIM, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(VOCABULARY, (tokens,), generator=generator)
    targets[tokens // 2 :: 5] = PADDING
    return hidden, weight, targets


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight), targets, reduction="sum", ignore_index=PADDING)


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("way", [summed_cross_entropy, summed_in_parts])
def test_value_and_gradients_are_those_of_all_logits_at_once(way, tokens: int) -> None:
    hidden, weight, targets = drawn(tokens)
    loss, expected = way(hidden, weight, targets), plain(hidden, weight, targets)
    torch.testing.assert_close(loss, expected)
    found = torch.autograd.grad(loss * 0.7, (hidden, weight))
    for ours, theirs in zip(found, torch.autograd.grad(expected * 0.7, (hidden, weight)), strict=True):
        torch.testing.assert_close(ours, theirs)
    with torch.no_grad():
        torch.testing.assert_close(way(hidden, weight, targets), expected.detach())


def test_an_older_torch_takes_the_other_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(nn, "LinearCrossEntropyOptions")
    monkeypatch.delattr(F, "linear_cross_entropy")
    hidden, weight, targets = drawn(TOKENS[-1])
    torch.testing.assert_close(summed_cross_entropy(hidden, weight, targets), plain(hidden, weight, targets))


def test_logits_of_more_tokens_are_never_made() -> None:
    class LargestLogits(TorchDispatchMode):
        rows = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            made = func(*args, **(kwargs or {}))
            if isinstance(made, Tensor) and made.ndim == 2 and made.shape[1] == VOCABULARY:
                self.rows = max(self.rows, made.shape[0])
            return made

    hidden, weight, targets = drawn(TOKENS[-1])
    with LargestLogits() as seen:
        summed_in_parts(hidden, weight, targets).backward()
    assert seen.rows == TOKENS_AT_ONCE


def test_products_are_as_exact_as_before_once_the_loss_is_made() -> None:
    assert torch.get_float32_matmul_precision() == "highest"
    for allowed, inside in ((False, "highest"), (True, "high")):
        with tensor_float_32(allowed):
            assert torch.get_float32_matmul_precision() == inside
        assert torch.get_float32_matmul_precision() == "highest"
