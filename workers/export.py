"""A trained model as a folder that plain PyTorch, `transformers` and `lm-eval` load, without this project.

  config.json             the shape of the model and of its memory, as `transformers` names things
  model.safetensors       every weight, under "model." and its name in the `state_dict`; and of each value table
                          `tables.NAME.values` `[K, D]` in the order of its rows, with `tables.NAME.scales` `[K, 1]` for int8
  model-I-of-N.safetensors, model.safetensors.index.json
                          the same where it takes more than FILE_BYTES_MAX
  tokenizer.json, tokenizer_config.json, generation_config.json
  pkm_model.py            the model in plain PyTorch; the other code is for the two libraries (workers/exported/)
  README.md               how to use it all

Only the tables are rounded, if that is asked for: they are nearly all of a model, and the rest decides which rows are read.
Row `i * n + j` belongs to sub-keys i of the first half and j of the second.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from memory_store.errors import UsageError
from memory_store.table_handle import TableHandle
from workers.exported.pkm_model import PREFIX
from workers.run_folder import RunFolder
from workers.tokenizer import END_OF_TEXT, END_OF_TEXT_ID
from workers.trained_model import TrainedModel, load_trained_model
from workers.transformer import ROTARY_BASE
from workers.whole_folder import whole_folder

TableType = Literal["float32", "bfloat16", "int8"]
ROWS_AT_ONCE = 1 << 16
FILE_BYTES_MAX = 4 << 30
CODE = ("pkm_model.py", "configuration_pkm.py", "modeling_pkm.py", "lm_eval_pkm.py", "README.md")


class ExportLoss(BaseModel):
    """Perplexity on `split` (`tokens` of it), of the model as it was trained and as it was exported."""

    model_config = ConfigDict(frozen=True)

    split: str
    tokens: int
    trained: float
    exported: float

    @property
    def share(self) -> float:
        """By what share of itself the perplexity has risen."""
        return self.exported / self.trained - 1


class ExportReport(BaseModel):
    """What was written; `bytes` of the weights' files. `loss` if it was asked for."""

    model_config = ConfigDict(frozen=True)

    folder: Path
    step: int
    table: TableType
    parameters: int
    bytes: int
    files: tuple[str, ...]
    loss: ExportLoss | None = None


def export_run(run: RunFolder, folder: Path, table: TableType = "float32") -> ExportReport:
    """Write the newest cut of a run to `folder`, which must not exist. The value tables must fit into memory twice.

    Raises UsageError if there is no run, or the folder exists or can't be made.
    """
    return export_model(load_trained_model(run), folder, table)


def export_model(trained: TrainedModel, folder: Path, table: TableType = "float32") -> ExportReport:
    """`export_run` of a model that is loaded."""
    if folder.exists():
        raise UsageError(
            f"'{folder}' exists already and is not written over; remove it or choose another name."
        )
    tensors = dict(_tensors(trained, table))
    with whole_folder(folder) as unfinished:
        names = _write_weights(unfinished, tensors)
        for name, content in _descriptions(trained, table).items():
            _write_json(unfinished / name, content)
        _with_document_start(trained.corpus.tokenizer).save(str(unfinished / "tokenizer.json"))
        for name in CODE:
            shutil.copyfile(str(files("workers.exported") / name), unfinished / name)
        size = sum((unfinished / name).stat().st_size for name in names)
    return ExportReport(
        folder=folder,
        step=trained.step,
        table=table,
        parameters=sum(tensor.numel() for tensor in tensors.values()),
        bytes=size,
        files=names,
    )


def table_values(table: TableHandle) -> Tensor:
    """All values of a table, float32 `[K, D]`: a lookup of one row with weight 1 gives the row itself."""
    values = torch.empty(table.rows, table.dim)
    for begin in range(0, table.rows, ROWS_AT_ONCE):
        rows = np.arange(begin, min(begin + ROWS_AT_ONCE, table.rows), dtype=np.int64)[:, np.newaxis]
        found = table.lookup(rows, np.ones(rows.shape, dtype=np.float32), keep=False)
        values[begin : begin + rows.size] = torch.from_numpy(found.output)
    return values


