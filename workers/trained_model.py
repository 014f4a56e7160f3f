"""A trained model out of a run's cut, in this process: no Ray, no running shard.

Evaluation, generation, inspection and export all start from here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from memory_store.client import StoreClient
from memory_store.opening import in_process_store
from workers.corpus import Corpus, open_corpus
from workers.job_spec import JobSpec
from workers.run_folder import RunFolder
from workers.splits import HELD_OUT
from workers.training_cut import latest_cut, restore_tables, restore_weights
from workers.transformer import Transformer, build_model


@dataclass(frozen=True)
class TrainedModel:
    """A model in evaluation mode with its tables, its corpus, and the step of its cut."""

    job: JobSpec
    step: int
    model: Transformer
    store: StoreClient | None
    corpus: Corpus


def load_trained_model(run: RunFolder) -> TrainedModel:
    """Load the newest cut of a run. Raises UsageError if it is no run, CutError if it has no sound cut."""
    job = run.load_job()
    folder = latest_cut(run.cuts_path)
    corpus = open_corpus(job.data.corpus, HELD_OUT)
    store = in_process_store(job.tables(), lookup="auto") if job.memory else None
    tables = {name: store.table(name) for name in store.specs} if store is not None else {}
    model = build_model(job, corpus.info.vocabulary_size, tables, torch.device("cpu"))
    step = restore_weights(folder, model)
    if store is not None:
        restore_tables(folder, store)
    model.eval()
    return TrainedModel(job, step, model, store, corpus)
