"""What the options of the memory are worth: small jobs compared, through `pkm`, their figures kept as data.

    python -m benchmarks.findings variants|revival|forgetting [--steps 300] [--seeds 0 1 2] [--set KEY=VALUE ...]

Each run is one `pkm train` (or `pkm finetune`) of examples/quickstart.yaml with other settings, shards in the trainer's
process. docs/results/FINDING.json keeps `runs`, each with its `job` (the settings that differ), `commit`, `seed`,
`machine` and figures; `python -m benchmarks.results_page` makes docs/results.md of these files. `--set` goes to every
run, for example to make the models larger.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from benchmarks.machine import Machine, this_machine

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
ADDRESSES = ROOT / "examples" / "data" / "sotu.parquet"
NEW_ADDRESSES = 40  # the last of them are the new text of `forgetting`

Settings = Mapping[str, Any]

VARIANTS: dict[str, Settings] = {
    "product keys": {},
    "flat keys": {"memory.keys": "flat"},
    "gate": {"memory.gate": True},
    "qk-norm for batch norm": {"memory.qk_norm": True, "memory.query_norm": "none"},
    "one table, layers 2 and 3": {"memory.layers": [2, 3]},
    "Memory+ (gate, layers 2 and 3)": {"memory.layers": [2, 3], "memory.gate": True},
    "PEER (experts, k = 16)": {"memory.slots": "experts", "memory.k": 16},
    "no softmax": {"memory.weights": "scores"},
    "half-width values": {"memory.value_dim": 64},
    "value expansion 4": {"memory.value_expansion": 4},
    "values' rate falls to a tenth": {"memory.values.schedule": "linear", "memory.values.lr_end": 3e-3},
    "values' rate follows a cosine": {"memory.values.schedule": "cosine", "memory.values.lr_end": 3e-3},
}
REVIVAL: dict[str, Settings] = {
    f"query norm {norm}{', revived' if steps else ''}": {
        "memory.query_norm": norm,
        "memory.revive_dead_after": steps,
    }
    for norm in ("none", "batch")
    for steps in (None, 25)
}


class Run(BaseModel):
    """One run of a finding: what was tried, where, and the figures it gave."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    job: dict[str, Any]
    commit: str
    seed: int
    machine: Machine
    figures: dict[str, float]


class Finding(BaseModel):
    """The content of docs/results/FINDING.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    finding: str
    runs: tuple[Run, ...]

    def save(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.finding}.json"
        path.write_text(json.dumps(self.model_dump(mode="json"), indent=1) + "\n", encoding="utf-8")
        return path


def load_finding(path: Path) -> Finding:
    """A finding as `save` wrote it. Raises pydantic.ValidationError for any other file."""
    return Finding.model_validate_json(path.read_text(encoding="utf-8"))


def pkm(*arguments: str | Path) -> dict[str, Any]:
    """The JSON that a command of pkm prints."""
    command = [sys.executable, "-m", "service.cli", *map(str, arguments), "--json"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def overrides(settings: Settings) -> list[str]:
    return [part for key, value in settings.items() for part in ("--set", f"{key}={json.dumps(value)}")]


def train(settings: Settings, run: Path) -> dict[str, Any]:
    """The report of a run of the quickstart with other settings."""
    return pkm("train", "examples/quickstart.yaml", "--run", run, *overrides(settings))


def figures_of(report: Mapping[str, Any]) -> dict[str, float]:
    """What is kept of a run's report."""
    names = (
        "test_perplexity",
        "memory_usage",
        "kl_to_uniform",
        "tokens_per_second",
        "table_rows",
        "dense_parameters",
    )
    return {name: report[name] for name in names}


def compare(
    cases: Mapping[str, Settings],
) -> Callable[[Settings, Path], dict[str, tuple[Settings, dict[str, float]]]]:
    """A finding that is one run for each case."""

    def measure(common: Settings, folder: Path) -> dict[str, tuple[Settings, dict[str, float]]]:
        found = {}
        for number, (name, case) in enumerate(cases.items()):
            settings = {**common, **case}
            found[name] = settings, figures_of(train(settings, folder / f"run-{number}"))
        return found

    return measure


def forgetting(common: Settings, folder: Path) -> dict[str, tuple[Settings, dict[str, float]]]:
    """A model of the older addresses goes on with the newest ones: what it learns of these, and forgets of those."""
    addresses = pq.read_table(ADDRESSES, columns=["text"])
    edge = addresses.num_rows - NEW_ADDRESSES
    corpora = {}
    for name, texts in (("old", addresses.slice(0, edge)), ("new", addresses.slice(edge))):
        corpora[name] = folder / name
        pq.write_table(pa.table({"text": texts["text"]}), folder / f"{name}.parquet")
        vocabulary = ["--vocab-size", "4096"] if name == "old" else ["--tokenizer", str(corpora["old"])]
        pkm(
            "data",
            "prepare",
            folder / f"{name}.parquet",
            *vocabulary,
            "--test-share",
            "0.1",
            "--out",
            corpora[name],
        )
    base = folder / "base"
    settings = {**common, "data.corpus": str(corpora["old"])}
    train(settings, base)

    def perplexities(run: Path) -> dict[str, float]:
        return {
            f"{name}_perplexity": pkm("eval", run, "--data", corpus)["perplexity"]
            for name, corpus in corpora.items()
        }

    found: dict[str, tuple[Settings, dict[str, float]]] = {"before": (common, perplexities(base))}
    steps = max(1, int(common["train.steps"]) // 5)
    cases: dict[str, tuple[list[str], Settings]] = {
        "everything": ([], {"train.lr": 1e-3}),
        "everything, lr / 10": ([], {"train.lr": 1e-4, "memory.values.lr": 3e-3}),
        "500 rows a step": (["--only-rows", "500"], {}),
        "2000 rows a step": (["--only-rows", "2000"], {}),
        "all rows read, dense frozen": (["--only-rows", "16384"], {}),
    }
    for number, (name, (rows, changes)) in enumerate(cases.items()):
        run = folder / f"tuned-{number}"
        new = ["--data", str(corpora["new"]), "--steps", str(steps), "--run", str(run)]
        pkm("finetune", base, *new, *rows, *overrides(changes))
        only_rows = {"train.only_rows": int(rows[1])} if rows else {}
        found[name] = {**common, **changes, **only_rows, "finetuning steps": steps}, perplexities(run)
    return found


FINDINGS = {"variants": compare(VARIANTS), "revival": compare(REVIVAL), "forgetting": forgetting}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("finding", choices=FINDINGS)
    parser.add_argument("--steps", type=int, default=300, help="steps of each run (300)")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0], help="seeds, each a run of everything (0)"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of every run"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results (docs/results)")
    chosen = parser.parse_args()
    command = ["git", "rev-parse", "HEAD"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    given = dict(setting.split("=", 1) for setting in chosen.set)
    runs = []
    for seed in chosen.seeds:
        common = {
            "train.steps": chosen.steps,
            "store.carrier": "in_process",
            **{key: json.loads(value) for key, value in given.items()},
        }
        with tempfile.TemporaryDirectory() as folder:
            found = FINDINGS[chosen.finding]({**common, "seed": seed}, Path(folder))
        for name, (job, figures) in found.items():
            kept = {key: value for key, value in job.items() if key != "seed"}
            machine = this_machine()
            runs.append(Run(name=name, job=kept, commit=commit, seed=seed, machine=machine, figures=figures))
    print(Finding(finding=chosen.finding, runs=tuple(runs)).save(chosen.out))


if __name__ == "__main__":
    main()