def to_int8(values: Tensor) -> tuple[Tensor, Tensor]:
    """Integers int8 `[K, D]` and scales float32 `[K, 1]` whose products are the nearest to `values` float32 `[K, D]`.

    A row's scale is its largest magnitude / 127, so that no element is off by more than half of that.
    """
    integers, scales = torch.empty(values.shape, dtype=torch.int8), values.new_empty(values.shape[0], 1)
    for begin in range(0, values.shape[0], ROWS_AT_ONCE):
        rows = slice(begin, begin + ROWS_AT_ONCE)
        scales[rows] = values[rows].abs().amax(1, keepdim=True) / 127
        integers[rows] = (values[rows] / scales[rows]).nan_to_num(0.0).round().clamp(-127, 127).to(torch.int8)
    return integers, scales


def _tensors(trained: TrainedModel, table: TableType) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in trained.model.state_dict().items():
        if name.endswith("product_keys.uses"):  # a count that only training needs
            continue
        yield f"{PREFIX}{name}", tensor.detach().cpu().contiguous()
    for name in trained.store.specs if trained.store is not None else ():
        assert trained.store is not None
        values = table_values(trained.store.table(name))
        if table == "int8":
            values, scales = to_int8(values)
            yield f"{PREFIX}tables.{name}.scales", scales
        yield f"{PREFIX}tables.{name}.values", values.bfloat16() if table == "bfloat16" else values


def _write_weights(folder: Path, tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Write the tensors to as few files as FILE_BYTES_MAX allows; a tensor is never divided. The files' names."""
    groups: list[dict[str, Tensor]] = [{}]
    room = FILE_BYTES_MAX
    for name, tensor in tensors.items():
        if tensor.nbytes > room and groups[-1]:
            groups.append({})
            room = FILE_BYTES_MAX
        groups[-1][name] = tensor
        room -= tensor.nbytes
    if len(groups) == 1:
        names = ["model.safetensors"]
    else:
        names = [f"model-{i:05}-of-{len(groups):05}.safetensors" for i in range(1, len(groups) + 1)]
        places = {tensor: name for name, group in zip(names, groups, strict=True) for tensor in group}
        total = sum(tensor.nbytes for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": places}
        _write_json(folder / "model.safetensors.index.json", index)
    for name, group in zip(names, groups, strict=True):
        save_file(group, folder / name, metadata={"format": "pt"})
        (folder / name).chmod(0o644)  # safetensors lets nobody else read its files
    return tuple(names)


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _with_document_start(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer, which puts the token that begins a document before a text unless it is told not to."""
    starting = Tokenizer.from_str(tokenizer.to_str())
    starting.post_processor = TemplateProcessing(
        single=f"{END_OF_TEXT} $A", pair=None, special_tokens=[(END_OF_TEXT, END_OF_TEXT_ID)]
    )
    return starting


def _descriptions(trained: TrainedModel, table: TableType) -> dict[str, dict[str, Any]]:
    """The JSON files, by name."""
    job, memory = trained.job, trained.job.memory
    ends = {"bos_token_id": END_OF_TEXT_ID, "eos_token_id": END_OF_TEXT_ID, "pad_token_id": END_OF_TEXT_ID}
    config = {
        "model_type": "pkm",
        "architectures": ["PkmForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_pkm.PkmConfig",
            "AutoModelForCausalLM": "modeling_pkm.PkmForCausalLM",
        },
        "dtype": "float32",
        "vocab_size": trained.corpus.info.vocabulary_size,
        "hidden_size": job.model.dim,
        "num_hidden_layers": job.model.layers,
        "num_attention_heads": job.model.heads,
        "intermediate_size": job.model.feed_forward_dim,
        "max_position_embeddings": job.data.sequence_length,
        "rotary_base": ROTARY_BASE,
        "memory": memory and memory.model_dump(mode="json", exclude={"values"}),
        "memory_tables": {str(layer): memory.table_name(layer) for layer in memory.layers} if memory else {},
        "table_dtype": table,
        "pkm": {"job": job.name, "step": trained.step, "seed": job.seed},
        **ends,
    }
    tokenizer = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "model_max_length": job.data.sequence_length,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,
    }
    return {"config.json": config, "tokenizer_config.json": tokenizer, "generation_config.json": ends}
