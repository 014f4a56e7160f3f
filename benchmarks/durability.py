"""The `durability` benchmark: what it costs that a shard's death loses nothing, and how soon a dead shard is back.

The same model trains on shards with a log and on shards without, in turn, step by step. An update of one shard alone, with
nothing else in the step, shows the log's share of it at its largest: updates follow each other as those of a training do,
each confirmed while the next one is under way. Steps beside which a cut of all rows is written are compared with as many
without; what an incremental cut writes, with the bytes of the rows touched. A shard of several gigabytes, with a cut
and some steps in its log, is killed: the time counts from the kill until its successor has answered a lookup.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from benchmarks.bags import Bags
from benchmarks.measuring import Samples, paired_seconds
from benchmarks.results import BenchmarkRun, Recorder
from benchmarks.threads import CORES, use_threads
from benchmarks.training_steps import Batch, ModelKind, TrainedModel
from memory_store import messages as m
from memory_store.bucket_files import spec_as_json
from memory_store.client import StoreClient
from memory_store.cuts import CutFile, Manifest, begin_cut, finish_cut
from memory_store.opening import connect, in_process_store
from memory_store.placement import addresses_of
from memory_store.shard_cuts import FULL_CUTS_MIN
from memory_store.table_spec import OptimizerSpec, TableSpec
from workers.job_spec import ModelSpec
from workers.memory_spec import MemorySpec
from workers.shard_process import ShardProcess, ShardSettings

LOG, NONE, CUT = "log", "none", "cut"
STEPS_PER_CUT = 200  # unless a job says otherwise
TOKEN = "benchmark"
LEARNING_RATE = 1e-3
UPDATES_PER_SAMPLE = 4


@dataclass(frozen=True)
class DurabilitySize:
    """The model and its batch; the table and the bags of the bare update; the rows of the shard that is killed."""

    kind: ModelKind
    sequences: int
    sequence_length: int
    steps_per_sample: int
    steps_beside_cut: int
    repeats: int
    rows: int
    bags: int
    per_bag: int
    killed_rows: int
    steps_in_log: int
    kills: int


_KIND = ModelKind(
    ModelSpec(layers=4, dim=256, heads=4, feed_forward_dim=1024),
    MemorySpec(layers=(2,), sub_keys=512, heads=4, k=32, query_dim=128),
    vocabulary_size=8192,
)
_ROW_BYTES = 3 * 1024 + 4  # 256 float32, twice as many of Adam's state, and the last step
FULL = DurabilitySize(_KIND, 16, 256, 2, 6, 9, 2**20, 6400, 32, 4 * 10**9 // _ROW_BYTES, 50, 3)
QUICK = DurabilitySize(_KIND, 16, 256, 1, 3, 3, 2**18, 6400, 32, 5 * 10**8 // _ROW_BYTES, 10, 1)


def run(size: DurabilitySize, *, quick: bool) -> BenchmarkRun:
    """Measure steps, updates and recovery, each with its own shards."""
    recorder = Recorder("durability", quick=quick)
    use_threads(CORES)
    with TemporaryDirectory(dir=Path.cwd(), prefix=".durability-") as folder:
        _measure_steps(recorder, size, Path(folder) / "steps")
        _measure_updates(recorder, size, Path(folder) / "updates")
        _measure_cuts(recorder, size, Path(folder) / "cuts")
        _measure_cut_bytes(recorder, size, Path(folder) / "cut-bytes")
        _measure_recovery(recorder, size, Path(folder) / "recovery")
    return recorder.finish()


class _Shards:
    """Shards in processes of their own, and a client that has taken over."""

    def __init__(self, spec: TableSpec, shards: int, logs: Path | None) -> None:
        threads = max(1, CORES // shards)
        place = str(logs) if logs is not None else None
        self._settings = [
            ShardSettings([spec], shards, shard, threads=threads, token=TOKEN, logs=place)
            for shard in range(shards)
        ]
        self._stack = ExitStack()
        self._processes = [self._stack.enter_context(ShardProcess(each)) for each in self._settings]
        self._addresses = [process.address() for process in self._processes]
        self.store: StoreClient = connect(self._addresses, token=TOKEN, find=self._find)
        self._stack.callback(self.store.close)
        self.store.take_over()

    def _find(self, shard: int) -> str:
        return self._addresses[shard]

    def replace_killed(self, shard: int) -> None:
        """Kill a shard, and return when its successor is there."""
        os.kill(self._processes[shard].pid, signal.SIGKILL)
        self._processes[shard] = self._stack.enter_context(ShardProcess(self._settings[shard]))
        self._addresses[shard] = self._processes[shard].address()

    def read(self, bags: Bags) -> NDArray[np.float32]:
        """The first bags' sums, by message, from a client of its own."""
        store = connect(self._addresses, token=TOKEN, in_place=False)
        try:
            found = store.table("memory").lookup(bags.rows[:100], bags.weights[:100], keep=False)
            return np.array(found.output)
        finally:
            store.close()

    def stop(self) -> None:
        self._stack.close()


