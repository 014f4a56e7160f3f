"""An independent store for tests: one table in plain NumPy, row by row, every formula spelled out in float64.

Nothing here is shared with memory_store: no kernels, no addresses, no buckets, no shards. A row's optimizer
state exists once the row has been touched, as in a dictionary.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

RowGradients = dict[int, NDArray[np.float64]]


@dataclass
class ReferenceTable:
    """A table of `values` `[K, D]` under one of the row optimizers."""

    values: NDArray[np.float64]
    kind: str = "sgd"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    steps: int = 0
    state: dict[int, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.values = np.array(self.values, dtype=np.float64)

    def lookup(self, rows: NDArray[np.int64], weights: NDArray[Any]) -> NDArray[np.float64]:
        """Output `[T, D]`: per token the weighted sum of its rows."""
        output = np.zeros((rows.shape[0], self.values.shape[1]))
        for token, entry in np.ndindex(*rows.shape):
            output[token] += float(weights[token, entry]) * self.values[rows[token, entry]]
        return output

    def weight_gradient(self, rows: NDArray[np.int64], output_gradient: NDArray[Any]) -> NDArray[np.float64]:
        gradient = np.zeros(rows.shape)
        for token, entry in np.ndindex(*rows.shape):
            gradient[token, entry] = self.values[rows[token, entry]] @ output_gradient[token]
        return gradient

    def step(self, gradients: RowGradients, learning_rate: float) -> None:
        """One optimizer step with the summed gradients of the touched rows."""
        self.steps += 1
        for row, gradient in gradients.items():
            self.values[row] -= self._change(self.state.setdefault(row, {}), gradient, learning_rate)

    def _change(self, state: dict[str, Any], g: NDArray[np.float64], rate: float) -> NDArray[np.float64]:
        if self.kind == "sgd":
            return rate * g
        if self.kind == "adagrad":
            state["s"] = state.get("s", 0.0) + g**2
            return rate * g / (np.sqrt(state["s"]) + self.eps)
        if self.kind == "rowwise_adagrad":
            state["s"] = state.get("s", 0.0) + np.mean(g**2)
            return rate * g / (np.sqrt(state["s"]) + self.eps)
        beta1, beta2 = self.betas
        square = g**2 if self.kind == "adam" else np.mean(g**2)
        state["m"] = beta1 * state.get("m", 0.0) + (1 - beta1) * g
        state["v"] = beta2 * state.get("v", 0.0) + (1 - beta2) * square
        correction = np.sqrt(1 - beta2**self.steps) / (1 - beta1**self.steps)
        return rate * correction * state["m"] / (np.sqrt(state["v"]) + self.eps)


def row_gradients(
    rows: NDArray[np.int64], weights: NDArray[Any], output_gradient: NDArray[Any]
) -> RowGradients:
    """What a lookup contributes to every row it touched."""
    gradients: RowGradients = {}
    for token, entry in np.ndindex(*rows.shape):
        part = float(weights[token, entry]) * output_gradient[token].astype(np.float64)
        row = int(rows[token, entry])
        gradients[row] = gradients.get(row, 0.0) + part
    return gradients


def summed(parts: Iterable[RowGradients], scale: float = 1.0) -> RowGradients:
    """The gradients of several contributions together, times `scale`."""
    total: RowGradients = {}
    for part in parts:
        for row, gradient in part.items():
            total[row] = total.get(row, 0.0) + scale * gradient
    return total


def norm(gradients: RowGradients) -> float:
    """Euclidean norm over all rows together."""
    return float(np.sqrt(sum(np.sum(gradient**2) for gradient in gradients.values())))
