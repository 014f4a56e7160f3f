"""A small real job for tests: a slice of the State of the Union addresses, a tiny model, a small table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from memory_store.cuts import read_manifest
from workers.corpus import prepare_corpus
from workers.job_spec import JobSpec

ADDRESSES = Path(__file__).parent.parent / "examples" / "data" / "sotu.parquet"


def small_corpus(folder: Path) -> Path:
    """A corpus of the first twelve addresses (about 130 kB) with a vocabulary of 512."""
    texts = pq.read_table(ADDRESSES, columns=["text"]).slice(0, 12)
    source = folder / "addresses.parquet"
    pq.write_table(texts, source)
    corpus = folder / "corpus"
    prepare_corpus([source], corpus, vocab_size=512, validation_share=0.1, test_share=0.1)
    return corpus


def small_job(corpus: Path, **changes: Any) -> JobSpec:
    """The job; `changes` are dotted names with `__` for the dot, for example `train__steps=10`."""
    job: dict[str, Any] = {
        "name": "small",
        "data": {"corpus": str(corpus), "sequence_length": 32},
        "model": {"layers": 2, "dim": 32, "heads": 2},
        "memory": {
            "layers": [1],
            "sub_keys": 32,
            "heads": 2,
            "k": 8,
            "query_dim": 16,
            "values": {"lr": 0.01},
        },
        "train": {
            "steps": 60,
            "batch_tokens": 256,
            "warmup_steps": 5,
            "evaluate_every": 20,
            "evaluation_tokens": 1024,
            "cut_every": 30,
        },
        "store": {"shards": 2, "carrier": "in_process"},
    }
    for name, value in changes.items():
        *groups, key = name.split("__")
        target = job
        for group in groups:
            target = target[group]
        target[key] = value
    return JobSpec.model_validate(job)


def table_content(cut: Path) -> dict[tuple[str, int], dict[str, bytes]]:
    """Every column of every bucket of a cut, as bytes, by (table, bucket): independent of the number of shards."""
    content: dict[tuple[str, int], dict[str, np.ndarray]] = {}
    for entry in read_manifest(cut).files:
        if entry.table is not None:
            with pa.OSFile(str(cut / entry.name)) as source, pa.ipc.open_file(source) as reader:
                for index, bucket in enumerate(entry.buckets):
                    batch = reader.get_batch(index)
                    columns = {name: _rows(batch, name) for name in batch.schema.names}
                    positions = columns.pop("position", None)
                    if positions is None:
                        content[entry.table, bucket] = columns
                    else:
                        for name, rows in columns.items():
                            content[entry.table, bucket][name][positions] = rows
    return {
        bucket: {name: rows.tobytes() for name, rows in columns.items()}
        for bucket, columns in content.items()
    }


def _rows(batch: pa.RecordBatch, name: str) -> np.ndarray:
    """A copy of a column, one line per row."""
    column = batch.column(name)
    if pa.types.is_fixed_size_list(column.type):
        return column.flatten().to_numpy().reshape(batch.num_rows, -1).copy()
    return column.to_numpy().copy()


def dense_weights(cut: Path) -> dict[str, bytes]:
    """The dense files of a cut, by name."""
    return {path.name: path.read_bytes() for path in sorted(cut.glob("*.safetensors"))}
