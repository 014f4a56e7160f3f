"""How a trained model uses the slots of its value tables, on held-out text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from memory_store.access import AccessReport
from memory_store.errors import UsageError
from memory_store.statistics import AgeRange, access_map, slot_ages
from workers.evaluation import evaluate
from workers.plots import draw_pixels
from workers.run_folder import RunFolder
from workers.trained_model import load_trained_model

MAP_SIDE_MAX = 512


@dataclass(frozen=True)
class TableInspection:
    """One table's figures, and its access map: weight by pair of sub-keys, float64 `[P, P]` with P <= n.

    `ages`: the rows by the steps since training has last updated them.
    """

    name: str
    access: AccessReport
    ages: list[AgeRange]
    access_map: NDArray[np.float64]


@dataclass(frozen=True)
class Inspection:
    """The tables of the run `name` as they are at the cut of `step`."""

    name: str
    step: int
    tables: tuple[TableInspection, ...]


def inspect_run(run: RunFolder, split: str = "validation") -> Inspection:
    """Read the text of `split` with the newest cut of a run. Raises UsageError for a model without memory."""
    trained = load_trained_model(run)
    store, memory = trained.store, trained.job.memory
    if store is None or memory is None:
        raise UsageError(f"{run.path} holds a dense model: it has no memory to inspect.")
    report = evaluate(trained.model, store, trained.corpus, trained.job, split)
    side = min(memory.sub_keys, MAP_SIDE_MAX)
    tables = tuple(
        TableInspection(name, access, slot_ages(store, name), access_map(store, name, memory.sub_keys, side))
        for name, access in report.memory.items()
    )
    return Inspection(trained.job.name, trained.step, tables)


def draw_inspection(inspection: Inspection, file: Path) -> list[Path]:
    """Draw the access map of each table; of several, into FILE-TABLE.png. Returns the files drawn."""
    if len(inspection.tables) == 1:
        (table,) = inspection.tables
        return [draw_pixels(table.access_map, file, inspection.name)]
    return [
        draw_pixels(
            table.access_map,
            file.with_stem(f"{file.stem}-{table.name}"),
            f"{inspection.name}, {table.name}",
        )
        for table in inspection.tables
    ]
