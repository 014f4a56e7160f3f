"""What a run tells of itself: its progress while it trains, a line per step, and the figures at its end."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from memory_store.access import AccessReport

_TAIL_BYTES = 1 << 16


@dataclass(frozen=True)
class Progress:
    """Where a run is now. `phase` is waiting (for a place on the cluster), starting, training, evaluating or
    recovering; `news` is told once."""

    phase: str
    step: int
    steps: int
    loss: float | None = None
    tokens_per_second: float | None = None
    memory_usage: float | None = None
    seconds_left: float | None = None
    news: str = ""


class StepRecord(BaseModel):
    """One line of metrics.jsonl. `step` counts finished steps; the fields from `validation_perplexity` on stand only
    on lines of steps after which there was an evaluation. `memory_usage` is the share of rows that were updated in the
    last 100 steps; `skipped` says that the step changed nothing, because its gradient was not finite."""

    # The loss of a skipped step may be NaN, which JSON has no number for.
    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    seconds: float
    tokens_per_second: float
    values_learning_rate: float | None = None
    values_gradient_norm: float | None = None
    memory_usage: float | None = None
    skipped: bool | None = None
    validation_perplexity: float | None = None
    validation_usage: float | None = None
    validation_kl: float | None = None


class EvaluationReport(BaseModel):
    """Perplexity on held-out text and, by table, how its slots were used there."""

    model_config = ConfigDict(frozen=True)

    split: str
    tokens: int
    perplexity: float
    memory: dict[str, AccessReport] = {}


class Report(BaseModel):
    """The figures of a finished run (report.json).

    `memory_usage`, `kl_to_uniform`, `top1_share` and `dead_slots` are of the test text (access.py defines them), over
    all tables by their mean, null for a dense model. `tokens_per_second` is the rate of training steps, without
    evaluations and cuts; `wall_seconds` is everything from start to end. `restarts` counts those of drivers and of
    trainers, `cuts_failed` the cuts without which the run went on (events.jsonl says why), `steps_skipped` the steps whose
    gradient was not finite.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    test_perplexity: float
    test_tokens: int
    memory_usage: float | None
    kl_to_uniform: float | None
    top1_share: float | None
    dead_slots: int | None
    final_loss: float
    tokens_per_second: float
    train_seconds: float
    wall_seconds: float
    steps: int
    tokens: int
    dense_parameters: int
    table_rows: int
    table_bytes: int
    trainers: int
    shards: int
    restarts: int
    cuts_failed: int
    steps_skipped: int
    run: str
    cut: str
    plots: list[str]


def read_records(path: Path) -> list[StepRecord]:
    """All whole lines of metrics.jsonl."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    return [StepRecord.model_validate_json(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def last_record(path: Path) -> StepRecord | None:
    """The newest whole line of metrics.jsonl, read from its end."""
    if not path.is_file():
        return None
    with open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
        lines = file.read().split(b"\n")[:-1]
    return StepRecord.model_validate_json(lines[-1]) if lines else None


def forget_after(path: Path, step: int) -> None:
    """Drop the lines of steps after `step`: the run goes on from there, and will write them again."""
    records = [record for record in read_records(path) if record.step <= step]
    lines = [record.model_dump_json(exclude_none=True) + "\n" for record in records]
    path.write_text("".join(lines), encoding="utf-8")
