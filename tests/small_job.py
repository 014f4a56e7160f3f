"""A small real job for tests: a slice of the State of the Union addresses, a tiny model, a small table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
    content = {}
    for entry in read_manifest(cut).files:
        if entry.table is not None:
            with pa.OSFile(str(cut / entry.name)) as source, pa.ipc.open_file(source) as reader:
                for index, bucket in enumerate(entry.buckets):
                    batch = reader.get_batch(index)
                    content[entry.table, bucket] = {
                        name: batch.column(name).to_numpy(zero_copy_only=False).tobytes()
                        if batch.schema.field(name).type == pa.uint32()
                        else batch.column(name).flatten().to_numpy().tobytes()
                        for name in batch.schema.names
                    }
    return content


def dense_weights(cut: Path) -> dict[str, bytes]:
    """The dense files of a cut, by name."""
    return {path.name: path.read_bytes() for path in sorted(cut.glob("*.safetensors"))}
