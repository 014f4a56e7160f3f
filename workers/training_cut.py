"""Cuts of a training run: the dense part from the leading trainer, the tables from their shards, all at one step."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

from memory_store import messages as m
from memory_store.bucket_files import spec_as_json
from memory_store.client import StoreClient
from memory_store.cuts import (
    CutFile,
    Manifest,
    begin_cut,
    check_file,
    complete_cuts,
    describe_file,
    finish_cut,
    prune_cuts,
    read_manifest,
)
from memory_store.errors import CutError
from workers.dense_state import OPTIMIZER, WEIGHTS, load_optimizer, load_weights, save_dense
from workers.job_spec import JobSpec


def write_cut(
    cuts: Path,
    step: int,
    job: JobSpec,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    store: StoreClient | None,
) -> Path:
    """Write the cut of `step` and drop older ones. All trainers must stand at this step and wait. Returns its folder."""
    folder = begin_cut(cuts, step)
    files: list[CutFile] = []
    if store is not None:
        store.synchronise()
        for written in store.ask(m.WriteCut(store.sender, str(folder), step), m.CutWritten):
            files += [CutFile.model_validate(entry) for entry in json.loads(written.files)]
    files += [describe_file(path) for path in save_dense(folder, model, optimizer)]
    tables = tuple(spec_as_json(spec) for spec in store.specs.values()) if store is not None else ()
    state = {"job": job.model_dump(mode="json")}
    finish_cut(folder, Manifest(step=step, tables=tables, state=state, files=tuple(files)))
    prune_cuts(cuts, job.train.keep_cuts)
    return folder


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
