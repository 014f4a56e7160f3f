"""The `selection` benchmark: from queries to the k best of n*n keys, forward and backward, and the whole layer.

Peers: selection as it is usually written in PyTorch, and the layer of the product-key-memory package. Both
select the same keys with the same scores as ours; that is checked before anything is timed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.layers import OurLayer, PackageLayer, layers_agree
from benchmarks.measuring import paired_seconds
from benchmarks.plain_selection import select_plainly
from benchmarks.results import BenchmarkRun, Measurement, Recorder
from benchmarks.threads import CORES, use_threads
from workers.product_keys import ProductKeys, Selection


@dataclass(frozen=True)
class SelectionSize:
    """T tokens with H heads make T*H queries; n of the selection, and n of the whole layer over rows of `dim`."""

    tokens: int
    heads: int
    k: int
    query_dim: int
    sub_keys: tuple[int, ...]
    dim: int
    layer_sub_keys: tuple[int, ...]
    repeats: int


FULL = SelectionSize(4096, 4, 32, 256, (256, 512, 1024, 2048), 256, (256, 512, 1024), 15)
QUICK = SelectionSize(4096, 4, 32, 256, (256, 512, 1024, 2048), 256, (256, 512), 3)


def run(size: SelectionSize, *, quick: bool) -> BenchmarkRun:
    """Measure selection at every n, then the layer."""
    recorder = Recorder("selection", quick=quick)
    use_threads(CORES)
    recorder.ratio(
        "selection_vs_plain", _slowest([_measure_selection(recorder, size, n) for n in size.sub_keys])
    )
    if PackageLayer.installed():
        ratios = [_measure_layer(recorder, size, n) for n in size.layer_sub_keys]
        recorder.ratio("layer_vs_product_key_memory", _slowest(ratios))
    else:
        recorder.missing("layer_vs_product_key_memory", "product-key-memory is not installed (extra `bench`)")
    return recorder.finish()


def _slowest(ratios: list[Measurement]) -> Measurement:
    return min(ratios, key=lambda ratio: ratio.median)


def _measure_selection(recorder: Recorder, size: SelectionSize, n: int) -> Measurement:
    """Both selections at one n, forward alone and with the backward pass; the ratio of the latter."""
    generator = torch.Generator().manual_seed(n)
    keys = ProductKeys(size.heads, n, size.query_dim, generator)
    queries = torch.randn(size.tokens, size.heads, size.query_dim, generator=generator).requires_grad_()
    gradient = torch.randn(size.tokens, size.heads, size.k, generator=generator)

    def ours() -> Selection:
        return keys.select(queries, size.k)

    def plain() -> Selection:
        return select_plainly(queries, keys.sub_keys, size.k)

    def with_backward(select: Callable[[], Selection], gradient: Tensor) -> tuple[Tensor, ...]:
        queries.grad = keys.sub_keys.grad = None
        select().scores.backward(gradient)  # type: ignore[no-untyped-call]
        assert queries.grad is not None
        assert keys.sub_keys.grad is not None
        return queries.grad, keys.sub_keys.grad

    _check(ours, plain, with_backward, gradient)
    actions: dict[str, Callable[[], Any]] = {
        "ours forward": torch.no_grad()(ours),
        "plain forward": torch.no_grad()(plain),
        "ours forward + backward": lambda: with_backward(ours, gradient),
        "plain forward + backward": lambda: with_backward(plain, gradient),
    }
    seconds = paired_seconds(actions, size.repeats, equally_long=True)
    for action, samples in seconds.items():
        who, _, passes = action.partition(" ")
        recorder.add("selection", "ms", samples * 1e3, who=who, passes=passes, n=n)
    forward = seconds["plain forward"] / seconds["ours forward"]
    recorder.add("plain selection / ours", "ratio", forward, passes="forward", n=n)
    both = seconds["plain forward + backward"] / seconds["ours forward + backward"]
    return recorder.add("plain selection / ours", "ratio", both, passes="forward + backward", n=n)


def _check(
    ours: Callable[[], Selection],
    plain: Callable[[], Selection],
    with_backward: Callable[[Callable[[], Selection], Tensor], tuple[Tensor, ...]],
    gradient: Tensor,
) -> None:
    """Raises AssertionError unless both select the same scores and have the same gradients.

    Where two keys tie for the last place but for rounding, either may be selected: such queries (fewer than one
    in a thousand) are left out of the gradients.
    """
    found, expected = ours(), plain()
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-5, atol=1e-5)
    same = (found.rows.sort(-1).values == expected.rows.sort(-1).values).all(-1)
    assert same.float().mean() > 0.999, "the selections differ"
    order = found.rows.argsort(-1), expected.rows.argsort(-1)
    shared = gradient * same[..., None]
    # Sorted by row, the same key has the same gradient on both sides, in whatever order it was found.
    gradients = [torch.empty_like(shared).scatter_(-1, places, shared) for places in order]
    for one, other in zip(with_backward(ours, gradients[0]), with_backward(plain, gradients[1]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def _measure_layer(recorder: Recorder, size: SelectionSize, n: int) -> Measurement:
    """A training step of the whole layer, ours and the package's, at one n."""
    package = PackageLayer(size.dim, size.heads, n, size.k, size.query_dim // 2)
    ours = OurLayer(package)
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(size.tokens, size.dim, generator=generator).requires_grad_()
    gradient = torch.randn(size.tokens, size.dim, generator=generator)
    layers_agree(ours, package, x, gradient)
    steps = {"ours": lambda: ours.step(x, gradient), "package": lambda: package.step(x, gradient)}
    seconds = paired_seconds(steps, size.repeats, equally_long=True)
    for who, samples in seconds.items():
        recorder.add("layer", "ms", samples * 1e3, who="product-key-memory" if who == "package" else who, n=n)
    return recorder.add("product-key-memory / ours", "ratio", seconds["package"] / seconds["ours"], n=n)
