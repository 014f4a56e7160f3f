"""Traces of real jobs: what trainers and shards tell of a step is one tree, and what the client has counted for itself."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from memory_store import messages as m
from memory_store import traces as traces_module
from memory_store.carriers.base import Carrier
from memory_store.cuts import complete_cuts
from memory_store.errors import UsageError
from memory_store.opening import connect, in_process_hosts
from memory_store.traces import Traces
from tests.small_job import dense_weights, small_job, table_content
from tests.workers.recorded_spans import RecordedSpan, collector, spans_in
from workers.job_spec import JobSpec
from workers.preflight import check_job
from workers.ranks import Ranks
from workers.run_folder import RunFolder
from workers.shard_process import ShardProcess, ShardSettings
from workers.step_spans import StepSpans
from workers.trainer_group import train
from workers.training import Trainer

ROOT = Path(__file__).parent.parent.parent
TOKEN = "secret-of-the-shards"
STEPS, EVERY, SHARDS, MICRO, LAYERS = 6, 2, 2, 2, 2
TRACED = [step for step in range(1, STEPS + 1) if step % EVERY == 0]
CLIENT, SERVER = 3, 2  # of SpanKind, as OTLP writes them
UPDATES = m.RowGradient | m.EntryGradient | m.PoolGradient
LOOKUPS = {"fetch": "fetch", "pool": "pool", "in place": "auto"}


def traced_job(corpus: Path, **changes: Any) -> JobSpec:
    settings = {
        "train__steps": STEPS,
        "train__trace_every": EVERY,
        "train__gradient_accumulation": MICRO,
        "train__evaluate_every": 3,
        "train__cut_every": 100,
        "memory__layers": [1, 2],
    }
    return small_job(corpus, **settings | changes)


class NotingCarrier:
    """Notes what training asks of a shard: (request, step, shard, rows, bytes) for every answer."""

    def __init__(self, shard: int, carrier: Carrier, noted: Counter[tuple[str, int, int, int, int]]) -> None:
        self._shard, self._carrier, self._noted = shard, carrier, noted

    def submit(self, request: m.Request, timeout_s: float) -> Future[m.Reply]:
        future = self._carrier.submit(request, timeout_s)
        future.add_done_callback(lambda done: self._note(request, done.result()))
        return future

    def _note(self, request: m.Request, reply: m.Reply) -> None:
        rows = size_bytes = 0
        match request:
            case m.Fetch() | m.Pool():
                if request.track:  # an evaluation
                    return
                step, rows = request.version, request.addresses.size
                assert isinstance(reply, m.Rows)
                size_bytes = reply.values.nbytes
            case m.RowGradient():
                step, rows, size_bytes = request.step, request.addresses.size, request.gradients.nbytes
            case m.EntryGradient():
                step, rows, size_bytes = request.step, request.addresses.size, request.output_gradient.nbytes
            case m.PoolGradient():
                assert isinstance(reply, m.WeightGradient)
                step, rows, size_bytes = request.step, reply.gradient.size, request.output_gradient.nbytes
            case m.Commit() | m.Apply():
                step = request.step
            case _:
                return
        self._noted[type(request).__name__, step + 1, self._shard, rows, size_bytes] += 1

    def close(self) -> None:
        self._carrier.close()


@dataclass(frozen=True)
class TracedRun:
    """The spans of a run, and what was noted beside it: the requests of all steps, and the steps that read in place."""

    spans: list[RecordedSpan]
    noted: Counter[tuple[str, int, int, int, int]]
    reads: list[int]

    def of(self, *names: str) -> list[RecordedSpan]:
        return [span for span in self.spans if span.name in names]

    def by_id(self) -> dict[str, RecordedSpan]:
        return {span.span: span for span in self.spans}

    def served(self) -> list[RecordedSpan]:
        return [span for span in self.spans if span.kind == SERVER]


def train_on(addresses: list[str], job: JobSpec, folder: Path) -> TracedRun:
    """Train here, with shards at `addresses`; the spans are still where the processes leave them."""
    run = RunFolder(folder)
    run.create(job)
    noted: Counter[tuple[str, int, int, int, int]] = Counter()
    reads: list[int] = []
    store = connect(addresses, token=TOKEN, lookup=job.store.lookup, in_place=job.store.lookup == "auto")
    store.send_through(lambda shard, carrier: NotingCarrier(shard, carrier, noted))
    store.on_read_in_place = lambda *_: reads.append(store.version + 1)
    spans = Traces(job.name, run.traces_path).open("trainer")
    trainer = Trainer(job, run, Ranks(), store)
    trainer.traces = StepSpans(spans, job.train.trace_every, Ranks(), trainer.model, store)
    trainer.train()
    spans.close()
    store.close()
    return TracedRun([], noted, reads)


def shards_of(job: JobSpec, traces: Path, stack: ExitStack) -> list[str]:
    processes = [
        stack.enter_context(
            ShardProcess(
                ShardSettings(job.tables(), SHARDS, shard, token=TOKEN, job=job.name, traces=str(traces))
            )
        )
        for shard in range(SHARDS)
    ]
    return [process.address() for process in processes]


@pytest.fixture(scope="module")
def runs(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, TracedRun]:
    """The job with each kind of lookup, one after the other on the same two shard processes."""
    folder = tmp_path_factory.mktemp("traced")
    found = {}
    with ExitStack() as stack:
        addresses = shards_of(traced_job(corpus), folder / "shards", stack)
        for name, lookup in LOOKUPS.items():
            job = traced_job(corpus, store__lookup=lookup, memory__values={"lr": 0.01, "clip_norm": 0.1})
            found[name] = train_on(addresses, job, folder / name)
    at_shards = spans_in(folder / "shards")
    for name, run in found.items():
        mine = spans_in(folder / name / "traces")
        traces = {span.trace for span in mine}
        run.spans.extend([*mine, *(span for span in at_shards if span.trace in traces)])
    assert sum(len(run.served()) for run in found.values()) == len(at_shards)
    return found


@pytest.mark.parametrize("lookup", LOOKUPS)
def test_every_traced_step_is_one_tree(runs: dict[str, TracedRun], lookup: str) -> None:
    run = runs[lookup]
    roots = [span for span in run.spans if not span.parent]
    assert [(root.name, root.about["pkm.step"]) for root in roots] == [("step", step) for step in TRACED]
    assert len({root.trace for root in roots}) == len(TRACED)
    known = run.by_id()
    assert len(known) == len(run.spans)
    for span in run.spans:
        assert span.job == "small"
        if span.parent:
            assert known[span.parent].trace == span.trace
            assert known[span.parent].begun <= span.begun
    per_step = Counter((span.trace, span.name) for span in run.spans if span.process == "trainer-0")
    for root in roots:
        parts = {"data": MICRO, "forward": MICRO, "backward": MICRO, "optimizer": 1, "commit": 1}
        exchanges = {"lookup": MICRO * LAYERS, "gradients": MICRO * LAYERS}
        counted = {name: per_step[root.trace, name] for name in (*parts, *exchanges)}
        assert counted == parts | exchanges
    for name, above in {
        "lookup": "forward",
        "gradients": "backward",
        "forward": "step",
        "commit": "step",
    }.items():
        assert {known[span.parent].name for span in run.of(name)} == {above}
    assert {span.about["pkm.layer"] for span in run.of("lookup", "gradients")} == {1, 2}


@pytest.mark.parametrize("lookup", LOOKUPS)
def test_shards_tell_of_what_the_client_has_asked_under_its_spans(
    runs: dict[str, TracedRun], lookup: str
) -> None:
    run, known = runs[lookup], runs[lookup].by_id()
    told = Counter(
        tuple(span.about[f"pkm.{name}"] for name in ("request", "step", "shard", "rows", "bytes"))
        for span in run.served()
    )
    assert told == Counter({asked: count for asked, count in run.noted.items() if asked[1] in TRACED})
    assert set(run.noted) > set(told)  # of the other steps
    for span in run.served():
        asking = known[span.parent]
        assert span.process == f"shard-{span.about['pkm.shard']}"
        assert (asking.process, asking.kind) == ("trainer-0", CLIENT)
        assert asking.name.removeprefix("request ") == span.name.removeprefix("shard ")
        assert all(asking.about[key] == span.about[key] for key in ("pkm.request", "pkm.step", "pkm.shard"))
    under = {(known[span.parent].name, span.name) for span in run.spans if span.kind == CLIENT}
    by_message = {("lookup", "request lookup")} if lookup != "in place" else set()
    assert under == by_message | {
        ("gradients", "request update"), ("commit", "request commit"), ("commit", "request apply"),
    }  # fmt: skip


@pytest.mark.parametrize("lookup", LOOKUPS)
def test_times_nest(runs: dict[str, TracedRun], lookup: str) -> None:
    known = runs[lookup].by_id()
    for span in runs[lookup].spans:
        assert span.begun <= span.ended
        if span.parent and span.kind != CLIENT:  # requests may go on beside what is done next
            assert known[span.parent].begun <= span.begun
            assert span.ended <= known[span.parent].ended


def test_reads_of_shared_memory_are_told_of_by_the_trainer(runs: dict[str, TracedRun]) -> None:
    for name, run in runs.items():
        lookups = run.of("lookup")
        assert {span.about["pkm.in_place"] for span in lookups} == {name == "in place"}
        told = Counter(span.about["pkm.step"] for span in run.of("step") for _ in range(MICRO * LAYERS))
        reads = Counter(step for step in run.reads if step in TRACED)
        assert reads == (told if name == "in place" else Counter())
    tokens, entries = 256 // MICRO, 2 * 8
    read = runs["in place"].of("lookup")[0].about
    assert (read["pkm.rows"], read["pkm.bytes"]) == (tokens * entries, tokens * 32 * np.dtype("f4").itemsize)


def test_a_collector_gets_the_same_spans(
    runs: dict[str, TracedRun], corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = traced_job(corpus, store__lookup="pool", memory__values={"lr": 0.01, "clip_norm": 0.1})
    with collector() as sent_to:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", sent_to.endpoint)
        with ExitStack() as stack:
            train_on(shards_of(job, tmp_path / "shards", stack), job, tmp_path / "run")
        spans = sent_to.spans()
    known = {span.span: span for span in spans}

    def alike(span: RecordedSpan, spans: dict[str, RecordedSpan]) -> tuple[Any, ...]:
        above = spans[span.parent].name if span.parent else ""
        return span.process, span.name, span.kind, above, tuple(sorted(span.about.items()))

    in_files = runs["pool"].by_id()
    assert Counter(alike(span, known) for span in spans) == Counter(
        alike(span, in_files) for span in in_files.values()
    )
    assert not (tmp_path / "shards").exists()
    assert not (tmp_path / "run" / "traces").exists()
    for request in sent_to.requests:
        assert TOKEN not in str(request)


@pytest.mark.parametrize("dense", [False, True])
def test_a_job_in_one_process_ends_with_the_same_bytes(dense: bool, corpus: Path, tmp_path: Path) -> None:
    for name, every in {"plain": 0, "traced": 1}.items():
        job = traced_job(corpus, train__trace_every=every, store__lookup="pool")
        run = RunFolder(tmp_path / name)
        job = job.twin("dense") if dense else job
        run.create(job)
        train(job, run, on_progress=lambda _: None)
    plain, traced = (complete_cuts(tmp_path / name / "cuts")[-1] for name in ("plain", "traced"))
    assert table_content(plain) == table_content(traced)
    assert dense_weights(plain) == dense_weights(traced)
    assert not (tmp_path / "plain" / "traces").exists()
    spans = spans_in(tmp_path / "traced" / "traces")
    steps = Counter(span.about["pkm.step"] for span in spans if span.name == "step")
    assert steps == Counter(range(1, STEPS + 1))
    known = {span.span: span for span in spans}
    served = [span for span in spans if span.kind == SERVER]
    assert bool(served) != dense
    assert all(known[span.parent].kind == CLIENT for span in served)
    assert len(served) == sum(span.kind == CLIENT for span in spans)


@pytest.mark.parametrize("placement", [{"placement": "gpu"}, {"placement": "cached", "cached_rows": 100}])
def test_tables_on_the_device_stay_there_while_steps_are_traced(
    placement: dict[str, Any], corpus: Path, tmp_path: Path
) -> None:
    settings = {f"memory__{name}": value for name, value in placement.items()} | {"store__shards": 1}
    for name, every in {"plain": 0, "traced": 1}.items():
        job = traced_job(corpus, train__trace_every=every, store__lookup="fetch", **settings)
        run = RunFolder(tmp_path / name)
        run.create(job)
        report = train(job, run, on_progress=lambda _: None)
        assert report is not None
        assert (report.cache_hit_rate is None) == (placement["placement"] == "gpu")
    plain, traced = (complete_cuts(tmp_path / name / "cuts")[-1] for name in ("plain", "traced"))
    assert table_content(plain) == table_content(traced)
    assert dense_weights(plain) == dense_weights(traced)
    named = Counter(span.name for span in spans_in(tmp_path / "traced" / "traces"))
    assert named["step"] == STEPS
    assert "lookup" not in named


def test_a_traceparent_that_is_none_is_answered_without_a_span(corpus: Path, tmp_path: Path) -> None:
    spans = Traces("job", tmp_path).open("shard")
    (host,) = in_process_hosts(traced_job(corpus).tables(), spans=spans)
    for given in ("", "garbage", f"00-{'0' * 32}-{'1' * 16}-01", f"00-{'a' * 32}-{'b' * 16}-01"):
        assert isinstance(host.submit(m.Describe(), given).result(60), m.ShardInfo)
    spans.close()
    (span,) = spans_in(tmp_path)
    assert (span.trace, span.parent, span.name) == ("a" * 32, "b" * 16, "shard Describe")


def test_job_with_traces_is_refused_where_they_are_not_installed(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def distribution(name: str) -> importlib.metadata.Distribution:
        if "otlp" in name:
            raise importlib.metadata.PackageNotFoundError(name)
        return importlib.metadata.distribution(name)

    monkeypatch.setattr(traces_module, "distribution", distribution)
    with pytest.raises(
        UsageError, match=r"needs opentelemetry-exporter-otlp-proto-http, which is not installed"
    ):
        check_job(traced_job(corpus))
    check_job(traced_job(corpus, train__trace_every=0))


# Every process of a job that loads the project or what writes spans leaves a file that says so. (Ray itself loads the rest of
# OpenTelemetry where it starts.)
NOTE_IMPORTS = """
import os, sys

