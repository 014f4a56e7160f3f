"""Evaluation on held-out text: perplexity, and how the value tables' slots are used there.

Access statistics are taken on held-out text only, padding excluded, over all ranks and heads: each rank's lookups are
counted at the shards, which sum them up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from memory_store.client import StoreClient
from memory_store.statistics import access_report, clear_accesses, slot_ages
from workers.batches import evaluation_batches
from workers.corpus import Corpus
from workers.job_spec import JobSpec
from workers.memory_layer import MemoryLayer
from workers.ranks import Ranks
from workers.report import EvaluationReport
from workers.transformer import Transformer

EVALUATION_TOKENS_AT_ONCE = 4096


@contextmanager
def evaluating(model: Transformer) -> Iterator[None]:
    """The model in evaluation mode, with its memory layers counting their accesses."""
    layers = [module for module in model.modules() if isinstance(module, MemoryLayer)]
    was_training = model.training
    model.eval()
    for layer in layers:
        layer.track_access = True
    try:
        with torch.no_grad():
            yield
    finally:
        for layer in layers:
            layer.track_access = False
        model.train(was_training)


def evaluate(
    model: Transformer,
    store: StoreClient | None,
    corpus: Corpus,
    job: JobSpec,
    split: str,
    *,
    ranks: Ranks | None = None,
    tokens_max: int | None = None,
    on_batch: Callable[[int], None] = lambda batch: None,
) -> EvaluationReport:
    """Perplexity and access statistics on `split`, at most its first `tokens_max` tokens. All ranks must call it.

    A shard that is started again meanwhile has forgotten the accesses: then all is counted once more.
    """
    ranks = ranks or Ranks(device=next(model.parameters()).device)
    while True:
        lives = shard_lives(store)
        report = _evaluate_once(model, store, corpus, job, split, ranks, tokens_max, on_batch)
        if all_the_same(ranks, lives, shard_lives(store)):
            return report


def shard_lives(store: StoreClient | None) -> list[str]:
    """Which processes are the shards now."""
    return [info.incarnation for info in store.describe()] if store is not None else []


def all_the_same(ranks: Ranks, before: list[str], after: list[str]) -> bool:
    """Whether no trainer has seen a shard change."""
    (changed,) = ranks.sum(float(before != after))
    return not changed


def _evaluate_once(
    model: Transformer,
    store: StoreClient | None,
    corpus: Corpus,
    job: JobSpec,
    split: str,
    ranks: Ranks,
    tokens_max: int | None,
    on_batch: Callable[[int], None],
) -> EvaluationReport:
    tables = list(store.specs) if store is not None else []
    if store is not None and ranks.leads:
        for table in tables:
            clear_accesses(store, table)
    ranks.barrier()
    sequences = max(1, EVALUATION_TOKENS_AT_ONCE // job.data.sequence_length)
    loss_sum, count = 0.0, 0
    with evaluating(model):
        batches = evaluation_batches(
            corpus.tokens(split),
            job.data.sequence_length,
            sequences,
            limit_tokens=tokens_max,
            rank=ranks.rank,
            world=ranks.world,
            in_lockstep=store is not None and store.in_lockstep,
        )
        for batch, (inputs, targets, mask) in enumerate(batches):
            on_batch(batch)
            real = int(np.count_nonzero(mask))
            loss = model.loss(
                *(torch.from_numpy(array).to(ranks.device) for array in (inputs, targets, mask))
            )
            loss_sum += float(loss) * real
            count += real
    loss_sum, total = ranks.sum(loss_sum, float(count))
    ranks.barrier()
    return EvaluationReport(
        split=split,
        tokens=int(total),
        perplexity=math.exp(min(loss_sum / total, 700.0)),
        memory={table: access_report(store, table) for table in tables} if store is not None else {},
        slot_ages={table: slot_ages(store, table) for table in tables} if store is not None else {},
    )
