"""What rounding the tables of an exported model costs: its perplexity beside that of the model as it was trained."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from workers.batches import evaluation_batches
from workers.evaluation import EVALUATION_TOKENS_AT_ONCE, evaluate
from workers.export import ExportLoss
from workers.exported.pkm_model import PkmModel, load
from workers.trained_model import TrainedModel


def measure_loss(trained: TrainedModel, folder: Path, split: str = "test") -> ExportLoss:
    """Both perplexities on the whole of `split`, of the same windows."""
    report = evaluate(trained.model, trained.store, trained.corpus, trained.job, split)
    model, _ = load(folder)
    exported = _perplexity(model, trained, split)
    return ExportLoss(split=split, tokens=report.tokens, trained=report.perplexity, exported=exported)


@torch.no_grad()
def _perplexity(model: PkmModel, trained: TrainedModel, split: str) -> float:
    length = trained.job.data.sequence_length
    loss, count = 0.0, 0
    sequences = max(1, EVALUATION_TOKENS_AT_ONCE // length)
    for inputs, targets, mask in evaluation_batches(trained.corpus.tokens(split), length, sequences):
        logits = model(torch.from_numpy(inputs)).flatten(0, 1)
        expected = torch.from_numpy(np.where(mask, targets, -100)).flatten()
        loss += float(F.cross_entropy(logits, expected, reduction="sum"))
        count += int(np.count_nonzero(mask))
    return math.exp(min(loss / count, 700.0))
