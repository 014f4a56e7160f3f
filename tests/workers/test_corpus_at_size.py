"""Corpora of many parts: the same bytes for any number of processes and after a kill, in bounded memory."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from memory_store.errors import UsageError
from workers import corpus_parts
from workers.corpus import open_corpus, prepare_corpus
from workers.corpus_parts import encode_parts, parts_of, tokens_of_parts
from workers.tokenizer import train_tokenizer
from workers.whole_folder import PARTS

ROOT = Path(__file__).resolve().parents[2]
WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in ("", "n", "sh", "rk", "lo")]

PREPARE = """
import sys
from pathlib import Path
from workers import corpus_parts
from workers.corpus import prepare_corpus
if __name__ == "__main__":
    corpus_parts.PART_CHARACTERS = int(sys.argv[4])
    prepare_corpus([Path(sys.argv[1])], Path(sys.argv[2]), vocab_size=400, processes=int(sys.argv[3]))
    high = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print(int(high.split()[1]) // 1024)  # MiB
"""


def write_text(path: Path, characters: int) -> None:
    """Documents of made-up words, as compressed JSON lines."""
    chance = random.Random(0)
    with open(path, "wb") as file, pa.CompressedOutputStream(file, "zstd") as packed:
        while characters > 0:
            text = " ".join(chance.choices(WORDS, k=chance.randint(200, 3000)))
            packed.write(json.dumps({"text": text}).encode() + b"\n")
            characters -= len(text)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def begin(folder: Path, source: Path, name: str, processes: int, part: int) -> subprocess.Popen[str]:
    (folder / "prepare.py").write_text(PREPARE)
    arguments = [str(source), str(folder / name), str(processes), str(part)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "true"}
    command = [sys.executable, str(folder / "prepare.py"), *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_parts_are_the_texts_whatever_their_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    texts = [
        ("train", "ein Wort und noch eines " * 2000),
        ("train", "kurz"),
        ("test", "drei Worte hier " * 900),
    ]
    tokenizer = train_tokenizer((text for _, text in texts), 280)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    found = {}
    for size in (1, 9000, 1 << 22):
        monkeypatch.setattr(corpus_parts, "PART_CHARACTERS", size)
        parts = list(parts_of(texts))
        assert all(len("".join(part.pieces)) < size + 10_000 for part in parts)
        folder = tmp_path / str(size)
        folder.mkdir()
        encode_parts(parts, folder, tmp_path / "tokenizer.json", processes=1)
        found[size] = {
            split: np.concatenate([*tokens_of_parts(folder, split)]) for split in ("train", "test")
        }
        decoded = tokenizer.decode(found[size]["train"].tolist(), skip_special_tokens=False)
        assert decoded == "".join(f"{text}<|endoftext|>" for split, text in texts if split == "train")
        for split, tokens in found[size].items():
            assert np.array_equal(tokens, found[1][split])
    assert len(parts) == 2


def test_parts_that_are_there_are_not_encoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(corpus_parts, "PART_CHARACTERS", 9000)
    texts = [("train", "ein Wort und noch eines " * 2000)]
    train_tokenizer((text for _, text in texts), 265).save(str(tmp_path / "tokenizer.json"))
    encode_parts(parts_of(texts), tmp_path, tmp_path / "tokenizer.json", processes=1)
    first, second, *_ = sorted(tmp_path.glob("*.tokens"))
    whole = second.read_bytes()
    first.write_bytes(b"mine")
    second.unlink()
    encode_parts(parts_of(texts), tmp_path, tmp_path / "tokenizer.json", processes=1)
    assert (first.read_bytes(), second.read_bytes()) == (b"mine", whole)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_any_number_of_processes_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_text(tmp_path / "text.jsonl.zst", 400_000)
    monkeypatch.setattr(corpus_parts, "PART_CHARACTERS", 20_000)
    for processes in (1, 2, 3):
        prepare_corpus(
            [tmp_path / "text.jsonl.zst"], tmp_path / f"of-{processes}", vocab_size=400, processes=processes
        )
    assert content(tmp_path / "of-1") == content(tmp_path / "of-2") == content(tmp_path / "of-3")
    open_corpus(tmp_path / "of-2").verify()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_after_a_kill_the_next_goes_on_to_the_same_bytes(tmp_path: Path):
    source = tmp_path / "text.jsonl.zst"
    write_text(source, 3_000_000)
    killed = begin(tmp_path, source, "corpus", processes=2, part=20_000)
    parts = tmp_path / ".corpus.unfinished" / PARTS
    deadline = time.monotonic() + 300
    while len(list(parts.glob("*.tokens"))) < 5:
        assert killed.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with pytest.raises(UsageError, match="being made by another process"):
        prepare_corpus([source], tmp_path / "corpus", vocab_size=400)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "corpus").exists()
    again = begin(tmp_path, source, "corpus", processes=3, part=20_000)
    assert again.wait() == 0
    undisturbed = begin(tmp_path, source, "undisturbed", processes=1, part=20_000)
    assert undisturbed.wait() == 0
    assert content(tmp_path / "corpus") == content(tmp_path / "undisturbed")
    assert not parts.exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_memory_does_not_grow_with_the_text(tmp_path: Path):
    high = {}
    for name, characters in (("small", 3_000_000), ("large", 45_000_000)):
        write_text(tmp_path / f"{name}.jsonl.zst", characters)
        process = begin(tmp_path, tmp_path / f"{name}.jsonl.zst", name, processes=1, part=1 << 20)
        printed, _ = process.communicate()
        assert process.returncode == 0
        high[name] = int(printed)
    # Fifteen times the text, which would take more than 45 MiB even as bytes, and 200 MiB as Python's tokens.
    assert high["large"] < high["small"] + 100
