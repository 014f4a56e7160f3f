"""A trained model as one safetensors file with a JSON config beside it, for use without this project.

The safetensors file holds every weight of the model under its name in the `state_dict`, and every value
table, whole and in the order of its rows, as `tables.NAME` `[K, D]`. Row `i * n + j` belongs to sub-keys
i of the first half and j of the second. With dtype bfloat16 the matrices and tables are rounded; vectors
(norms, biases, query statistics) stay float32.

The config says what a reader needs besides: the shape of the model and its memory, the table of each
memory layer, and the tokenizer. examples/exported_model.py runs such a file with PyTorch alone.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from safetensors.torch import save_file
from torch import Tensor

from memory_store.client import TableHandle
from memory_store.errors import UsageError
from workers.run_folder import RunFolder
from workers.tokenizer import END_OF_TEXT_ID
from workers.trained_model import TrainedModel, load_trained_model
from workers.transformer import ROTARY_BASE

Precision = Literal["float32", "bfloat16"]
ROWS_AT_ONCE = 1 << 16


class ExportReport(BaseModel):
    """What was written."""

    model_config = ConfigDict(frozen=True)

    file: Path
    config: Path
    step: int
    dtype: Precision
    parameters: int
    bytes: int


def export_run(run: RunFolder, target: Path, dtype: Precision = "float32") -> ExportReport:
    """Write the newest cut of a run to `target` (FILE.safetensors) and FILE.json.

    The value tables must fit into memory twice.
    Raises UsageError if there is no run, or if the files can't be written or are there already.
    """
    config = target.with_suffix(".json")
    _check_target(target, config)
    trained = load_trained_model(run)
    tensors = {name: _rounded(tensor, dtype) for name, tensor in trained.model.state_dict().items()}
    if trained.store is not None:
        for name in trained.store.specs:
            tensors[f"tables.{name}"] = _rounded(table_values(trained.store.table(name)), dtype)
    # Whole or not at all: the config, written last, makes the pair.
    unfinished = target.with_name(f"{target.name}.unfinished")
    try:
        save_file(tensors, unfinished, metadata={"format": "pt"})
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)
    config.write_text(json.dumps(_describe(trained, dtype), indent=2) + "\n", encoding="utf-8")
    target.chmod(config.stat().st_mode)  # safetensors lets nobody else read its files
    return ExportReport(
        file=target,
        config=config,
        step=trained.step,
        dtype=dtype,
        parameters=sum(tensor.numel() for tensor in tensors.values()),
        bytes=target.stat().st_size,
    )


def table_values(table: TableHandle) -> Tensor:
    """All values of a table, float32 `[K, D]`: a lookup of one row with weight 1 gives the row itself."""
    values = torch.empty(table.rows, table.dim)
    for begin in range(0, table.rows, ROWS_AT_ONCE):
        rows = np.arange(begin, min(begin + ROWS_AT_ONCE, table.rows), dtype=np.int64)[:, np.newaxis]
        found = table.lookup(rows, np.ones(rows.shape, dtype=np.float32), keep=False)
        values[begin : begin + rows.size] = torch.from_numpy(found.output)
    return values


def _check_target(target: Path, config: Path) -> None:
    if target.suffix != ".safetensors":
        raise UsageError(f"The export can't be '{target}'; give a name that ends in .safetensors.")
    if not target.parent.is_dir():
        raise UsageError(f"There is no folder '{target.parent}' to export into; make it first.")
    for path in (target, config):
        if path.exists():
            raise UsageError(
                f"'{path}' exists already and is not written over; remove it or choose another name."
            )


def _rounded(tensor: Tensor, dtype: Precision) -> Tensor:
    tensor = tensor.detach().cpu().contiguous()
    matrix = tensor.is_floating_point() and tensor.ndim >= 2
    return tensor.to(torch.bfloat16) if matrix and dtype == "bfloat16" else tensor


def _describe(trained: TrainedModel, dtype: Precision) -> dict[str, object]:
    job = trained.job
    return {
        "format": "pkm-export",
        "format_version": 1,
        "name": job.name,
        "step": trained.step,
        "dtype": dtype,
        "vocabulary_size": trained.corpus.info.vocabulary_size,
        "end_of_text": END_OF_TEXT_ID,
        "sequence_length": job.data.sequence_length,
        "rotary_base": ROTARY_BASE,
        "model": job.model.model_dump(mode="json"),
        "memory": job.memory and job.memory.model_dump(mode="json", exclude={"values"}),
        "tables": {str(layer): job.memory.table_name(layer) for layer in job.memory.layers}
        if job.memory
        else {},
        "tokenizer": json.loads(trained.corpus.tokenizer.to_str()),
    }