@contextmanager
def _shards(spec: TableSpec, shards: int, logs: Path | None) -> Iterator[_Shards]:
    running = _Shards(spec, shards, logs)
    try:
        yield running
    finally:
        running.stop()


# ---- steps ---------------------------------------------------------------------------------------------------------


def _measure_steps(recorder: Recorder, size: DurabilitySize, folder: Path) -> None:
    spec = size.kind.table()
    lengths = (size.sequences, size.sequence_length, size.kind.vocabulary_size)
    batches = [Batch.drawn(*lengths, seed) for seed in range(4)]
    with _shards(spec, 2, folder) as logged, _shards(spec, 2, None) as plain:
        models = {LOG: size.kind.with_store(logged.store), NONE: size.kind.with_store(plain.store)}
        losses = {name: [model.step(batch) for batch in batches[:2]] for name, model in models.items()}
        assert losses[LOG] == losses[NONE], losses

        def sample(model: TrainedModel) -> None:
            for batch, _ in zip(cycle(batches), range(size.steps_per_sample), strict=False):
                model.step(batch)
            model.settle()

        actions = {name: partial(sample, model) for name, model in models.items()}
        seconds = paired_seconds(actions, size.repeats, slow=True)
    for name, samples in seconds.items():
        recorder.add("training step", "ms", samples / size.steps_per_sample * 1e3, durability=name)
    _set_overhead(recorder, "log_step_overhead", "training step", seconds)


def _set_overhead(recorder: Recorder, ratio: str, what: str, seconds: dict[str, Samples]) -> None:
    over = recorder.add(f"{what}: {LOG} / {NONE}", "ratio", seconds[LOG] / seconds[NONE])
    recorder.ratio(ratio, over.median - 1)


# ---- bare updates --------------------------------------------------------------------------------------------------


def _measure_updates(recorder: Recorder, size: DurabilitySize, folder: Path) -> None:
    spec = TableSpec("memory", size.rows, 256, optimizer=OptimizerSpec("adam"))
    bags = Bags.drawn(size.rows, spec.dim, size.bags, size.per_bag)

    entries = {
        "table": "memory",
        "offsets": np.arange(size.bags + 1, dtype=np.int32) * np.int32(size.per_bag),
        "addresses": addresses_of(bags.rows, size.rows).reshape(-1),
        "weights": bags.weights.reshape(-1),
        "output_gradient": bags.output_gradient,
    }

    def update(store: StoreClient) -> None:
        for _ in range(UPDATES_PER_SAMPLE):
            store.table("memory").lookup(
                bags.rows[:1], bags.weights[:1], keep=False
            )  # waits for the step before
            store.contribute(0, m.EntryGradient, **entries)
            store.step({"memory": LEARNING_RATE})
        store.synchronise()

    with _shards(spec, 1, folder) as logged, _shards(spec, 1, None) as plain:
        stores = {LOG: logged.store, NONE: plain.store}
        for store in stores.values():
            update(store)
        actions = {name: partial(update, store) for name, store in stores.items()}
        seconds = paired_seconds(actions, 2 * size.repeats, slow=True)
    count = size.bags * size.per_bag * UPDATES_PER_SAMPLE
    for name, samples in seconds.items():
        recorder.add("bare updates", "M entries/s", count / samples / 1e6, durability=name)
    _set_overhead(recorder, "log_update_overhead", "bare updates", seconds)


# ---- cuts ----------------------------------------------------------------------------------------------------------


