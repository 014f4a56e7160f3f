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
FACTS_CORPUS = Path("examples/data/facts-findings")

Setting = bool | int | float | str | list[int] | None


@dataclass(frozen=True)
class Finetuning:
    """How a model goes on with the facts of facts.py: as `--only-rows` takes it; None: everything learns."""

    only_rows: int | None


@dataclass(frozen=True)
class Case:
    """One row of a finding's table; `x` is its place on the axis of the plot, where there is one."""

    name: str
    settings: Mapping[str, Setting]
    x: int = 0
    finetuning: Finetuning | None = None

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

    @property
    def finetunes(self) -> bool:
        return any(case.finetuning for case in self.cases)


def rows_named(sub_keys: int) -> str:
    """How cases and pages call a table of sub_keys * sub_keys rows."""
    return f"K = {sub_keys**2:,}"


SUB_KEYS = (128, 256, 512, 1024)
NORMS = {"batch": "batch norm", "none": "no norm"}
FLAT_SUB_KEYS = (
    64,
    128,
)  # with flat keys a table of K = 65,536 takes half an hour of a core a run, all of it scores
KEYS = {"product": "product keys", "flat": "flat keys"}
THREE_SEEDS = (0, 1, 2)
SHARED_TABLE, OWN_TABLES = "layers 2 and 3, one table", "layers 2 and 3, a table each"
REVIVE_AFTER = 50  # of 400 steps
ROWS_OF_A_STEP = (1000, 100)  # of the 5,000 or so that it reads
LONGER = {"train.steps": 2000}  # who has learned nothing has nothing to forget


def revival_case(norm: str, revive: bool) -> str:
    """The name of a case of the finding `revival`."""
    return f"{NORMS[norm]}, {'revival' if revive else 'none revived'}"


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
    "successors": Comparison(
        (
            Case("product keys, as they are", {}),
            Case("gate", {"memory.gate": True}),
            Case("qk-norm", {"memory.qk_norm": True, "memory.query_norm": "none"}),
            Case("experts", {"memory.slots": "experts", "memory.k": 8}),
            Case("scores as weights", {"memory.weights": "scores"}),
            Case("half-width values", {"memory.value_dim": 32}),
            Case("four keys a row", {"memory.value_expansion": 4}),
            Case("falling rate", {"memory.values.schedule": "linear", "memory.values.lr_end": 3e-3}),
            Case(SHARED_TABLE, {"memory.layers": [2, 3]}),
            Case(OWN_TABLES, {"memory.layers": [2, 3], "memory.shared_table": False}),
        ),
        THREE_SEEDS,
    ),
    "revival": Comparison(
        tuple(
            Case(
                revival_case(norm, revive),
                {
                    "memory.sub_keys": 256,
                    "memory.query_norm": norm,
                    "memory.revive_dead_after": REVIVE_AFTER if revive else None,
                },
            )
            for norm in NORMS
            for revive in (False, True)
        ),
        THREE_SEEDS,
    ),
    "forgetting": Comparison(
        (
            Case("everything learning", LONGER, finetuning=Finetuning(None)),
            *(Case(f"{rows:,} rows a step", LONGER, finetuning=Finetuning(rows)) for rows in ROWS_OF_A_STEP),
        ),
        THREE_SEEDS,
    ),
}