class Noting:
    def find_spec(self, name, path=None, target=None):
        if name in ("memory_store", "opentelemetry.exporter.otlp"):
            open(os.path.join(os.environ["NOTED_IMPORTS"], f"{name}-{os.getpid()}"), "w").close()

sys.meta_path.insert(0, Noting())
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("every", [0, EVERY])
def test_job_on_ray_loads_opentelemetry_for_traces_alone(every: int, corpus: Path, tmp_path: Path) -> None:
    noted, hook = tmp_path / "noted", tmp_path / "hook"
    noted.mkdir()
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(NOTE_IMPORTS)
    job = traced_job(corpus, train__trace_every=every, store__carrier="grpc", train__trainers=2)
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(job.model_dump(mode="json")))
    run = tmp_path / "run"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(hook), str(ROOT)]),
        "NOTED_IMPORTS": str(noted),
    }
    subprocess.run(
        [sys.executable, "-m", "service.cli", "train", str(file), "--run", str(run)],
        cwd=ROOT, env=environment, check=True, timeout=240,
    )  # fmt: skip
    loaded = {
        name: {path.name.split("-")[1] for path in noted.glob(f"{name}-*")}
        for name in ("memory_store", "opentelemetry.exporter.otlp")
    }
    trainers, shards = ["trainer-0", "trainer-1"], ["shard-0", "shard-1"]
    assert len(loaded["memory_store"]) >= 1 + len(trainers) + len(shards)
    if not every:
        assert loaded["memory_store"] & loaded["opentelemetry.exporter.otlp"] == set()
        assert not (run / "traces").exists()
        return
    assert len(loaded["memory_store"] & loaded["opentelemetry.exporter.otlp"]) == len(trainers) + len(shards)
    spans = spans_in(run / "traces")
    known = {span.span: span for span in spans}
    assert sorted({span.process for span in spans}) == shards + trainers
    roots = [span for span in spans if not span.parent]
    assert len({root.trace for root in roots}) == len(TRACED)  # that of a step is one for both trainers
    told = {(root.about["pkm.step"], root.process) for root in roots}
    assert told == {(step, trainer) for step in TRACED for trainer in trainers}
    served = [span for span in spans if span.kind == SERVER]
    asked = [span for span in spans if span.kind == CLIENT]
    assert {span.parent for span in served} == {span.span for span in asked}
    assert len(served) == len(asked) > 0
    assert {known[span.parent].process for span in served} == set(trainers)
    commits = Counter(span.about["pkm.step"] for span in served if span.name == "shard commit")
    assert commits == Counter({step: len(trainers) * len(shards) for step in TRACED})
