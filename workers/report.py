"""What a run tells of itself: its progress while it trains, a line per step, and the figures at its end."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pydantic import BaseModel, ConfigDict

from memory_store.access import AccessReport
from memory_store.statistics import AgeRange

_LINE_BYTES = 2048  # more than a line ever has


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
    last 100 steps; `cache_hit_rate` the share of the different rows of the step's lookups that had a copy on the device of
    trainer 0 (memory.placement cached); `skipped` says that the step changed nothing, because its gradient was not finite."""

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
    cache_hit_rate: float | None = None
    skipped: bool | None = None
    validation_perplexity: float | None = None
    validation_usage: float | None = None
    validation_kl: float | None = None


class EvaluationReport(BaseModel):
    """Perplexity on held-out text and, by table, how its slots were used there, and how long ago they were updated."""

    model_config = ConfigDict(frozen=True)

    split: str
    tokens: int
    perplexity: float
    memory: dict[str, AccessReport] = {}
    slot_ages: dict[str, list[AgeRange]] = {}


class Report(BaseModel):
    """The figures of a finished run (report.json).

    `memory_usage`, `kl_to_uniform`, `top1_share` and `dead_slots` are of the test text (access.py defines them), over
    all tables by their mean, null for a dense model; `slot_ages` has, by table, the rows by the steps since training
    has last updated them. `tokens_per_second` is the rate of training steps, without
    evaluations and cuts; `wall_seconds` is everything from start to end. `restarts` counts those of drivers and of
    trainers, `cuts_failed` the cuts without which the run went on (events.jsonl says why), `steps_skipped` the steps whose
    gradient was not finite. `cache_hit_rate` is the mean of that of the steps, null unless memory.placement is cached.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    test_perplexity: float
    test_tokens: int
    memory_usage: float | None
    kl_to_uniform: float | None
    top1_share: float | None
    dead_slots: int | None
    slot_ages: dict[str, list[AgeRange]] = {}
    cache_hit_rate: float | None = None
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


def last_records(path: Path, count: int) -> list[StepRecord]:
    """The newest whole lines of metrics.jsonl, at most `count`, oldest first; read from its end."""
    if not path.is_file():
        return []
    with open(path, "rb") as file:
        begin = max(0, os.fstat(file.fileno()).st_size - count * _LINE_BYTES)
        file.seek(begin)
        lines = file.read().split(b"\n")[:-1]
    if begin:
        del lines[0]  # not whole, it may be
    return [StepRecord.model_validate_json(line) for line in lines[-count:]]


def last_record(path: Path) -> StepRecord | None:
    """The newest whole line of metrics.jsonl."""
    return next(iter(last_records(path, 1)), None)


def records_after(path: Path, step: int, count: int) -> list[StepRecord]:
    """The first `count` whole lines of metrics.jsonl that are of later steps than `step`; only they are read."""
    if not path.is_file():
        return []
    with open(path, "rb") as file:
        # Lines are in the order of their steps, so that the first one is found by halving.
        low, high = 0, os.fstat(file.fileno()).st_size
        while low < high:
            middle = (low + high) // 2
            line = _line_from(file, middle)
            if line.endswith(b"\n") and json.loads(line)["step"] <= step:
                low = middle + 1
            else:
                high = middle
        found: list[StepRecord] = []
        line = _line_from(file, low)
        while line.endswith(b"\n") and len(found) < count:
            found.append(StepRecord.model_validate_json(line))
            line = file.readline()
    return found


def _line_from(file: BinaryIO, offset: int) -> bytes:
    """The first line that begins at `offset` or later."""
    file.seek(max(0, offset - 1))
    if offset:
        file.readline()
    return file.readline()


def forget_after(path: Path, step: int) -> None:
    """Drop the lines of steps after `step`: the run goes on from there, and will write them again."""
    records = [record for record in read_records(path) if record.step <= step]
    lines = [record.model_dump_json(exclude_none=True) + "\n" for record in records]
    path.write_text("".join(lines), encoding="utf-8")
