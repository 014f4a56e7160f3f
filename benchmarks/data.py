"""The `data` benchmark: how fast text becomes a corpus, and how much memory that takes.

The addresses of examples/data, again and again, are one file of packed JSON lines. `pkm data prepare` makes a corpus of it
in a process of its own, with as many processes to encode as there are cores; its memory is that of all of them, looked at
every few milliseconds. Encoding alone is compared with what a program would do with the `tokenizers` library itself:
`encode_batch` of some hundred documents at a time, on all cores, until the tokens are numbers in an array. Both encode the
same documents in turn, and are found to give as many tokens.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from benchmarks.measuring import paired_seconds
from benchmarks.results import BenchmarkRun, Recorder
from benchmarks.threads import CORES
from workers.corpus_parts import encode_parts, parts_of, tokens_of_parts
from workers.documents import read_documents
from workers.tokenizer import END_OF_TEXT_ID, train_tokenizer

ADDRESSES = Path("examples/data/sotu.parquet")
DOCUMENTS_AT_ONCE = 256
LOOK_S = 0.02


@dataclass(frozen=True)
class DataSize:
    """Bytes of text that are prepared, and that are encoded in each repeat; the vocabulary."""

    prepared: int
    encoded: int
    vocabulary: int
    repeats: int


FULL = DataSize(10**9, 10**8, 8192, 5)
QUICK = DataSize(16 * 10**6, 8 * 10**6, 2048, 2)


def run(size: DataSize, *, quick: bool) -> BenchmarkRun:
    """Measure a whole preparation, then encoding alone."""
    recorder = Recorder("data", quick=quick)
    with TemporaryDirectory() as name:
        _prepare(recorder, size, Path(name))
        _encode(recorder, size, Path(name))
    return recorder.finish()


def _prepare(recorder: Recorder, size: DataSize, folder: Path) -> None:
    source = folder / "text.jsonl.zst"
    with open(source, "wb") as file, pa.CompressedOutputStream(file, "zstd") as packed:
        for text in _texts(size.prepared):
            packed.write(json.dumps({"text": text}).encode() + b"\n")
    command = [sys.executable, "-m", "service.cli", "data", "prepare", str(source), "--json"]
    command += ["--vocab-size", str(size.vocabulary), "--out", str(folder / "corpus")]
    begun = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )
    peak = 0
    while process.poll() is None:
        peak = max(peak, _resident_bytes(process.pid))
        time.sleep(LOOK_S)
    seconds = time.perf_counter() - begun
    assert process.stdout is not None
    tokens = sum(split["tokens"] for split in json.load(process.stdout)["splits"].values())
    text = {"text": f"{size.prepared / 1e6:.0f} MB"}
    recorder.add("pkm data prepare", "million tokens/s", [tokens / seconds / 1e6], **text)
    recorder.add("memory of all processes", "MiB", [peak / 2**20], **text)
    recorder.ratio("data_prepare_peak_gib", peak / 2**30)


def _encode(recorder: Recorder, size: DataSize, folder: Path) -> None:
    texts = list(_texts(size.encoded))
    tokenizer = train_tokenizer(texts, size.vocabulary)
    tokenizer.save(str(folder / "tokenizer.json"))
    parts = folder / "parts"
    parts.mkdir()

    def ours() -> None:
        for path in parts.iterdir():
            path.unlink()
        encode_parts(parts_of(("train", text) for text in texts), parts, folder / "tokenizer.json", CORES)

    actions = {
        "parts in processes": ours,
        "tokenizers.encode_batch": lambda: _encode_batches(tokenizer, texts),
    }
    expected = _encode_batches(tokenizer, texts)
    ours()
    found = np.concatenate(list(tokens_of_parts(parts, "train")))
    assert np.array_equal(found[found != END_OF_TEXT_ID], expected), "the tokens are not the same"
    seconds = paired_seconds(actions, size.repeats, slow=True)
    for name, samples in seconds.items():
        recorder.add("encoding", "million tokens/s", expected.size / samples / 1e6, by=name)
    recorder.ratio(
        "data_encode_vs_tokenizers_batch",
        float(np.median(seconds["tokenizers.encode_batch"] / seconds["parts in processes"])),
    )


def _encode_batches(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    """The tokens of all texts by the library's own batches, uint32 `[T]`."""
    remaining, found = iter(texts), []
    while batch := list(islice(remaining, DOCUMENTS_AT_ONCE)):
        encodings = tokenizer.encode_batch(batch, add_special_tokens=False)
        found += [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]
    return np.concatenate(found)


def _texts(size: int) -> Iterator[str]:
    """The addresses again and again, until they have so many bytes."""
    while True:
        for text in read_documents(ADDRESSES, "text"):
            yield text
            size -= len(text.encode())
            if size <= 0:
                return


def _resident_bytes(group: int) -> int:
    """Memory of all processes of a group that lies in RAM now."""
    pages = 0
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                if os.getpgid(int(name)) == group:
                    pages += int(Path(f"/proc/{name}/statm").read_text().split()[1])
            except (ProcessLookupError, FileNotFoundError):
                continue
    return pages * os.sysconf("SC_PAGE_SIZE")
