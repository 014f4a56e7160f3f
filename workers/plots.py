"""The pictures of a run: loss against step, and the map of slot accesses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from workers.access_map_file import load_access_map
from workers.report import StepRecord

matplotlib.use("agg")

_SMOOTH_STEPS = 20


def draw_losses(records: Sequence[StepRecord], path: Path, title: str) -> Path:
    """Training loss by step, its running mean, and the validation loss where it was measured. Returns `path`."""
    steps = np.array([record.step for record in records])
    losses = np.array([record.loss for record in records])
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(steps, losses, color="#9db7d5", linewidth=0.8, label="training, each step")
    if losses.size >= 2 * _SMOOTH_STEPS:
        means = np.convolve(losses, np.ones(_SMOOTH_STEPS) / _SMOOTH_STEPS, mode="valid")
        axes.plot(
            steps[_SMOOTH_STEPS - 1 :],
            means,
            color="#1f4e79",
            label=f"training, mean of {_SMOOTH_STEPS} steps",
        )
    validated = [
        (record.step, np.log(record.validation_perplexity))
        for record in records
        if record.validation_perplexity
    ]
    if validated:
        axes.plot(*zip(*validated, strict=True), "o", color="#c0504d", label="validation")
    axes.set(xlabel="step", ylabel="cross entropy per token (nats)", title=f"{title}: loss")
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    return path


def draw_pixels(pixels: NDArray[np.float64], path: Path, title: str) -> Path:
    """The access map float64 `[side, side]` as a picture with a logarithmic scale; slots never read stay dark."""
    figure = Figure(figsize=(7.6, 6.6), layout="constrained")
    axes = figure.add_subplot()
    positive = pixels[pixels > 0]
    low, high = (positive.min(), positive.max()) if positive.size else (1e-6, 1.0)
    colours = matplotlib.colormaps["magma"].with_extremes(bad="black")
    image = axes.imshow(
        np.where(pixels > 0, pixels, np.nan),
        norm=LogNorm(max(low, high * 1e-6), max(high, low * (1 + 1e-9))),
        cmap=colours,
        interpolation="nearest",
    )
    figure.colorbar(image, ax=axes, label="sum of access weights on held-out text")
    axes.set(
        xlabel="second sub-key", ylabel="first sub-key", title=f"{title}: use of the value table's slots"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    return path


def draw_access_map(source: Path, path: Path, title: str) -> Path:
    """Draw the access map kept at `source` (access_map_file.py). Returns `path`."""
    return draw_pixels(load_access_map(source), path, title)
