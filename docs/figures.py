"""Draws the figures of docs/method.md from data that the project's own code computes.

python docs/figures.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure

from workers.product_keys import candidate_pairs, choose_pairs

FOLDER = Path(__file__).resolve().parent / "figures"
matplotlib.use("agg")
matplotlib.rcParams["svg.hashsalt"] = "pkm"  # the same figure is the same file


def selection() -> Figure:
    """Scores of all 24 * 24 keys of one query, the sums of two halves' scores, and the 8 rows that are chosen."""
    halves = torch.randn(2, 1, 24, generator=torch.Generator().manual_seed(3))
    first, second = choose_pairs(halves, 8)
    scores = halves[0, 0, :, None] + halves[1, 0, None, :]
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(scores, cmap="Blues")
    axes.scatter(second[0], first[0], s=70, facecolors="none", edgecolors="#d62728", linewidths=1.8)
    axes.set(xlabel="sub-key j of the second half", ylabel="sub-key i of the first half")
    axes.set_title("scores of the keys (i, j); circles: the 8 best")
    figure.colorbar(picture, label="score of i + score of j")
    return figure


def candidates() -> Figure:
    """Which places of two sorted halves can hold one of the 32 best sums."""
    k = 32
    first, second = candidate_pairs(k, torch.device("cpu"))
    possible = np.zeros((k, k))
    possible[first, second] = 1
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    axes.imshow(possible, cmap="Blues", vmin=0, vmax=1.4)
    axes.set(xlabel="place of the second half's sub-key", ylabel="place of the first half's sub-key")
    axes.set_title(f"{int(possible.sum())} of {k * k} pairs can be among the {k} best")
    return figure


def cost() -> Figure:
    """Multiplications to select rows for one query, as the table grows."""
    k, width = 32, 128
    sub_keys = 2 ** np.arange(4, 16)
    rows = sub_keys.astype(float) ** 2
    pairs = len(candidate_pairs(k, torch.device("cpu"))[0])
    figure = Figure(figsize=(6, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.loglog(rows, rows * width, marker="o", markersize=3, label="flat keys: K comparisons")
    axes.loglog(
        rows,
        sub_keys * width + pairs,
        marker="o",
        markersize=3,
        label="product keys: 2 n halves and 119 sums",
    )
    axes.set(xlabel="rows of the table, K", ylabel="multiplications and sums for a query")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


FIGURES = {"selection.svg": selection, "candidates.svg": candidates, "cost.svg": cost}


def main(folder: Path = FOLDER) -> None:
    """Draw every figure into `folder`."""
    folder.mkdir(exist_ok=True)
    for name, draw in FIGURES.items():
        draw().savefig(folder / name, metadata={"Date": None})


if __name__ == "__main__":
    main()
