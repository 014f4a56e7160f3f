"""The cycle: a shard that makes steps, logs them, writes cuts beside them, and removes old ones; all in one thread.

    LD_PRELOAD=LIBRARY python -m tests.kill_points.cycle LIBRARY FOLDER POINTS

POINTS is a JSON list of [n, torn]. For each, a child process runs the cycle in FOLDER/n-torn and dies at its n-th call that
changes files; n = 0 lets it live. Prints, as JSON, how many such calls each has made, and what it had acknowledged.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np

from memory_store import messages as m
from memory_store.bucket_files import spec_as_json
from memory_store.cuts import Manifest, begin_cut, finish_cut, prune_cuts
from memory_store.log_records import Base
from memory_store.log_storage import FolderStorage
from memory_store.placement import Placement
from memory_store.recovery import take_over
from memory_store.shard import ShardCore
from memory_store.shard_cuts import ShardCut, ShardCuts
from memory_store.step_log import StepLog
from memory_store.table_spec import OptimizerSpec, TableSpec

SPEC = TableSpec("memory", 6000, 4, optimizer=OptimizerSpec("adam"))
PLACEMENT = Placement.even(256)  # this shard has 4 buckets
SHARD = 3
SENDER = m.Sender("session", 1, 0)
STEPS_PER_CUT = 2
CUTS = 5  # two of all rows, then deltas; the older ones are removed
RATES = np.array([0.25])


def new_core(*, logged: bool = True) -> ShardCore:
    return ShardCore([SPEC], PLACEMENT, SHARD, logged=logged, first_values=not logged)


def make_step(core: ShardCore, step: int) -> None:
    """Step `step`: a few rows that depend on it alone move, and one is replaced."""
    part = core.tables["memory"]
    existing = [
        part.first_address + place
        for bucket in part.buckets
        for place in range(part.bucket_slice(bucket).start, part.bucket_slice(bucket).stop)
    ]
    rows = np.array(existing[step % 3 :: 7], np.uint32)[:4]
    gradients = np.full((rows.size, SPEC.dim), 1 + step % 4, np.float32)
    seq = 3 * step + 1
    core.handle(0, m.RowGradient(SENDER, seq, step, "memory", rows, gradients))
    core.handle(0, m.ReplaceRows(SENDER, seq + 1, step, "memory", rows[-1:], gradients[-1:]))
    core.handle(0, m.Commit(SENDER, seq + 2, step, 2, False, 1.0, RATES))
    assert core.version == step + 1


def content(core: ShardCore) -> bytes:
    part = core.tables["memory"]
    return b"".join(
        array[part.bucket_slice(bucket)].tobytes() for bucket in part.buckets for _, array in part.columns()
    )


class LaterThread:
    """Stands for the cut's thread: it runs when it is told to."""

    waiting: ClassVar[list[Callable[[], None]]] = []

    def __init__(self, target: Callable[..., None], args: tuple[ShardCut], name: str, daemon: bool) -> None:
        self._run = lambda: target(*args)

    def start(self) -> None:
        self.waiting.append(self._run)


def cycle(folder: Path, say: Callable[[str, int], None]) -> None:
    core = new_core()
    log = take_over(core, FolderStorage(folder / "logs"))
    cuts = ShardCuts(SHARD, "life", threading.Lock(), lambda cut: None)
    core.handle(0, m.OpenGroup("session", 1, 1))
    write_log(core, log)
    step = 0
    for _ in range(CUTS):
        for _ in range(STEPS_PER_CUT):
            make_step(core, step)
            write_log(core, log)
            step += 1
            say("acknowledged", step)
        path = begin_cut(folder / "cuts", step)
        core.cut_begins()
        cut = cuts.begin(path, core.tables.values(), step, step)
        write_log(core, log)
        make_step(core, step)  # beside the cut
        write_log(core, log)
        step += 1
        say("acknowledged", step)
        LaterThread.waiting.pop()()
        assert isinstance(cut.outcome, list), cut.outcome
        core.cut_written(Base(version=cut.step, folder=str(path), files=tuple(cut.outcome)))
        write_log(core, log)
        finish_cut(path, Manifest(step=cut.step, tables=(spec_as_json(SPEC),), files=tuple(cut.outcome)))
        say("cut", cut.step)
        prune_cuts(folder / "cuts", 2)


def write_log(core: ShardCore, log: StepLog) -> None:
    for record in core.take_records():
        log.append(record)
    log.sync()


def _say(pipe: int, what: str, number: int) -> None:
    os.write(pipe, f"{what} {number}\n".encode())


def main() -> None:
    library, base, points = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    shim = ctypes.CDLL(library)
    threading.Thread = LaterThread  # type: ignore[misc,assignment]
    results = []
    for number, torn in points:
        folder = base / f"{number}-{torn}"
        folder.mkdir(parents=True)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            shim.arm(number, torn)
            say = partial(_say, writing)
            cycle(folder, say)
            say("calls", shim.calls())
            os._exit(0)
        os.close(writing)
        with open(reading) as said:
            lines = [line.split() for line in said]
        _, status = os.waitpid(child, 0)
        results.append({"point": [number, torn], "said": lines, "status": status})
    print(json.dumps(results))


if __name__ == "__main__":
    main()
