"""Writing the cuts of a run while its training goes on; the leading trainer does it.

At the cut's step all trainers stand still until every shard has begun to write its rows as they are, and the dense part
has been handed to the operating system. The rest happens beside the next steps. A cut that fails is told and
removed; the run goes on, and the next cut is tried in its turn.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from memory_store.bucket_files import spec_as_json
from memory_store.calls import Waiting
from memory_store.client import StoreClient
from memory_store.cuts import (
    MANIFEST,
    CutFile,
    Manifest,
    begin_cut,
    cut_folder,
    describe_file,
    finish_cut,
    prune_cuts,
)
from memory_store.durable_files import sync_file
from memory_store.errors import CutError, PkmError
from workers.dense_state import save_dense
from workers.events import tell
from workers.heartbeat import CUT, At, unnoticed
from workers.job_spec import JobSpec
from workers.run_folder import RunFolder

_TRIES = 3
_LOOK_S = 1.0

_log = logging.getLogger(__name__)


class CutWriter:
    """The cuts of one run, one at a time; `on_written` is told how many seconds each has taken."""

    def __init__(
        self,
        run: RunFolder,
        job: JobSpec,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        store: StoreClient | None,
        at: At = unnoticed,
        on_written: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self._at, self._on_written = at, on_written
        self._begun = 0.0
        self._run, self._job = run, job
        self._model, self._optimizer, self._store = model, optimizer, store
        self._thread: threading.Thread | None = None
        self._step = 0
        self._failure = ""

    def begin(self, step: int) -> None:
        """Begin the cut of `step`, once the one before has come to its end. All trainers must stand at this step.

        Raises StoreError where the shards don't answer; what else goes wrong ends this cut only.
        """
        self.finish()
        folder = cut_folder(self._run.cuts_path, step)
        if (folder / MANIFEST).exists():
            return  # a predecessor of this process has just managed it
        self._step, self._begun = step, time.perf_counter()
        try:
            begin_cut(self._run.cuts_path, step)
            dense = save_dense(folder, self._model, self._optimizer)
        except OSError as error:
            self._fail(folder, error)
            return
        tables = self._store.begin_cut(str(folder)) if self._store is not None else list
        self._thread = threading.Thread(
            target=self._complete, args=(folder, dense, tables), name="cut", daemon=True
        )
        self._thread.start()

    def finish(self) -> bool:
        """Wait for the cut under way, if there is one. False if it failed."""
        if self._thread is not None:
            stage = CUT
            while self._thread.is_alive():
                self._at(self._step, stage, f"the cut of step {self._step}")
                self._thread.join(_LOOK_S)
                stage += 1
            self._thread = None
        if not self._failure:
            return True
        message = f"The cut of step {self._step} failed, the run goes on without it: {self._failure}"
        tell(self._run.events_path, "cut_failed", self._step, message)
        self._failure = ""
        return False

    def write_last(self, step: int) -> None:
        """Write the cut of the last step. Raises CutError if that fails again and again."""
        for _ in range(_TRIES):
            self.begin(step)
            if self.finish():
                return
        raise CutError(
            f"The cut of the last step, {step}, can't be written: {self._run.events_path} says why. See to that, and "
            f"go on with: pkm train --resume {self._run.path}"
        )

    def _complete(self, folder: Path, dense: list[Path], tables: Waiting[list[CutFile]]) -> None:
        try:
            files = tables()
            for path in dense:
                sync_file(path)
                files.append(describe_file(path))
            specs = self._store.specs.values() if self._store is not None else ()
            manifest = Manifest(
                step=self._step,
                tables=tuple(spec_as_json(spec) for spec in specs),
                state={"job": self._job.model_dump(mode="json")},
                files=tuple(files),
            )
            finish_cut(folder, manifest)
            self._on_written(time.perf_counter() - self._begun)
        except (OSError, PkmError) as error:
            self._fail(folder, error)
            return
        try:
            prune_cuts(self._run.cuts_path, self._job.train.keep_cuts)
        except OSError as error:
            _log.error("older cuts can't be removed: %s", error)

    def _fail(self, folder: Path, error: Exception) -> None:
        self._failure = str(error)
        if not (folder / MANIFEST).exists():
            shutil.rmtree(folder, ignore_errors=True)
