"""Dead sub-keys brought back: re-seeded from sub-keys that are used often.

A sub-key that no query has selected in a whole window of `memory.revive_dead_after` steps gets no gradient and stays
dead. At the window's end it becomes a copy of an often-used one (its *donor*, used more than the mean of its set), with
noise of a tenth of the donor's size, so that the donor's work is split. Its moments in the dense optimizer start anew.

A sub-key's number names a line of rows: row i * n + j for the i of the first half, for all j, and likewise for the
second. Several heads, and layers that share a table, read the same rows. So the rows of a line are re-seeded too, from
the donor's line and with the same noise, only where its sub-key is dead in all of them; there they share one donor.

All of it is a function of the job's seed, the step and the counts, which are summed over the trainers at each step and
kept in the cut: runs repeat bit for bit, on any number of shards. revivals.jsonl names every sub-key and its donor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memory_store.client import StoreClient
from workers.events import tell
from workers.memory_layer import MemoryLayer
from workers.metrics_log import MetricsLog
from workers.product_keys import ProductKeys
from workers.ranks import Ranks
from workers.revival_trail import RevivalRecord, RevivedKeys
from workers.run_folder import RunFolder

ROWS_AT_ONCE = 1 << 16
NOISE = 0.1  # standard deviation of the noise, of the donor's root mean square


class Revival:
    """The dead sub-keys of a model's memory `layers` (by number), looked after by every trainer alike."""

    def __init__(
        self,
        layers: Mapping[int, MemoryLayer],
        window_steps: int,
        seed: int,
        ranks: Ranks,
        optimizer: torch.optim.Optimizer,
        store: StoreClient,
        run: RunFolder,
    ) -> None:
        self._layers, self._window_steps, self._seed = layers, window_steps, seed
        self._ranks, self._optimizer, self._store = ranks, optimizer, store
        self._events, self._trail = run.events_path, MetricsLog(run.revivals_path)

    def after_step(self, step: int) -> None:
        """Count what step `step` has selected and, at a window's end, revive. Between the dense step and the tables'."""
        for layer in self._layers.values():
            keys = _keys(layer)
            keys.uses += self._ranks.total(keys.fresh_uses)
            keys.fresh_uses.zero_()
        if (step + 1) % self._window_steps:
            return
        for name in dict.fromkeys(layer.table.name for layer in self._layers.values()):
            readers = {number: layer for number, layer in self._layers.items() if layer.table.name == name}
            self._revive(name, readers, step)
        for layer in self._layers.values():
            _keys(layer).uses.zero_()

    def _revive(self, table: str, readers: Mapping[int, MemoryLayer], step: int) -> None:
        uses = torch.cat([_keys(layer).uses for layer in readers.values()]).cpu().numpy()
        donors = choose_donors(uses)
        random = np.random.default_rng([self._seed, step, *map(ord, table)])
        revived, first_head = [], 0
        for number, layer in readers.items():
            sub_keys = _keys(layer).sub_keys
            of_layer = donors[first_head : first_head + len(sub_keys)]
            first_head += len(sub_keys)
            self._reseed_keys(sub_keys, of_layer, random)
            revived += _named(number, of_layer)
        rows, sources = rows_to_reseed(uses, donors)
        if self._ranks.leads and rows.size:
            self._reseed_rows(table, rows, sources, random)
        if self._ranks.leads and revived:
            count = sum(len(keys.sub_keys) for keys in revived)
            message = f"{count} dead sub-keys and {rows.size} rows of table '{table}' were re-seeded."
            tell(self._events, "revival", step, message)
            self._trail.append(RevivalRecord(step=step + 1, table=table, rows=rows.size, revived=revived))

    def _reseed_keys(
        self, sub_keys: torch.nn.Parameter, donors: NDArray[np.int64], random: np.random.Generator
    ) -> None:
        """sub_keys `[H, 2, n, C]`, donors `[H, 2, n]`."""
        dead = np.nonzero(donors >= 0)
        source = (dead[0], dead[1], donors[dead])
        with torch.no_grad():
            values = sub_keys[source].cpu().numpy()
            sub_keys[dead] = torch.from_numpy(_with_noise(values, random)).to(sub_keys)
            for moment in self._optimizer.state.get(sub_keys, {}).values():
                if isinstance(moment, Tensor) and moment.shape == sub_keys.shape:
                    moment[dead] = 0

    def _reseed_rows(
        self,
        table: str,
        rows: NDArray[np.int64],
        sources: NDArray[np.int64],
        random: np.random.Generator,
    ) -> None:
        for begin in range(0, rows.size, ROWS_AT_ONCE):
            part = slice(begin, begin + ROWS_AT_ONCE)
            ones = np.ones((sources[part].size, 1), dtype=self._store.specs[table].compute_dtype)
            values = self._store.table(table).lookup(sources[part, None], ones, keep=False).output
            self._store.replace_rows(table, rows[part], _with_noise(values, random))


def choose_donors(uses: NDArray[np.int64]) -> NDArray[np.int64]:
    """Donors `[H, 2, n]` of the dead sub-keys, -1 for the living, by how often each was used `[H, 2, n]`.

    The first dead one takes after the most used one, the second after the second and so on, and again from the start.
    One that is dead in all heads takes after the same donor in each, by the uses of all heads together.
    """
    donors = np.empty_like(uses)
    for half in range(2):
        of_all = uses[:, half].sum(0)
        common = _donors_of(of_all)
        for head in range(len(uses)):
            donors[head, half] = np.where(of_all == 0, common, _donors_of(uses[head, half]))
    return donors


def _donors_of(uses: NDArray[np.int64]) -> NDArray[np.int64]:
    donors, dead = np.full(uses.size, -1, dtype=np.int64), np.flatnonzero(uses == 0)
    often = np.argsort(-uses, kind="stable")[: np.count_nonzero(uses > uses.mean())]
    if often.size:
        donors[dead] = often[np.arange(dead.size) % often.size]
    return donors


def rows_to_reseed(
    uses: NDArray[np.int64], donors: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of sub-keys that are dead in all heads, and the rows that they take after: each int64 `[U]`, distinct."""
    n = uses.shape[-1]
    grid = np.arange(n * n, dtype=np.int64).reshape(n, n)
    dead = (uses.sum(0) == 0) & (donors[0] >= 0)
    first, second = np.where(dead, donors[0], np.arange(n))
    sources = grid[np.ix_(first, second)]
    taken = sources != grid
    return grid[taken], sources[taken]


def _with_noise(values: NDArray[Any], random: np.random.Generator) -> NDArray[Any]:
    """`[U, C]`, each line with noise of a tenth of its own size."""
    size = np.sqrt(np.mean(np.square(values), axis=1, keepdims=True))
    noise = random.standard_normal(values.shape, dtype=np.float32)
    noisy: NDArray[Any] = (values + NOISE * size * noise).astype(values.dtype)
    return noisy


def _named(layer: int, donors: NDArray[np.int64]) -> list[RevivedKeys]:
    """What the audit trail says of a layer's donors `[H, 2, n]`."""
    named = []
    for head, half in np.ndindex(*donors.shape[:2]):
        dead = np.flatnonzero(donors[head, half] >= 0)
        if dead.size:
            chosen = donors[head, half, dead].tolist()
            named.append(
                RevivedKeys(layer=layer, head=head, half=half, sub_keys=dead.tolist(), donors=chosen)
            )
    return named


def _keys(layer: MemoryLayer) -> ProductKeys:
    assert layer.product_keys is not None
    return layer.product_keys
