"""The start of a finetuning: the last cut of a trained run, and what its old text reads, in a run of its own."""

from __future__ import annotations

import shutil

import numpy as np
import torch

from memory_store.cuts import cut_folder, cut_step
from memory_store.errors import UsageError
from workers.batches import TrainingBatches
from workers.corpus import open_corpus
from workers.job_spec import JobSpec
from workers.learning_rows import BatchCount, idf_file
from workers.run_folder import RunFolder
from workers.trained_model import load_trained_model
from workers.training_cut import latest_cut


def begin_finetuning(base: RunFolder, run: RunFolder, job: JobSpec, background_batches: int) -> None:
    """Make `run`: `job` after the last cut of `base`, with the background of the text that `base` has learned.

    With `train.only_rows` null the run has no background, and will update everything. Raises UsageError if the job has
    another model or tokenizer than the base.
    """
    old = base.load_job()
    cut = latest_cut(base.cuts_path)
    for group in ("model", "memory"):
        before, after = getattr(old, group), getattr(job, group)
        if group == "memory" and before is not None and after is not None:
            before, after = (memory.model_copy(update={"values": None}) for memory in (before, after))
        if before != after:
            raise UsageError(
                f"{base.path} was trained with another {group}; finetuning can't change it, only memory.values, "
                "data, train and store."
            )
    open_corpus(job.data.corpus, tokenizer=open_corpus(old.data.corpus, ()).tokenizer)
    run.create(job)
    try:
        if job.train.only_rows is not None:
            run.background_path.mkdir()
            for number, count in _background(base, background_batches).items():
                np.save(idf_file(run, number), count.idf(), allow_pickle=False)
        # The cut comes last: without it there is no run to go on with.
        shutil.copytree(cut, cut_folder(run.cuts_path, cut_step(cut)))
    except BaseException:
        run.remove()
        raise


def _background(base: RunFolder, batches: int) -> dict[int, BatchCount]:
    """What `batches` batches of the base's training text read, by memory layer; the first ones of its order."""
    trained = load_trained_model(base)
    job, memories = trained.job, trained.model.memories()
    text = open_corpus(job.data.corpus, ("train",)).tokens("train")
    counts = {number: BatchCount(layer.table.rows) for number, layer in memories.items()}
    for number, layer in memories.items():
        layer.choose_learning = counts[number]
    source = TrainingBatches(text, job.data.sequence_length, job.seed)
    sequences = job.train.batch_tokens // job.data.sequence_length
    with torch.no_grad():
        for step in range(batches):
            inputs, targets = source.batch(step, 0, 1, 0, 1, sequences)
            trained.model.loss(torch.from_numpy(inputs), torch.from_numpy(targets))
    return counts
