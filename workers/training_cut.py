"""Going back to a cut of a run: the dense part into the trainers, the tables into their shards."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from memory_store.client import StoreClient
from memory_store.cuts import Manifest, check_file, complete_cuts, read_manifest
from memory_store.errors import CutError
from workers.dense_state import OPTIMIZER, WEIGHTS, load_optimizer, load_weights


def latest_cut(cuts: Path) -> Path:
    """The newest complete cut. Raises CutError if there is none."""
    folders = complete_cuts(cuts)
    if not folders:
        raise CutError(
            f"{cuts} holds no complete cut yet; the run must reach its first one (train.cut_every)."
        )
    return folders[-1]


def _file(folder: Path, manifest: Manifest, name: str) -> Path:
    for entry in manifest.files:
        if entry.name == name:
            return check_file(folder, entry)
    raise CutError(f"{folder} lacks {name}.")


def restore_weights(folder: Path, model: nn.Module) -> int:
    """Read the dense weights of a cut; returns its step. Raises CutError naming the file that is damaged."""
    manifest = read_manifest(folder)
    load_weights(_file(folder, manifest, WEIGHTS), model)
    return manifest.step


def restore_optimizer(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Read the dense optimizer's state and the random state of a cut."""
    load_optimizer(_file(folder, read_manifest(folder), OPTIMIZER), model, optimizer)


def restore_tables(folder: Path, store: StoreClient) -> None:
    """Have every shard read its buckets of a cut, on whatever number of shards it was written."""
    store.load_cut(str(folder), read_manifest(folder).step)
