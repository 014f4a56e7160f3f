"""Sparse memory finetuning: which rows learn, found by brute force, and that nothing else changes by a bit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from memory_store.errors import UsageError
from service.cli import app
from tests.small_job import ADDRESSES, dense_weights, small_job, table_content
from tests.workers.test_training import PlantedError, last_cut, run_job
from workers.batches import TrainingBatches
from workers.corpus import open_corpus, prepare_corpus
from workers.dense_state import WEIGHTS
from workers.finetuning import begin_finetuning
from workers.job_spec import JobSpec
from workers.learning_rows import BatchCount, LearningRows
from workers.report import StepRecord, read_records
from workers.run_folder import RunFolder
from workers.trained_model import load_trained_model
from workers.trainer_group import train
from workers.training import Trainer

STEPS, ONLY_ROWS, BACKGROUND = 6, 40, 5


@pytest.fixture(scope="module")
def new_text(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("new")
    pq.write_table(pq.read_table(ADDRESSES, columns=["text"]).slice(200, 8), folder / "new.parquet")
    files = [folder / "new.parquet"]
    prepare_corpus(files, folder / "corpus", tokenizer_of=corpus, validation_share=0.1, test_share=0.1)
    return folder / "corpus"


@pytest.fixture(scope="module")
def base(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("base") / "run"
    run_job(small_job(corpus, **settings(STEPS)), folder)
    return RunFolder(folder)


def settings(steps: int) -> dict[str, object]:
    return {
        "memory__layers": [1, 2],
        "memory__shared_table": False,
        "train__steps": steps,
        "train__cut_every": steps,
        "store__lookup": "fetch",
    }


def finetuning_job(new_text: Path, steps: int, **changes: object) -> JobSpec:
    changes = {**settings(STEPS + steps), "train__cut_every": 1, "train__only_rows": ONLY_ROWS, **changes}
    return small_job(new_text, **changes)


def finetune(base: RunFolder, folder: Path, job: JobSpec) -> RunFolder:
    run = RunFolder(folder)
    begin_finetuning(base, run, job, BACKGROUND)
    train(job, run, resume=True, on_progress=lambda _: None)
    return run


def rows_of_batches(base: RunFolder, corpus: Path, steps: range) -> dict[int, list[np.ndarray]]:
    """The rows that each memory layer of the trained model reads for batches of a text."""
    trained = load_trained_model(base)
    found: dict[int, list[np.ndarray]] = {1: [], 2: []}
    for number, layer in trained.model.memories().items():
        select = layer.select

        def recorded(queries, select=select, number=number):  # type: ignore[no-untyped-def]
            selection = select(queries)
            found[number].append(selection.rows.flatten().numpy().copy())
            return selection

        layer.select = recorded  # type: ignore[method-assign]
    batches = TrainingBatches(open_corpus(corpus).tokens("train"), 32, trained.job.seed)
    with torch.no_grad():
        for step in steps:
            trained.model(torch.from_numpy(batches.batch(step, 0, 1, 0, 1, 8)[0]))
    return found


def test_the_highest_tf_idf_learns() -> None:
    count = BatchCount(6)
    for batch in ([0, 0, 1], [0, 2], [0, 1, 5]):
        assert count(torch.tensor([batch])).all()
    assert count.of_row.tolist() == [3, 2, 1, 0, 0, 1]
    # Of 8 accesses: row 0 thrice, but log(4 / 4) = 0; 1 twice, log(4 / 3); 3 once, log 4; 2 twice, log 2.
    rows = torch.tensor([[0, 0, 1, 3], [0, 1, 2, 2]])
    for learning, expected in ((1, {2}), (2, {2, 3}), (3, {1, 2, 3}), (9, {0, 1, 2, 3})):
        learns = LearningRows(count.idf(), learning)(rows)
        assert set(rows[learns].tolist()) == expected
        assert not expected & set(rows[~learns].tolist())


def test_one_step_changes_the_rows_found_by_hand_and_nothing_else(
    base: RunFolder, corpus: Path, new_text: Path, tmp_path: Path
) -> None:
    run = finetune(base, tmp_path / "run", finetuning_job(new_text, 1))
    old, new = last_cut(base.path), last_cut(run.path)
    assert dense_weights(new)[WEIGHTS] == dense_weights(old)[WEIGHTS]

    background = rows_of_batches(base, corpus, range(BACKGROUND))
    batch = rows_of_batches(base, new_text, range(STEPS, STEPS + 1))
    before, after = table_content(old), table_content(new)
    for layer in (1, 2):
        (read,) = batch[layer]
        specific = {}
        for row in set(read.tolist()):
            batches_with_it = sum(row in rows for rows in background[layer])
            specific[row] = (read == row).mean() * np.log((BACKGROUND + 1) / (batches_with_it + 1))
        expected = sorted(specific, key=lambda row: (-np.float64(specific[row]), row))[:ONLY_ROWS]
        changed = {bucket for (table, bucket) in before if table == f"memory-{layer}"
                   and before[table, bucket] != after[table, bucket]}  # fmt: skip
        assert len(changed) == ONLY_ROWS  # 1024 rows: each bucket has one
        least = specific[expected[-1]]
        # Rows that tie with the last to learn are told apart by rounding.
        sure = {row for row in expected if specific[row] > least * (1 + 1e-5)}
        assert sure <= changed
        assert all(specific[row] >= least * (1 - 1e-5) for row in changed)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_shards_and_stops_change_no_byte(
    base: RunFolder, new_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = finetune(base, tmp_path / "whole", finetuning_job(new_text, 4))
    moved = RunFolder(tmp_path / "moved")
    begin_finetuning(base, moved, finetuning_job(new_text, 4), BACKGROUND)
    original = Trainer.train_step

    def failing(trainer: Trainer) -> StepRecord:
        if trainer.step == STEPS + 2:
            raise PlantedError
        return original(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", failing)
        with pytest.raises(PlantedError):
            train(finetuning_job(new_text, 4), moved, resume=True, on_progress=lambda _: None)
    train(finetuning_job(new_text, 4, store__shards=1), moved, resume=True, on_progress=lambda _: None)
    assert table_content(last_cut(whole.path)) == table_content(last_cut(moved.path))
    assert dense_weights(last_cut(whole.path)) == dense_weights(last_cut(moved.path))
    losses = [record.loss for record in read_records(whole.metrics_path)]
    assert len(losses) == 4


def test_without_a_choice_of_rows_everything_learns(base: RunFolder, new_text: Path, tmp_path: Path) -> None:
    run = finetune(base, tmp_path / "run", finetuning_job(new_text, 1, train__only_rows=None))
    assert not run.background_path.exists()
    old, new = dense_weights(last_cut(base.path)), dense_weights(last_cut(run.path))
    assert new[WEIGHTS] != old[WEIGHTS]


def test_the_command_goes_on_with_a_run(
    base: RunFolder, new_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.supervisor.train", train)  # in this process, without Ray
    run = RunFolder(tmp_path / "run")
    told = f"finetune {base.path} --data {new_text} --steps 2 --only-rows 7 --background-batches 2 --run {run.path}"
    result = CliRunner().invoke(app, [*told.split(), "--set", "memory.values.lr=0.02", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["final_loss"] == read_records(run.metrics_path)[-1].loss
    job = run.load_job()
    assert (job.train.steps, job.train.only_rows, job.data.corpus) == (STEPS + 2, 7, new_text)
    assert job.memory is not None
    assert job.memory.values.lr == 0.02
    before, after = table_content(last_cut(base.path)), table_content(last_cut(run.path))
    changed = {place for place in before if before[place] != after[place]}
    assert 2 * 7 <= len(changed) <= 2 * 2 * 7  # of each layer 7 in each step; 1024 rows: each bucket has one


def test_what_can_not_be_finetuned_is_refused(
    base: RunFolder, corpus: Path, new_text: Path, tmp_path: Path
) -> None:
    pq.write_table(pq.read_table(ADDRESSES, columns=["text"]).slice(0, 4), tmp_path / "few.parquet")
    prepare_corpus([tmp_path / "few.parquet"], tmp_path / "other", vocab_size=512)
    run = RunFolder(tmp_path / "run")
    for job, why in [
        (finetuning_job(new_text, 1, memory__k=4), "another memory"),
        (finetuning_job(new_text, 1, model__layers=3), "another model"),
        (finetuning_job(tmp_path / "other", 1), "another tokenizer"),
    ]:
        with pytest.raises(UsageError, match=why):
            begin_finetuning(base, run, job, BACKGROUND)
        assert not run.path.exists()
    with pytest.raises(UsageError, match="`pkm finetune` makes"):
        run_job(small_job(corpus, **settings(2), train__only_rows=3), tmp_path / "run")
