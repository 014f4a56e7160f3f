"""What was trained is kept at once, and never trained twice."""

import json
import re
from pathlib import Path

import pytest

from findings.cases import COMPARISONS, Case
from findings.facts import DOCUMENTS, documents
from findings.figures import NEW_AFTER, NEW_BEFORE, OLD_AFTER, OLD_BEFORE
from findings.finetuning import record_finetunings
from findings.results import load_finding
from findings.training import record_trainings
from workers.report import Report


class StopError(Exception):
    """What ends a recorder in these tests."""


class Trainer:
    """Stands in for `pkm train`: says which jobs it was given, and stops after some."""

    def __init__(self, limit: int = 1000) -> None:
        self.trained: list[tuple[str, int]] = []
        self._limit = limit

    def __call__(self, case: Case, seed: int) -> Report:
        if len(self.trained) == self._limit:
            raise StopError
        self.trained.append((case.name, seed))
        return report(perplexity=100.0 + len(self.trained))


def report(perplexity: float) -> Report:
    return Report(
        name="finding",
        test_perplexity=perplexity,
        test_tokens=10,
        memory_usage=None,
        kl_to_uniform=None,
        top1_share=None,
        dead_slots=None,
        final_loss=1.0,
        tokens_per_second=1.0,
        train_seconds=1.0,
        wall_seconds=1.0,
        steps=1,
        tokens=1,
        dense_parameters=1,
        table_rows=1,
        table_bytes=1,
        trainers=1,
        shards=1,
        restarts=0,
        cuts_failed=0,
        steps_skipped=0,
        run="somewhere",
        cut="somewhere",
        plots=[],
    )


def test_what_was_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    names = [case.name for case in COMPARISONS["position"].cases]
    first, second, third = Trainer(limit=2), Trainer(), Trainer()
    with pytest.raises(StopError):
        record_trainings("position", 1, tmp_path, commit="c1", train=first)
    assert [run.case for run in load_finding(tmp_path, "position").runs] == names[:2]
    record_trainings("position", 1, tmp_path, commit="c2", train=second)
    assert first.trained + second.trained == [(name, 1) for name in names]
    before = (tmp_path / "position.json").read_bytes()
    record_trainings("position", 1, tmp_path, commit="c3", train=third)
    assert third.trained == []
    assert (tmp_path / "position.json").read_bytes() == before


def test_another_seed_is_another_run(tmp_path: Path) -> None:
    record_trainings("position", 0, tmp_path, commit="c", train=Trainer())
    again = Trainer()
    record_trainings("position", 1, tmp_path, commit="c", train=again)
    assert len(again.trained) == len(COMPARISONS["position"].cases)


def test_a_job_that_two_findings_share_is_trained_once(tmp_path: Path) -> None:
    record_trainings("position", 0, tmp_path, commit="c", train=Trainer())
    trainer = Trainer()
    depth = record_trainings("depth", 0, tmp_path, commit="c", train=trainer)
    assert [case for case, _ in trainer.trained] == ["dense, 4 layers", "dense, 8 layers"]
    (shared,) = depth.by_seed("4 layers + memory", "test_perplexity").values()
    assert load_finding(tmp_path, "position").by_seed("layer 3 of 4", "test_perplexity") == {0: shared}


def test_a_stop_while_writing_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finding = record_trainings("position", 0, tmp_path, commit="c", train=Trainer())
    before = (tmp_path / "position.json").read_bytes()

    def stopped(*arguments: object, **options: object) -> str:
        raise StopError

    monkeypatch.setattr(json, "dumps", stopped)
    with pytest.raises(StopError):
        finding.save(tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr("memory_store.durable_files.os.replace", stopped)
    with pytest.raises(StopError):
        finding.model_copy(update={"runs": ()}).save(tmp_path)
    assert (tmp_path / "position.json").read_bytes() == before


def test_all_cases_of_a_seed_go_on_from_one_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[int] = []
    tuned: list[str] = []

    def tune(base: Path, case: Case) -> dict[str, float]:
        if len(tuned) == 2:
            raise StopError
        tuned.append(case.name)
        return {OLD_AFTER: 3.0, NEW_AFTER: 4.0}

    monkeypatch.setattr("findings.finetuning.train_in", lambda run, case, seed: trained.append(seed))
    monkeypatch.setattr("findings.finetuning.finetune", tune)
    monkeypatch.setattr("findings.finetuning.perplexity_of", lambda run, corpus: 2.0)
    names = [case.name for case in COMPARISONS["forgetting"].cases]
    with pytest.raises(StopError):
        record_finetunings("forgetting", 1, tmp_path, commit="c")
    assert (trained, tuned) == ([1], names[:2])
    tuned.clear()
    record_finetunings("forgetting", 1, tmp_path, commit="c")
    record_finetunings("forgetting", 1, tmp_path, commit="c")
    assert (trained, tuned) == ([1, 1], names[2:])
    runs = load_finding(tmp_path, "forgetting").runs
    assert [run.case for run in runs] == names
    assert runs[0].figures == {OLD_BEFORE: 2.0, NEW_BEFORE: 2.0, OLD_AFTER: 3.0, NEW_AFTER: 4.0}


def test_every_case_is_another_job_of_its_finding() -> None:
    for name, comparison in COMPARISONS.items():
        if comparison.finetunes:  # from one job, on other text
            continue
        jobs = [case.job(seed).model_dump_json() for seed in comparison.seeds for case in comparison.cases]
        assert len(set(jobs)) == len(jobs), name


def test_all_documents_tell_the_same_facts() -> None:
    texts = list(documents())
    assert texts == list(documents())
    assert len(texts) == DOCUMENTS
    capitals = [
        (land, answer)
        for text in texts
        for sentence in text.removesuffix(".").split(". ")
        for land, answer in re.findall(r"^The capital of (\w+) is (\w+)$", sentence)
        + [
            (land, answer)
            for answer, land in re.findall(r"^(\w+) is where the government of (\w+) sits$", sentence)
        ]
    ]
    assert len(capitals) == 12 * DOCUMENTS
    assert len(dict(capitals)) == len(set(capitals)) == 60
