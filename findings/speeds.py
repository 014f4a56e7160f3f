"""How fast the models of a finding train and answer, and how fast their memories select, measured in turn.

One thread does one job's work on random text, in this process, with the table beside it; the clock is that of the
processor, so that other work on the machine hardly counts. What sharded tables add is in docs/performance.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks.local_store import LocalStore
from benchmarks.machine import this_machine
from benchmarks.measuring import paired_seconds
from benchmarks.threads import use_threads
from benchmarks.training_steps import Batch, ModelKind, TrainedModel, dense_model
from findings.cases import COMPARISONS
from findings.results import Finding, Run, load_finding
from findings.training import VOCABULARY
from workers.flat_keys import FlatKeys
from workers.job_spec import JobSpec
from workers.memory_spec import MemorySpec
from workers.product_keys import ProductKeys

ROUNDS = 9
_CALLS = 4  # of an action in one sample


def record_speeds(name: str, folder: Path, *, commit: str, rounds: int = ROUNDS) -> Finding:
    """Measure the rates of all cases of the finding `name` and keep them in `folder`; nothing if they are there."""
    finding = load_finding(folder, name)
    if any(run.kind == "speed" for run in finding.runs):
        return finding
    use_threads(1)
    machine = this_machine()
    cases = COMPARISONS[name].cases
    jobs = {case.name: case.job(seed=0) for case in cases}
    rates: dict[str, dict[str, list[float]]] = {case: {} for case in jobs}
    for rate, actions in _actions(jobs).items():
        for action in actions.values():
            action()
        seconds = paired_seconds(actions, rounds, slow=True, clock=time.process_time)
        for case, samples in seconds.items():
            tokens = _CALLS * jobs[case].train.batch_tokens
            rates[case][f"{rate}_tokens_per_second"] = [tokens / sample for sample in samples]
    for sampled in range(rounds):
        for case, job in jobs.items():
            figures = {rate: samples[sampled] for rate, samples in rates[case].items()}
            run = Run(
                kind="speed",
                case=case,
                job=job,
                commit=commit,
                seed=job.seed,
                round=sampled,
                machine=machine,
                figures=figures,
            )
            finding = finding.with_run(run)
    finding.save(folder)
    return finding


def _actions(jobs: dict[str, JobSpec]) -> dict[str, dict[str, Callable[[], object]]]:
    """What is timed: for each rate, an action of every job that has it."""
    models = {case: _model(job) for case, job in jobs.items()}
    batches = {
        case: Batch.drawn(
            job.train.batch_tokens // job.data.sequence_length, job.data.sequence_length, VOCABULARY, seed=0
        )
        for case, job in jobs.items()
    }

    def train(case: str) -> None:
        models[case].step(batches[case])
        models[case].settle()

    actions: dict[str, dict[str, Callable[[], object]]] = {
        "training": {case: partial(train, case) for case in jobs},
        "inference": {case: partial(models[case].infer, batches[case]) for case in jobs},
        "selection": {
            case: _selection(job.memory, job.train.batch_tokens) for case, job in jobs.items() if job.memory
        },
    }
    return {
        rate: {case: partial(_repeat, action) for case, action in of_cases.items()}
        for rate, of_cases in actions.items()
    }


def _repeat(action: Callable[[], object]) -> None:
    for _ in range(_CALLS):
        action()


def _model(job: JobSpec) -> TrainedModel:
    if job.memory is None:
        return dense_model(job.model, VOCABULARY)
    kind = ModelKind(job.model, job.memory, VOCABULARY)
    return kind.with_store(LocalStore(kind.table()).client)


def _selection(memory: MemorySpec, tokens: int) -> Callable[[], object]:
    """From the queries of `tokens` tokens to the rows they read, and back to the gradients."""
    generator = torch.Generator().manual_seed(0)
    keys: ProductKeys | FlatKeys
    if memory.keys == "flat":
        keys = FlatKeys(memory.heads, memory.sub_keys**2, memory.query_dim, generator)
    else:
        keys = ProductKeys(memory.heads, memory.sub_keys, memory.query_dim, generator)
    queries = torch.randn(tokens, memory.heads, memory.query_dim, generator=generator).requires_grad_()
    gradient = torch.randn(tokens, memory.heads, memory.k, generator=generator)

    def select() -> None:
        queries.grad = None
        keys.zero_grad(set_to_none=True)
        keys.select(queries, memory.k).scores.backward(gradient)  # type: ignore[no-untyped-call]

    return select
