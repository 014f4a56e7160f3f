"""What each finding compares: cases, each some settings that differ from base.yaml, and with how many seeds.

Perplexities differ between seeds by as much as between cases, so that each case has three. A case that two findings
share is trained once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from service.job_file import load_job
from workers.job_spec import JobSpec

BASE = Path(__file__).with_name("base.yaml")
TEXT = Path("examples/data/sotu.parquet")
CORPUS = Path("examples/data/sotu-findings")

Setting = int | str | list[int] | None


@dataclass(frozen=True)
class Case:
    """One row of a finding's table; `x` is its place on the axis of the plot, where there is one."""

    name: str
    settings: Mapping[str, Setting]
    x: int = 0

    def overrides(self, seed: int) -> list[str]:
        """The case as `--set` takes it."""
        settings = {**self.settings, "seed": seed}
        return [f"{key}={json.dumps(value)}" for key, value in settings.items()]

    def job(self, seed: int) -> JobSpec:
        """All settings, as they are kept: with the corpus as seen from the project's root."""
        job = load_job(BASE, self.overrides(seed)).job
        return job.model_copy(update={"data": job.data.model_copy(update={"corpus": CORPUS})})


@dataclass(frozen=True)
class Comparison:
    """The cases of one finding; `speeds` says whether their rates are measured too, in turn."""

    cases: tuple[Case, ...]
    seeds: tuple[int, ...]
    speeds: bool = False


def rows_named(sub_keys: int) -> str:
    """How cases and pages call a table of sub_keys * sub_keys rows."""
    return f"K = {sub_keys**2:,}"


SUB_KEYS = (128, 256, 512, 1024)
NORMS = {"batch": "batch norm", "none": "no norm"}
FLAT_SUB_KEYS = (128, 256)  # a flat table of more rows takes too long to score
KEYS = {"product": "product keys", "flat": "flat keys"}
THREE_SEEDS = (0, 1, 2)

COMPARISONS = {
    "depth": Comparison(
        (
            Case("dense, 4 layers", {"memory": None}),
            Case("dense, 8 layers", {"memory": None, "model.layers": 8}),
            Case("4 layers + memory", {}),
        ),
        THREE_SEEDS,
        speeds=True,
    ),
    "batch_norm": Comparison(
        tuple(
            Case(
                f"{rows_named(sub_keys)}, {NORMS[norm]}",
                {"memory.sub_keys": sub_keys, "memory.query_norm": norm},
                x=sub_keys**2,
            )
            for sub_keys in SUB_KEYS
            for norm in NORMS
        ),
        THREE_SEEDS,
    ),
    "flat_keys": Comparison(
        tuple(
            Case(
                f"{rows_named(sub_keys)}, {KEYS[keys]}",
                {"memory.sub_keys": sub_keys, "memory.keys": keys},
                x=sub_keys**2,
            )
            for sub_keys in FLAT_SUB_KEYS
            for keys in KEYS
        ),
        THREE_SEEDS,
        speeds=True,
    ),
    "position": Comparison(
        tuple(Case(f"layer {layer} of 4", {"memory.layers": [layer]}, x=layer) for layer in (1, 2, 3, 4)),
        THREE_SEEDS,
    ),
    "heads_k": Comparison(
        tuple(
            Case(f"{heads} x {k}", {"memory.heads": heads, "memory.k": k}, x=heads)
            for heads, k in ((1, 64), (2, 32), (4, 16), (8, 8))
        ),
        THREE_SEEDS,
    ),
    "scaling": Comparison(
        tuple(
            Case(rows_named(sub_keys), {"memory.sub_keys": sub_keys}, x=sub_keys**2) for sub_keys in SUB_KEYS
        ),
        THREE_SEEDS,
        speeds=True,
    ),
}
