"""Training, as one trainer runs it. The step reads top to bottom in `Trainer.train_step`.

All trainers of a job run this same code. The leader opens the writers' group, restores the last cut if there is one,
writes cuts and logs. A failure of anything ends in the same place: the group starts again, here, from the last cut. The
order of the text, the learning rates and the row updates are functions of the step alone, so what follows is (on a CPU, bit
for bit) what would have followed without the failure.
"""

from __future__ import annotations

import math
import time
from contextlib import AbstractContextManager, nullcontext
from statistics import fmean
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from memory_store.calls import Waiting
from memory_store.client import StoreClient
from memory_store.cuts import complete_cuts, cut_folder, cut_step
from memory_store.errors import NonFiniteGradientError, StoreError
from memory_store.statistics import access_map, touched_share
from workers.access_map_file import save_access_map
from workers.batches import TrainingBatches
from workers.compiled_blocks import compile_blocks
from workers.corpus import open_corpus
from workers.cut_writer import CutWriter
from workers.evaluation import all_the_same, evaluate, shard_lives
from workers.events import tell
from workers.gpu.transfers import numbers_of, transfers
from workers.halt import Halt, wanted_halt
from workers.heartbeat import BEGUN, COMMITTED, EVALUATION, WAITING, At, unnoticed
from workers.job_spec import JobSpec
from workers.learning_rows import freeze_all_but_rows
from workers.metrics_log import MetricsLog
from workers.move import begin_pause, read_pause
from workers.ranks import Ranks
from workers.report import EvaluationReport, StepRecord, forget_after
from workers.revival import Revival
from workers.revival_trail import forget_revivals_after
from workers.run_folder import RunFolder
from workers.schedules import dense_factor, values_factor
from workers.step_traces import StepTraces
from workers.table_placement import HitRate, placed_tables
from workers.trainer_metrics import TrainerMetrics
from workers.training_cut import restore_optimizer, restore_tables, restore_weights
from workers.training_map import TrainingMap
from workers.transformer import Transformer, build_model

MAP_SIDE_MAX = 512
USAGE_WINDOW_STEPS = 100
USAGE_EVERY_STEPS = 20
SKIPPED_IN_A_ROW_MAX = 25
HALT_AGAIN_S = 30.0


