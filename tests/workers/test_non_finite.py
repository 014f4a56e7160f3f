"""Steps whose gradient is not finite: they end the job and change nothing, or are skipped, counted, and change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from memory_store.cuts import complete_cuts
from memory_store.errors import NonFiniteGradientError
from tests.small_job import small_job, table_content
from workers import training
from workers.events import read_events
from workers.report import read_records
from workers.run_folder import RunFolder
from workers.trainer_group import train
from workers.training import Trainer

BAD = 7


def poison(monkeypatch: pytest.MonkeyPatch, *, always: bool = False) -> None:
    """The loss of step 7 (or of every step) is not a number, nor is anything that comes of it."""
    original = training._Loss.forward
    steps = iter(range(10**6))

    def forward(self: Any, inputs: Tensor, targets: Tensor) -> Tensor:
        loss = original(self, inputs, targets)
        return loss * float("nan") if next(steps) == BAD or always else loss

    monkeypatch.setattr(training._Loss, "forward", forward)


def skip_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same run, in which step 7 is left out: nothing is computed."""
    original = Trainer.train_step

    def train_step(self: Trainer) -> Any:
        if self.step != BAD:
            return original(self)
        assert self.store is not None
        self.store.skip_step()
        self.step += 1
        return read_records(self.run.metrics_path)[-1].model_copy(update={"step": self.step})

    monkeypatch.setattr(Trainer, "train_step", train_step)


def run_in(folder: Path, corpus: Path, **changes: Any) -> RunFolder:
    job = small_job(corpus, **{"train__steps": 20, "train__evaluate_every": 50, **changes})
    run = RunFolder(folder)
    run.create(job)
    train(job, run, on_progress=lambda _: None)
    return run


def test_by_default_the_job_ends_before_anything_has_changed(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch)
    with pytest.raises(NonFiniteGradientError, match="Lower the learning rate"):
        run_in(tmp_path / "run", corpus, train__cut_every=1)
    run = RunFolder(tmp_path / "run")
    assert len(read_records(run.metrics_path)) == BAD
    assert max(folder.name for folder in complete_cuts(run.cuts_path)) <= f"step-{BAD:08d}"


@pytest.mark.parametrize("lookup", ["auto", "pool", "fetch"])
def test_a_skipped_step_leaves_everything_as_it_is(
    lookup: str, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"train__non_finite": "skip", "store__lookup": lookup}
    with monkeypatch.context() as patched:
        skip_by_hand(patched)
        straight = run_in(tmp_path / "straight", corpus, **changes)
    poison(monkeypatch)
    run = run_in(tmp_path / "run", corpus, **changes)
    cut, other = complete_cuts(run.cuts_path)[-1], complete_cuts(straight.cuts_path)[-1]
    assert table_content(cut) == table_content(other)
    for name in ("dense.safetensors", "dense-optimizer.safetensors"):
        assert (cut / name).read_bytes() == (other / name).read_bytes()
    records = read_records(run.metrics_path)
    assert [record.step for record in records if record.skipped] == [BAD + 1]
    assert [record.loss for record in records if not record.skipped] == [
        record.loss for record in read_records(straight.metrics_path) if record.step != BAD + 1
    ]
    assert [(event.kind, event.step) for event in read_events(run.events_path)] == [("steps_skipped", BAD)]
    assert '"steps_skipped": 1' in run.report_path.read_text()


def test_a_model_that_is_never_finite_again_is_given_up(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, always=True)
    with pytest.raises(NonFiniteGradientError, match="26 steps in a row, up to step 25"):
        run_in(tmp_path / "run", corpus, train__non_finite="skip", train__steps=40)