def _begin_tables(cuts: Path, store: StoreClient) -> Callable[[], list[CutFile]]:
    """Begin a cut of the tables alone; call what comes back to wait for its end."""
    folder = begin_cut(cuts, store.version)
    written = store.begin_cut(str(folder))
    tables, version = tuple(spec_as_json(spec) for spec in store.specs.values()), store.version

    def finish() -> list[CutFile]:
        files = written()
        finish_cut(folder, Manifest(step=version, tables=tables, files=tuple(files)))
        return files

    return finish


def _measure_cuts(recorder: Recorder, size: DurabilitySize, folder: Path) -> None:
    """A step of this batch touches most rows, so every cut is of all of them: the most that a cut can cost."""
    lengths = (size.sequences, size.sequence_length, size.kind.vocabulary_size)
    batches = [Batch.drawn(*lengths, seed) for seed in range(4)]
    with _shards(size.kind.table(), 2, None) as shards:
        model = size.kind.with_store(shards.store)

        def steps() -> None:
            for batch, _ in zip(cycle(batches), range(size.steps_beside_cut), strict=False):
                model.step(batch)
            model.settle()

        def steps_and_cut() -> None:
            finish = _begin_tables(folder, shards.store)
            steps()
            finish()
            shutil.rmtree(folder)

        steps()
        actions = {CUT: steps_and_cut, NONE: steps}
        seconds = paired_seconds(actions, size.repeats, slow=True)
    for name, samples in seconds.items():
        recorder.add(f"{size.steps_beside_cut} training steps", "s", samples, cut=name)
    extra = recorder.add("added by a cut of all rows", "s", seconds[CUT] - seconds[NONE])
    step = float(np.median(seconds[NONE])) / size.steps_beside_cut
    recorder.ratio("cut_step_overhead", extra.median / (STEPS_PER_CUT * step))


def _measure_cut_bytes(recorder: Recorder, size: DurabilitySize, folder: Path) -> None:
    """The rows of a small step, after two cuts of all rows."""
    spec = TableSpec("memory", size.rows, 256, optimizer=OptimizerSpec("adam"))
    bags = Bags.drawn(size.rows, spec.dim, size.bags // 8, size.per_bag)
    store = in_process_store([spec])
    shares = []
    for cut in range(5):
        lookup = store.table("memory").lookup(bags.rows, bags.weights, keep=True)
        lookup.backward(bags.output_gradient)
        store.step({"memory": LEARNING_RATE})
        files = _begin_tables(folder, store)()
        if cut >= FULL_CUTS_MIN:
            touched = np.unique(bags.rows).size
            shares.append(files[-1].size / (touched * _ROW_BYTES))
    written = recorder.add("bytes of an incremental cut over those of the rows touched", "ratio", shares)
    recorder.ratio("cut_bytes_over_touched_bytes", written)


# ---- recovery ------------------------------------------------------------------------------------------------------


def _measure_recovery(recorder: Recorder, size: DurabilitySize, folder: Path) -> None:
    spec = TableSpec("memory", size.killed_rows, 256, optimizer=OptimizerSpec("adam"))
    bags = Bags.drawn(spec.rows, spec.dim, size.bags, size.per_bag)
    taken = []
    with _shards(spec, 1, folder / "logs") as shards:
        store = shards.store
        for step in range(2 + size.steps_in_log):
            if step == 2:
                _begin_tables(folder / "cuts", store)()
            lookup = store.table("memory").lookup(bags.rows, bags.weights, keep=True)
            lookup.backward(bags.output_gradient)
            store.step({"memory": LEARNING_RATE})
        store.synchronise()
        expected = shards.read(bags)
        for _ in range(size.kills):
            begun = time.perf_counter()
            shards.replace_killed(0)
            found = shards.read(bags)
            taken.append(time.perf_counter() - begun)
            np.testing.assert_array_equal(found, expected)
    gigabytes = spec.rows * _ROW_BYTES / 1e9
    recorder.add("recovery", "s", taken, gigabytes=f"{gigabytes:.1f}", steps=size.steps_in_log)
    # A smaller shard than that of 4 GB says little: the start of the process is most of it.
    recorder.ratio("recovery_seconds_4gb", float(np.median(taken)))
