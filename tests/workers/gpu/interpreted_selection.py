"""Selection on a GPU under Triton's interpreter, on the CPU; test_kernels.py runs these tests in a process of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl
from torch import Tensor
from triton.runtime.interpreter import TensorHandle

from workers.gpu import best_of_halves, selection
from workers.selection_kernels import select_pairs

_librarys = {"sort": tl.sort, "bitonic_merge": tl.bitonic_merge}


def _as_tensor(data: Any, like: Any) -> Any:
    return tl.tensor(
        TensorHandle(data, like.handle.dtype), tl.block_type(like.dtype.scalar, list(data.shape))
    )


def _sort(numbers: Any) -> Any:
    return _as_tensor(np.sort(numbers.handle.data, axis=-1), numbers)


def _bitonic_merge(numbers: Any, descending: Any = False) -> Any:
    """The same exchanges: what is no bitonic sequence is not sorted."""
    data = numbers.handle.data
    step = data.shape[-1] // 2
    while step:
        pairs = data.reshape(*data.shape[:-1], -1, 2, step)
        smaller, larger = pairs.min(axis=-2), pairs.max(axis=-2)
        data = np.stack([larger, smaller] if descending else [smaller, larger], axis=-2).reshape(data.shape)
        step //= 2
    return _as_tensor(data, numbers)


@pytest.fixture(autouse=True)
def _fast_sort(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter makes every exchange of the library's sorts one by one; NumPy many at once."""
    monkeypatch.setattr(tl, "sort", _sort)
    monkeypatch.setattr(tl, "bitonic_merge", _bitonic_merge)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def of_the_cpu_kernels(queries: Tensor, sub_keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    tokens, heads = queries.shape[:2]
    scores = torch.einsum("thsc,hsnc->hstn", queries, sub_keys).contiguous()
    rows = torch.empty(tokens, heads, k, dtype=torch.int64)
    chosen = torch.empty(tokens, heads, k)
    select_pairs(scores.numpy(), rows.numpy(), chosen.numpy())
    return rows, chosen


@pytest.mark.parametrize(
    ("tokens", "heads", "n", "width", "k", "spread"),
    [(17, 1, 70, 3, 7, 2), (3, 2, 20, 20, 8, 50), (2, 2, 9, 2, 9, 0), (2, 1, 45, 200, 40, 1)],
)
def test_selection_with_ties_is_that_of_the_cpu(
    tokens: int, heads: int, n: int, width: int, k: int, spread: int
) -> None:
    # Small whole numbers: sums are exact in any order, and ties abound.
    queries = torch.randint(-3, 4, (tokens, heads, 2, width), generator=generator(n)).float()
    sub_keys = torch.randint(-spread, spread + 1, (heads, 2, n, width), generator=generator(k)).float()
    rows, scores = selection.select(queries, sub_keys, k)
    for other in (selection.select_reference, of_the_cpu_kernels):
        expected_rows, expected = other(queries, sub_keys, k)
        assert torch.equal(scores, expected)
        assert torch.equal(rows, expected_rows)


def test_selection_with_the_sorts_of_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, function in _librarys.items():
        monkeypatch.setattr(tl, name, function)
    queries, sub_keys = (
        torch.ones(1, 1, 2, 1),
        torch.tensor([1.0, 3, 2]).repeat(1, 2, 1)[..., None].contiguous(),
    )
    rows, scores = selection.select(queries, sub_keys, 2)
    assert rows.tolist() == [[[4, 5]]]
    assert scores.tolist() == [[[6, 5]]]


@pytest.mark.filterwarnings("ignore:invalid value")  # infinity * 0 is not a number, which NumPy tells
def test_selection_of_infinite_and_broken_scores() -> None:
    queries = torch.ones(4, 1, 2, 1)
    sub_keys = torch.arange(1.0, 11.0).repeat(1, 2, 1)[..., None].contiguous()
    sub_keys[0, 1, 3] = -torch.inf
    queries[1, 0, 1] = torch.nan
    rows, scores = selection.select(queries, sub_keys, 10)
    expected_rows, expected = of_the_cpu_kernels(queries, sub_keys, 10)
    assert scores.isnan()[1].all()
    torch.testing.assert_close(scores, expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(rows, expected_rows)


ADVERSARIAL = [
    "equal", "ascending", "descending", "one group", "few values", "infinite", "infinities that cancel", "largest", "one NaN"
]  # fmt: skip


def adversarial(kind: str, n: int) -> Tensor:
    """Scores of one half `[n]`, whole numbers, which one query of width 1 gets."""
    scores = {
        "equal": torch.zeros(n),
        "ascending": torch.arange(n),
        "descending": -torch.arange(n),
        "one group": torch.where(torch.arange(n) % 64 == 5, n + torch.arange(n), torch.arange(n) % 7),
        "few values": torch.arange(n) % 3,
        "infinite": torch.where(torch.arange(n) % 5 == 1, -torch.inf, torch.arange(n) * 1.0),
        "infinities that cancel": torch.where(torch.arange(n) == 2, torch.inf, torch.zeros(n)),
        "largest": (2 - 2.0**-12) * 2.0**127 - torch.arange(n) * 2.0**108,
        "one NaN": torch.where(torch.arange(n) == n - 1, torch.nan, torch.arange(n) * 1.0),
    }
    return scores[kind].float()


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize(("n", "k"), [(16, 1), (9, 9), (200, 32), (330, 64)])
@pytest.mark.parametrize("kind", ADVERSARIAL)
def test_selection_of_adversarial_scores(kind: str, n: int, k: int) -> None:
    sub_keys = torch.stack([adversarial(kind, n), adversarial(kind, n).flip(0)])[
        None, :, :, None
    ].contiguous()
    queries = torch.tensor([1.0, 2.0, -1.0]).view(3, 1, 1, 1).repeat(1, 1, 2, 1)
    if kind == "infinities that cancel":
        queries[2, 0, 0] = 1
    rows, scores = selection.select(queries, sub_keys, k)
    for other in (selection.select_reference, of_the_cpu_kernels):
        expected_rows, expected = other(queries, sub_keys, k)
        torch.testing.assert_close(scores, expected, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(rows, expected_rows)


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("kind", ["equal", "infinite", "one NaN"])
def test_nothing_is_written_beyond_a_scratch_line(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    n, k, guard, empty, guarded = 200, 32, 0x0123456789ABCDEF, torch.empty, []

    def guarded_empty(*shape: int, dtype: Any = None, **named: Any) -> Tensor:
        if dtype != torch.int64:
            return empty(*shape, dtype=dtype, **named)
        guarded.append(torch.full((3, *shape), guard))
        return guarded[-1][1]

    monkeypatch.setattr(best_of_halves, "_programs", lambda *_: 1)
    monkeypatch.setattr(torch, "empty", guarded_empty)
    sub_keys = adversarial(kind, n).expand(1, 2, n)[..., None].contiguous()
    selection.select(torch.ones(3, 1, 2, 1), sub_keys, k)
    rows, lines = guarded
    assert (lines[1] != guard).any()  # this is what was written to
    for numbers in (rows, lines):
        assert (numbers[[0, 2]] == guard).all()


def test_a_bound_allows_for_what_high_parts_leave_out() -> None:
    # High parts, of 11 bits, make the first 16 scores 2, below the others' 2 + unit; with the low parts they are the best.
    unit, n, k = 2.0**-10, 64, 16
    sub_keys = torch.tensor([1 + 0.51 * unit, 1.0]).repeat(n, 1)
    sub_keys[:k] = 1 + 0.49 * unit
    sub_keys = torch.stack([sub_keys, torch.zeros(n, 2)])[None]
    rows, scores = selection.select(torch.ones(1, 1, 2, 2), sub_keys, k)
    assert torch.equal(scores[0, 0], sub_keys[0, 0, 0].sum().expand(k))
    assert rows[0, 0].tolist() == list(range(k))  # all with the first of the other half


@pytest.mark.parametrize(("width", "k"), [(257, 2), (4, 65)])
def test_what_finds_no_room_is_selected_by_the_reference(
    monkeypatch: pytest.MonkeyPatch, width: int, k: int
) -> None:
    monkeypatch.setattr(selection, "best_of_halves", lambda *_: pytest.fail("no room"))
    _, scores = selection.select(torch.ones(1, 1, 2, width), torch.ones(1, 2, 70, width), k)
    assert scores.tolist() == [[[2 * width] * k]]


@pytest.mark.parametrize(("tokens", "n", "width"), [(70, 512, 64), (3, 2048, 100), (0, 64, 16)])
def test_selection_of_random_scores(tokens: int, n: int, width: int) -> None:
    queries = torch.randn(tokens, 1, 2, width, generator=generator(n))
    sub_keys = torch.randn(1, 2, n, width, generator=generator(width))
    rows, scores = selection.select(queries, sub_keys, 32)
    all_scores = torch.einsum("thsc,hsnc->sthn", queries.double(), sub_keys.double())
    pairs = (all_scores[0][..., :, None] + all_scores[1][..., None, :]).flatten(-2)
    torch.testing.assert_close(pairs.gather(-1, rows).float(), scores, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(pairs.topk(32).values.float(), scores, rtol=1e-5, atol=1e-4)


def test_three_products_of_parts_are_as_exact_as_float32() -> None:
    random = np.random.default_rng(0)
    left, right = (random.standard_normal((300, 64)).astype(np.float32) for _ in range(2))

    def parts(numbers: Any) -> tuple[Any, Any]:
        # Tensor cores read the first 10 bits of a mantissa.
        def cut(part: Any) -> Any:
            return (part.view(np.int32) & ~0x1FFF).view(np.float32)

        high = ((numbers.view(np.int32) + 0x1000) & ~0x1FFF).view(np.float32)
        low = numbers - high
        return cut(high), cut(((low.view(np.int32) + 0x1000) & ~0x1FFF).view(np.float32))

    exact = left.astype(np.float64) @ right.T.astype(np.float64)
    size = np.abs(left).astype(np.float64) @ np.abs(right).T.astype(np.float64)
    (high, low), (other_high, other_low) = parts(left), parts(right)
    one = high @ other_high.T
    three = low @ other_high.T + high @ other_low.T + one
    assert (np.abs(three - exact) / size).max() < 2**-21
    assert 2**-16 < (np.abs(one - exact) / size).max() < best_of_halves.ERROR


def test_selection_gradient() -> None:
    queries = torch.randn(3, 2, 2, 4, generator=generator(1), requires_grad=True)
    sub_keys = torch.randn(2, 2, 12, 4, generator=generator(2), requires_grad=True)
    upstream = torch.randn(3, 2, 4, generator=generator(3))
    rows, scores = selection.select(queries, sub_keys, 4)
    found = torch.autograd.grad(scores, [queries, sub_keys], upstream)
    # What autograd makes of the scores of these rows.
    all_scores = torch.einsum("thsc,hsnc->sthn", queries, sub_keys)
    again = all_scores[0].gather(-1, rows // 12) + all_scores[1].gather(-1, rows % 12)
    torch.testing.assert_close(again, scores)
    torch.testing.assert_close(found, torch.autograd.grad(again, [queries, sub_keys], upstream))
