"""Exact selection against brute force over all n*n keys, on every path."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.workers.plain_reference import all_scores
from workers.product_keys import ProductKeys, candidate_pairs, choose_pairs
from workers.selection_kernels import keep, pairs_that_can_win, select_pairs


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, ProductKeys, int]:
    """Queries, keys and k. Small whole numbers: arithmetic is exact in any order, and ties and equal keys
    abound."""
    n = draw(st.integers(1, 80))
    k = draw(st.integers(1, min(n, 40)))
    heads, width = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    spread = draw(st.sampled_from([0, 1, 3, 50]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    keys = ProductKeys(heads, n, 2 * width, generator)
    shape = (draw(st.integers(0, 9)), heads, 2 * width)
    queries = torch.randint(-3, 4, shape, generator=generator).float()
    with torch.no_grad():
        keys.sub_keys.copy_(torch.randint(-spread, spread + 1, keys.sub_keys.shape, generator=generator))
    return queries, keys, k


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(problem=problems())
@settings(deadline=None, max_examples=60)
def test_selection_equals_brute_force(dtype: torch.dtype, problem: tuple[Tensor, ProductKeys, int]) -> None:
    queries, keys, k = problem
    keys.to(dtype)
    everything = all_scores(queries.to(dtype), keys.sub_keys.detach())
    rows, scores = keys.select(queries.to(dtype), k)
    assert rows.dtype == torch.int64
    assert scores.dtype == dtype
    assert torch.equal(scores, everything.topk(k).values)
    assert torch.equal(scores, everything.gather(-1, rows)), "a row does not have the score it came with"
    distinct = rows.sort(-1).values
    assert (distinct.diff(dim=-1) > 0).all(), "a row was selected twice"


@pytest.mark.parametrize(("n", "k"), [(128, 32), (300, 32), (64, 32), (100, 100), (257, 7)])
def test_both_paths_give_the_same_scores_for_real_numbers(n: int, k: int) -> None:
    scores = torch.randn(2, 2, 50, n, generator=torch.Generator().manual_seed(n))  # [H, 2, T, n]
    rows, chosen = np.empty((50, 2, k), dtype=np.int64), np.empty((50, 2, k), dtype=np.float32)
    select_pairs(scores.numpy(), rows, chosen)
    everything = (scores[:, 0, :, :, None] + scores[:, 1, :, None, :]).flatten(2).transpose(0, 1)
    assert torch.equal(torch.from_numpy(chosen), everything.topk(k).values)
    assert torch.equal(torch.from_numpy(chosen), everything.gather(-1, torch.from_numpy(rows)))
    halves = scores.permute(1, 2, 0, 3)
    first, second = choose_pairs(halves, k)
    assert torch.equal(halves[0].gather(-1, first) + halves[1].gather(-1, second), everything.topk(k).values)


@pytest.mark.parametrize("k", [1, 2, 7, 32, 50])
def test_only_pairs_that_can_win_are_visited(k: int) -> None:
    can_win = [(i, j) for i in range(k) for j in range(k) if (i + 1) * (j + 1) <= k]
    assert k != 32 or len(can_win) == 119
    *places, begins, corners = (array.tolist() for array in pairs_that_can_win(k))
    pairs = list(zip(*places, strict=True))
    assert pairs == can_win
    assert [[i for i, _ in pairs[begins[i] : begins[i + 1]]] for i in range(k)] == [
        [i] * (k // (i + 1)) for i in range(k)
    ]
    assert [pairs[corner] for corner in corners] == [
        (i, j) for i in range(k) for j in range(k) if (i + 1) * (j + 1) == k
    ]
    first, second = candidate_pairs(k, torch.device("cpu"))
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == can_win


@pytest.mark.parametrize("size", [0, 3, 63, 64, 65, 128, 200])
def test_what_reaches_a_bound_is_kept_in_its_order(size: int) -> None:
    random = np.random.default_rng(size)
    rows = random.integers(-3, 4, (3, size)).astype(np.float32)
    rows[random.random(rows.shape) < 0.1] = np.nan
    for row in range(3):
        for bound in (-np.inf, 0, 1, 4):
            kept, names = np.empty((1, size + 1), np.float32), np.empty(size + 1, np.int32)
            count = keep(rows, row, size, np.float32(bound), kept, names)
            expected = np.flatnonzero(~(rows[row] < bound))
            np.testing.assert_array_equal(names[:count], expected)
            np.testing.assert_array_equal(kept[0, :count], rows[row, expected])


@pytest.mark.parametrize("tokens", [1, 700])  # 700: more than one block of tokens
def test_fused_gradients_equal_autograd(tokens: int) -> None:
    generator = torch.Generator().manual_seed(3)
    keys = ProductKeys(3, 40, 10, generator)
    queries = torch.randn(tokens, 3, 10, generator=generator)
    upstream = torch.randn(tokens, 3, 8, generator=generator)
    expected = gradients(keys, queries.double(), upstream)
    for gradient, exact in zip(gradients(keys, queries, upstream), expected, strict=True):
        assert gradient.dtype == torch.float32
        torch.testing.assert_close(gradient.double(), exact, rtol=1e-5, atol=1e-5 * float(exact.abs().max()))


def gradients(keys: ProductKeys, queries: Tensor, upstream: Tensor) -> tuple[Tensor, ...]:
    """Gradient of queries and sub-keys; brute force with autograd for float64 queries."""
    queries = queries.clone().requires_grad_()
    if queries.dtype == torch.float64:
        sub_keys = keys.sub_keys.detach().double().requires_grad_()
        scores = all_scores(queries, sub_keys).topk(upstream.shape[-1]).values
    else:
        sub_keys = keys.sub_keys
        scores = keys.select(queries, upstream.shape[-1]).scores
    return torch.autograd.grad(scores, (queries, sub_keys), upstream.to(scores.dtype))


def test_selection_of_float64_passes_gradcheck() -> None:
    generator = torch.Generator().manual_seed(1)
    keys = ProductKeys(2, 9, 6, generator).double()
    queries = torch.randn(4, 2, 6, generator=generator, dtype=torch.float64, requires_grad=True)

    def scores(queries: Tensor, sub_keys: Tensor) -> Tensor:
        return torch.func.functional_call(SelectScores(keys), {"keys.sub_keys": sub_keys}, (queries, 5))

    assert torch.autograd.gradcheck(scores, (queries, keys.sub_keys.detach().clone().requires_grad_()))


class SelectScores(torch.nn.Module):
    def __init__(self, keys: ProductKeys) -> None:
        super().__init__()
        self.keys = keys

    def forward(self, queries: Tensor, k: int) -> Tensor:
        return self.keys.select(queries, k).scores


def test_scores_stay_float32_under_autocast() -> None:
    keys = ProductKeys(2, 50, 16, torch.Generator().manual_seed(0))
    queries = torch.randn(20, 2, 16, generator=torch.Generator().manual_seed(1))
    expected = keys.select(queries, 8).scores
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = keys.select(queries, 8).scores
    assert scores.dtype == torch.float32
    assert torch.equal(scores, expected)


def test_not_a_number_reaches_the_scores_and_never_leaves_the_table() -> None:
    keys = ProductKeys(2, 100, 8, torch.Generator().manual_seed(0))
    queries = torch.randn(3, 2, 8, generator=torch.Generator().manual_seed(1))
    queries[1, 0, 5] = torch.nan  # the second half of one head's query
    rows, scores = keys.select(queries, 8)
    assert scores.isnan().any(-1).tolist() == [[False, False], [True, False], [False, False]]
    assert rows.min() >= 0
    assert rows.max() < 100 * 100


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("share", [0.01, 0.3])
def test_a_few_scores_that_are_not_finite(odd: float, share: float) -> None:
    random = np.random.default_rng(0)
    tokens, n, k = 200, 100, 32
    scores = random.standard_normal((1, 2, tokens, n), dtype=np.float32)
    scores[random.random(scores.shape) < share] = odd
    rows, found = np.empty((tokens, 1, k), np.int64), np.empty((tokens, 1, k), np.float32)
    select_pairs(scores, rows, found)
    for token in range(tokens):
        sums = np.add.outer(scores[0, 0, token], scores[0, 1, token]).reshape(-1)
        expected = np.full(k, np.nan) if np.isnan(sums).any() else np.sort(sums)[::-1][:k]
        np.testing.assert_array_equal(found[token, 0], expected)
        assert len(set(rows[token, 0])) == k
        assert np.isnan(sums).any() or (sums[rows[token, 0]] == expected).all()


def test_infinite_scores_without_a_sum_reach_the_scores() -> None:
    scores = np.zeros((1, 2, 3, 40), dtype=np.float32)
    scores[0, 0, 1, 7] = np.inf
    scores[0, 1, :, 20:] = -np.inf  # so many that some are among the 32 best
    rows, found = np.empty((3, 1, 32), np.int64), np.empty((3, 1, 32), np.float32)
    select_pairs(scores, rows, found)
    assert np.isnan(found).all(-1)[:, 0].tolist() == [False, True, False]
    assert rows.min() >= 0
    assert rows.max() < 40 * 40


def test_keys_start_uniform_and_differ_by_half_head_and_seed() -> None:
    keys = ProductKeys(2, 500, 32, torch.Generator().manual_seed(0)).sub_keys.detach()
    other = ProductKeys(2, 500, 32, torch.Generator().manual_seed(1)).sub_keys.detach()
    bound = 16**-0.5
    assert keys.abs().max() <= bound
    assert keys.std() == pytest.approx(bound / 3**0.5, rel=0.02)
    sets = [*keys.flatten(0, 1), *other.flatten(0, 1)]
    assert all(not torch.equal(a, b) for i, a in enumerate(sets) for b in sets[:i])