class _Loss(nn.Module):
    """The model with its loss as the forward pass, the form in which DistributedDataParallel averages gradients."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return self.model.loss(inputs, targets)


class Trainer:
    """One trainer of a job; see the module."""

    def __init__(
        self,
        job: JobSpec,
        run: RunFolder,
        ranks: Ranks,
        store: StoreClient | None,
        at: At = unnoticed,
        counted: TrainerMetrics | None = None,
    ) -> None:
        self.at = at
        self.counted = counted or TrainerMetrics()
        self.job, self.run, self.ranks, self.store = job, run, ranks, store
        self.corpus = open_corpus(job.data.corpus)
        self.batches = TrainingBatches(self.corpus.tokens("train"), job.data.sequence_length, job.seed)
        tables = placed_tables(job, store, ranks.device) if store is not None else {}
        self._hit_rate = HitRate(tables)
        self.model = build_model(job, self.corpus.info.vocabulary_size, tables, ranks.device)
        if job.train.only_rows is not None:
            freeze_all_but_rows(self.model, self.model.memories(), run, job.train.only_rows)
        if job.train.compile:
            compile_blocks(self.model, ranks.device)
        self.parallel: nn.Module = _Loss(self.model)
        if ranks.world > 1:
            # Query normalisation synchronises its own statistics, so buffers are the same everywhere already.
            self.parallel = DistributedDataParallel(self.parallel, broadcast_buffers=False)
        self.optimizer = torch.optim.AdamW(
            self.model.parameter_groups(job.train.weight_decay), lr=job.train.lr, betas=job.train.betas
        )
        self.traces = StepTraces()
        self.metrics = MetricsLog(run.metrics_path)
        on_cut = self.counted.cut_seconds.observe
        self.cuts = CutWriter(run, job, self.model, self.optimizer, store, at, on_cut)
        self.revival = self._new_revival()
        self.training_map: TrainingMap | None = None
        self.step = 0
        self._skipped_in_a_row = 0
        self._stop_wanted = False
        self._halt_not_before = 0.0

    # ---- the run -------------------------------------------------------------------------------------------------

    def train(self) -> EvaluationReport | None:
        """Train from the last cut, or from the start, to the last step; then evaluate on the test text.

        None if somebody wants the job to stop (halt.py), or to have other shards or trainers (move.py): a cut has just
        been written, from which it can go on.
        """
        self._start()
        train, ranks = self.job.train, self.ranks
        while self.step < train.steps:
            with self.traces.step(self.step + 1):
                record = self.train_step()
            self.counted.stepped(record)
            if self.step % train.evaluate_every == 0 and self.step < train.steps:
                record = self._with_validation(record)
            if ranks.leads:
                self.metrics.append(record)
                if self.training_map is not None:
                    self.training_map.end_of_step(self.step, last=self.step == train.steps)
                self._end_pause()
            if self._stop_wanted and self.step < train.steps and self._cut_to_stop():
                return None
            if self.step % train.cut_every == 0 or self.step == train.steps:
                self._cut()
        return self._conclude()

    def _start(self) -> None:
        """Open the writers' group, then restore the last cut or take the first values."""
        ranks, store = self.ranks, self.store
        if store is not None:
            store.join(
                ranks.sender_from_leader(store.take_over(ranks.world) if ranks.leads else None), ranks.world
            )
        cuts = complete_cuts(self.run.cuts_path) if ranks.leads else []
        self.step = ranks.from_leader(cut_step(cuts[-1]) if cuts else 0)
        if self.step:
            folder = cut_folder(self.run.cuts_path, self.step)
            restore_weights(folder, self.model)
            restore_optimizer(folder, self.model, self.optimizer)
            if store is not None and ranks.leads:
                restore_tables(folder, store)
        elif store is not None and ranks.leads:
            store.initialise()
        if ranks.leads:
            forget_after(self.run.metrics_path, self.step)
            forget_revivals_after(self.run.revivals_path, self.step)
            self.training_map = self._new_map()
        ranks.barrier()
        if store is not None:
            store.version = self.step

    def _new_map(self) -> TrainingMap | None:
        memory, layers = self.job.memory, list(self.model.memories().values())
        return TrainingMap(self.run.training_map_path, layers, memory.sub_keys, self.step) if memory else None

    # ---- the step ------------------------------------------------------------------------------------------------

    def train_step(self) -> StepRecord:
        """One optimizer step of the dense weights and of the tables."""
        begun = time.perf_counter()
        train, ranks = self.job.train, self.ranks
        # Frozen whole, the statistics of the query norm too, if only rows learn.
        self.model.train(train.only_rows is None)
        buffers = self._buffers()
        self.optimizer.zero_grad(set_to_none=not train.compile)

        losses: list[Tensor] = []
        for micro in range(train.gradient_accumulation):
            self.at(self.step, BEGUN + 2 * micro, f"the forward pass of step {self.step}")
            with self.counted.stall("data")(), self.traces.part("data"):
                inputs, targets = self._batch(micro)
            last = micro == train.gradient_accumulation - 1
            with self._gradients_stay_local() if not last else nullcontext():
                with self.traces.part("forward"), self._precision():
                    loss = self.parallel(inputs, targets) / train.gradient_accumulation
                self.at(self.step, BEGUN + 2 * micro + 1, f"the backward pass of step {self.step}")
                with self.traces.part("backward"):
                    loss.backward()
            losses.append(loss.detach())

        rate = train.lr * dense_factor(train, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), train.clip_norm or float("inf"))
        told = numbers_of(norm, *losses)
        skipped = self._is_to_be_skipped(told)
        if skipped:
            with self.traces.part("commit"):
                self._put_back(buffers)
            values_rate = values_norm = None
        else:
            with self.traces.part("optimizer"):
                self.optimizer.step()
                if self.revival is not None:
                    self.revival.after_step(self.step)
            with self.traces.part("commit"):
                values_rate, values_norm = self._step_tables()

        self.step += 1
        self.at(self.step, COMMITTED, f"what follows the commit of step {self.step - 1}")
        wanted = float(ranks.leads and self._sees_stop())
        loss_total, wanted = ranks.sum(sum(told()[1:]), wanted)
        self._stop_wanted = bool(wanted)
        seconds = time.perf_counter() - begun
        return StepRecord(
            step=self.step,
            loss=loss_total / ranks.world,
            learning_rate=rate,
            gradient_norm=told()[0],
            seconds=seconds,
            tokens_per_second=train.batch_tokens / seconds,
            values_learning_rate=values_rate,
            values_gradient_norm=values_norm,
            memory_usage=self._recent_usage(),
            cache_hit_rate=self._hit_rate.since_last_asked(),
            skipped=skipped or None,
        )

    def _new_revival(self) -> Revival | None:
        memory, frozen = self.job.memory, self.job.train.only_rows is not None
        if self.store is None or memory is None or memory.revive_dead_after is None or frozen:
            return None
        return Revival(
            self.model.memories(),
            memory.revive_dead_after,
            self.job.seed,
            self.ranks,
            self.optimizer,
            self.store,
            self.run,
        )

    def _batch(self, micro: int) -> tuple[Tensor, Tensor]:
        train, ranks = self.job.train, self.ranks
        inputs, targets = self.batches.batch(
            self.step,
            ranks.rank,
            ranks.world,
            micro,
            train.gradient_accumulation,
            train.batch_tokens // self.job.data.sequence_length,
        )
        return transfers(ranks.device).to_device(inputs), transfers(ranks.device).to_device(targets)

    def _step_tables(self) -> tuple[float | None, float | None]:
        """Apply the row optimizer on every shard; the values' learning rate and, if clipped, gradient norm."""
        if self.store is None or self.job.memory is None:
            return None, None
        values = self.job.memory.values
        rate = values.lr * values_factor(values, self.job.train, self.step)
        clip = dict.fromkeys(self.store.specs, values.clip_norm) if values.clip_norm is not None else {}
        result = self.store.step(dict.fromkeys(self.store.specs, rate), clip)
        return rate, max(result.gradient_norms.values(), default=None)

    def _is_to_be_skipped(self, told: Waiting[list[float]]) -> bool:
        """Whether a gradient of this step, its norm told first, is not finite at any trainer, and the job wants to go on.

        Raises NonFiniteGradientError if the job ends with such a gradient, or if one step after the other has one.
        """
        # The shards first: a device may still be busy with the norm, the first thing of a step that is waited for.
        error: StoreError | None = self.store.refusal() if self.store is not None else None
        if error is None and not math.isfinite(norm := told()[0]):
            error = NonFiniteGradientError(
                f"The norm of the dense gradient of step {self.step} is {norm}; nothing was changed. "
                "Lower the learning rate, or go on over such steps with train.non_finite: skip."
            )
        if self.job.train.non_finite == "fail":
            if error is not None:
                raise error
            return False
        (refused,) = self.ranks.sum(float(error is not None))
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if refused else 0
        if self._skipped_in_a_row > SKIPPED_IN_A_ROW_MAX:
            raise NonFiniteGradientError(
                f"The gradients of {self._skipped_in_a_row} steps in a row, up to step {self.step}, are not finite; "
                "the model can't be trained on. Go back to an older cut with a lower learning rate."
            )
        if refused and self.ranks.leads:
            why = str(error) if error is not None else "the gradient of another trainer"
            tell(self.run.events_path, "steps_skipped", self.step, f"Step {self.step} was skipped: {why}")
        return bool(refused)

    def _buffers(self) -> list[Tensor]:
        """What a forward pass changes, as it is before one that may be skipped."""
        if self.job.train.non_finite == "fail":
            return []
        return [buffer.clone() for buffer in self.model.buffers()]

    def _put_back(self, buffers: list[Tensor]) -> None:
        for buffer, before in zip(self.model.buffers(), buffers, strict=True):
            buffer.copy_(before)
        if self.store is not None:
            self.store.skip_step()

    def _gradients_stay_local(self) -> AbstractContextManager[None]:
        if isinstance(self.parallel, DistributedDataParallel):
            return self.parallel.no_sync()
        return nullcontext()

    def _precision(self) -> AbstractContextManager[object]:
        bfloat16 = self.job.train.precision == "bfloat16"
        return torch.autocast(self.ranks.device.type, dtype=torch.bfloat16, enabled=bfloat16)

    # ---- beside the step -----------------------------------------------------------------------------------------

    def _recent_usage(self) -> float | None:
        if self.store is None or not self.ranks.leads or self.step % USAGE_EVERY_STEPS:
            return None
        self.store.synchronise()  # of all rows that this step has touched, or it would depend on who was faster
        since = max(0, self.step - USAGE_WINDOW_STEPS)
        return fmean(touched_share(self.store, table, since) for table in self.store.specs)

    def _conclude(self) -> EvaluationReport:
        """Evaluate on the test text, and keep the map of its accesses; again if a shard has died and forgotten some."""
        while True:
            lives = shard_lives(self.store)
            report = self._evaluate("test")
            self._save_access_map()
            if all_the_same(self.ranks, lives, shard_lives(self.store)):
                return report

    def _save_access_map(self) -> None:
        store, memory = self.store, self.job.memory
        if store is not None and memory is not None and self.ranks.leads:
            side = min(memory.sub_keys, MAP_SIDE_MAX)
            maps = [access_map(store, table, memory.sub_keys, side) for table in store.specs]
            save_access_map(self.run.access_map_path, sum(maps[1:], start=maps[0]))

    def _evaluate(
        self, split: Literal["validation", "test"], tokens_max: int | None = None
    ) -> EvaluationReport:
        def on_batch(batch: int) -> None:
            self.at(self.step, EVALUATION + batch, f"the evaluation after step {self.step}")

        report = evaluate(
            self.model,
            self.store,
            self.corpus,
            self.job,
            split,
            ranks=self.ranks,
            tokens_max=tokens_max,
            on_batch=on_batch,
        )
        self.at(self.step, WAITING, "what follows the evaluation")
        self.counted.evaluated(report)
        return report

    def _with_validation(self, record: StepRecord) -> StepRecord:
        report = self._evaluate("validation", self.job.train.evaluation_tokens)
        figures: dict[str, float] = {"validation_perplexity": report.perplexity}
        if report.memory:
            tables = report.memory.values()
            figures["validation_usage"] = fmean(table.usage for table in tables)
            figures["validation_kl"] = fmean(table.kl_to_uniform for table in tables)
        return record.model_copy(update=figures)

    def _sees_stop(self) -> bool:
        if self.run.move_path.exists():
            return True
        return self.run.halt_path.exists() and time.monotonic() >= self._halt_not_before

    def _cut_to_stop(self) -> bool:
        """Write a cut to stop here; whether that is to be."""
        halt = wanted_halt(self.run.halt_path) if self.ranks.leads else None
        if halt is None and self.ranks.leads:
            begin_pause(self.run.pause_path, self.step)
        self._cut()
        stops = False
        if self.ranks.leads:
            written = self.cuts.finish()
            stops = written or (halt is not None and halt.purpose == "cancel")
            if not stops:
                self._goes_on(halt)
        return bool(self.ranks.from_leader(int(stops)))

    def _goes_on(self, halt: Halt | None) -> None:
        """The cut to stop at could not be written."""
        if halt is None:
            self.run.move_path.unlink(missing_ok=True)
            self.run.pause_path.unlink(missing_ok=True)
            tell(self.run.events_path, "reshard", self.step, "The job was not moved: the cut for it failed.")
        else:
            self._halt_not_before = time.monotonic() + HALT_AGAIN_S

    def _end_pause(self) -> None:
        """The first step after a move tells what that has cost; not one after a death on the way to it."""
        pause = read_pause(self.run.pause_path)
        if pause is None or self.run.move_path.exists():
            return
        self.run.pause_path.unlink()
        seconds = time.time() - pause.begun
        message = (
            f"Moved after step {pause.step} to {self.job.store.shards} shards and {self.ranks.world} trainers; "
            f"the training stood still for {seconds:.1f} s."
        )
        tell(self.run.events_path, "reshard", pause.step, message, seconds)

    def _cut(self) -> None:
        """Begin a cut, which is written while the next steps are made; wait for the last one."""
        if self.store is not None:
            self.store.synchronise()
        self._wait_for_all()
        if self.ranks.leads and self.step == self.job.train.steps:
            self.cuts.write_last(self.step)
        elif self.ranks.leads:
            self.cuts.begin(self.step)
        self._wait_for_all()

    def _wait_for_all(self) -> None:
        self.at(self.step, WAITING, "the wait for the others")
        self.ranks.barrier()
