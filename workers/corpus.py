"""A corpus: text as the model reads it, in a folder that is written once and never changed.

  corpus.json       what the corpus was made of and how, and the size and SHA-256 of every other file; its
                    last key is its own checksum
  tokenizer.json    the tokenizer, learned from the training text alone (tokenizer.py)
  train.arrow, validation.arrow, test.arrow
                    Arrow IPC files with one record batch of one column `tokens` (uint16, or uint32 if the
                    vocabulary has more than 65536 tokens): each document's tokens and an end-of-text token,
                    in the order of the files. One batch is one block of bytes, so a split of any size is
                    memory-mapped as one array.

The last documents are held out, whole: test is the shortest run of documents at the end that has its share of
the characters, validation likewise before it, each at least one document. With fewer than three documents the
text is cut by position instead, and `split_by` says so.

A folder is made beside its final place, brought to the disk and renamed: it is there whole or not at all, and
nothing is ever written over. The same files and settings give the same bytes. Text streams through; memory is
bounded by the longest document and the tokenizer's table of distinct words, not by the corpus.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, takewhile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from tokenizers import Tokenizer

from memory_store.durable_files import sha256_of, sync_file, sync_folder
from memory_store.errors import UsageError
from workers.documents import check_files, read_documents
from workers.tokenizer import (
    END_OF_TEXT_ID,
    check_vocabulary_size,
    encode_documents,
    load_tokenizer,
    train_tokenizer,
)

SPLITS = ("train", "validation", "test")
INFO_FILE = "corpus.json"
TOKENIZER_FILE = "tokenizer.json"
UINT16_VOCABULARY_MAX = 1 << 16

Tokens = NDArray[np.uint16] | NDArray[np.uint32]
OnProgress = Callable[[str, float], None]
"""Called with what is being done and the share of it that is done."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileInfo(_Record):
    """A file's name without its folder, its bytes, and their SHA-256."""

    name: str
    size: int
    sha256: str


class SplitInfo(_Record):
    """How much a split holds; `tokens` counts the end-of-text tokens, one a document, too."""

    documents: int
    characters: int
    tokens: int


class CorpusSettings(_Record):
    """All that decides what a corpus holds."""

    sources: tuple[FileInfo, ...]
    vocabulary_size: int
    text_column: str
    validation_share: float
    test_share: float


class CorpusInfo(CorpusSettings):
    """The content of corpus.json but for its checksum."""

    format: Literal[1] = 1
    end_of_text: int = END_OF_TEXT_ID
    split_by: Literal["documents", "position"]
    splits: dict[str, SplitInfo]
    files: tuple[FileInfo, ...]


@dataclass(frozen=True)
class Corpus:
    """An open corpus; its files had the right sizes when it was opened."""

    folder: Path
    info: CorpusInfo
    tokenizer: Tokenizer
    splits: Mapping[str, Tokens]

    def tokens(self, split: str) -> Tokens:
        """The tokens of a split, [T] uint16 or uint32, read-only, memory-mapped: they are read when used."""
        if split not in self.splits:
            raise UsageError(f"There is no split {split!r}; a corpus has {', '.join(SPLITS)}.")
        return self.splits[split]

    def verify(self) -> None:
        """Read every file whole. Raises UsageError naming the first whose checksum is wrong."""
        for file in self.info.files:
            if sha256_of(self.folder / file.name) != file.sha256:
                raise _damaged(self.folder / file.name, f"its checksum is not the one in {INFO_FILE}")


def prepare_corpus(
    files: Sequence[Path],
    folder: Path,
    *,
    vocab_size: int,
    text_column: str = "text",
    validation_share: float = 0.02,
    test_share: float = 0.04,
    on_progress: OnProgress | None = None,
) -> CorpusInfo:
    """Make the corpus `folder` out of text files; one already made of the same is left as it is.

    The shares are of the characters. Raises UsageError for files or settings that can't be used, and if
    `folder` holds anything else.
    """
    progress = on_progress or (lambda phase, share: None)
    settings = _settings(files, vocab_size, text_column, validation_share, test_share)
    if made := _made_already(folder, settings):
        progress("prepared already", 1.0)
        return made
    lengths = list(map(len, _documents(files, text_column, progress)))
    split_by, ranges = _split_ranges(lengths, validation_share, test_share)

    with _whole_or_not_at_all(folder) as unfinished:
        parts = takewhile(lambda part: part[0] == "train", _parts(_documents(files, text_column), ranges))
        texts = _reported(parts, "training the tokenizer", len(ranges["train"]), progress)
        tokenizer = train_tokenizer((text for _, text in texts), vocab_size)
        (unfinished / TOKENIZER_FILE).write_text(tokenizer.to_str(pretty=True), encoding="utf-8")

        splits = {}
        parts = _reported(_parts(_documents(files, text_column), ranges), "encoding", sum(lengths), progress)
        for split, group in groupby(parts, key=lambda part: part[0]):
            blocks = encode_documents(tokenizer, (text for _, text in group))
            documents, tokens = _write_tokens(unfinished / f"{split}.arrow", blocks, vocab_size)
            splits[split] = SplitInfo(documents=documents, characters=len(ranges[split]), tokens=tokens)

        made = CorpusInfo(
            **dict(settings),
            split_by=split_by,
            splits=splits,
            files=tuple(_file_info(path) for path in sorted(unfinished.iterdir())),
        )
        (unfinished / INFO_FILE).write_bytes(_info_to_json(made))
    return made


def open_corpus(folder: Path) -> Corpus:
    """Open a corpus. Raises UsageError if there is none, or naming a file that is missing or damaged."""
    info = _read_info(folder)
    for file in info.files:
        path = folder / file.name
        if not path.is_file():
            raise _damaged(path, "it is missing")
        if path.stat().st_size != file.size:
            raise _damaged(path, f"it has {path.stat().st_size} bytes, {INFO_FILE} says {file.size}")
    splits = {split: _map_tokens(folder / f"{split}.arrow", info.splits[split].tokens) for split in SPLITS}
    return Corpus(folder, info, load_tokenizer(folder / TOKENIZER_FILE), splits)


# ---- settings, and a folder that exists ----------------------------------------------------------------------


def _settings(
    files: Sequence[Path], vocabulary_size: int, text_column: str, validation_share: float, test_share: float
) -> CorpusSettings:
    check_vocabulary_size(vocabulary_size)
    if not (validation_share >= 0 and test_share >= 0 and validation_share + test_share < 1):
        raise UsageError(
            f"The shares {validation_share} for validation and {test_share} for test leave no text to learn "
            "from; they must be at least 0 and together less than 1."
        )
    check_files(files)
    return CorpusSettings(
        sources=tuple(map(_file_info, files)),
        vocabulary_size=vocabulary_size,
        text_column=text_column,
        validation_share=validation_share,
        test_share=test_share,
    )


def _file_info(path: Path) -> FileInfo:
    try:
        return FileInfo(name=path.name, size=path.stat().st_size, sha256=sha256_of(path))
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror}.") from None


def _made_already(folder: Path, settings: CorpusSettings) -> CorpusInfo | None:
    """The corpus in `folder` if its settings are these, None if nothing is there; UsageError otherwise."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    if not (folder / INFO_FILE).is_file():
        raise UsageError(f"{folder} exists and is no corpus; nothing was written over. Choose another --out.")
    made = open_corpus(folder).info
    other = [name for name in CorpusSettings.model_fields if getattr(made, name) != getattr(settings, name)]
    if other:
        names = " and ".join(name.replace("_", " ") for name in other)
        raise UsageError(
            f"{folder} is a corpus already, made with other {names}; nothing was written over. Choose another "
            "--out."
        )
    return made


# ---- documents and splits ------------------------------------------------------------------------------------


def _documents(
    files: Sequence[Path], text_column: str, progress: OnProgress = lambda phase, share: None
) -> Iterator[str]:
    for number, path in enumerate(files):
        progress("reading", number / len(files))
        yield from read_documents(path, text_column)


def _split_ranges(
    lengths: Sequence[int], validation_share: float, test_share: float
) -> tuple[Literal["documents", "position"], dict[str, range]]:
    """Which characters belong to which split, counted through all documents in order."""
    total = sum(lengths)
    if len(lengths) < 3:
        test = min(int(total * (1 - test_share)), total - 1)
        validation = min(int(test - total * validation_share), test - 1)
        return "position", _ranges(validation, test, total)
    begins = np.cumsum([0, *lengths[:-1]])

    def last_begin_before(character: float, first: int, last: int) -> int:
        return int(np.clip(np.searchsorted(begins, character, side="right") - 1, first, last))

    test = last_begin_before(total * (1 - test_share), 2, len(lengths) - 1)
    validation = last_begin_before(begins[test] - total * validation_share, 1, test - 1)
    return "documents", _ranges(int(begins[validation]), int(begins[test]), total)


def _ranges(validation: int, test: int, total: int) -> dict[str, range]:
    return {"train": range(validation), "validation": range(validation, test), "test": range(test, total)}


def _parts(documents: Iterable[str], ranges: Mapping[str, range]) -> Iterator[tuple[str, str]]:
    """Yield every document with the name of its split; one that a split's end cuts, in its parts."""
    begin = 0
    for text in documents:
        for split, characters in ranges.items():
            part = text[max(characters.start - begin, 0) : max(characters.stop - begin, 0)]
            if part:
                yield split, part
        begin += len(text)
    if begin != ranges["test"].stop:
        raise UsageError("The files were changed while they were being read; prepare the corpus again.")


def _reported(
    parts: Iterable[tuple[str, str]], phase: str, characters: int, progress: OnProgress
) -> Iterator[tuple[str, str]]:
    """The same parts; `progress` hears of every thousandth of the characters that has gone by."""
    done, permille = 0, -1
    for split, text in parts:
        yield split, text
        done += len(text)
        if done * 1000 // characters > permille:
            permille = done * 1000 // characters
            progress(phase, done / characters)


# ---- files ---------------------------------------------------------------------------------------------------


@contextmanager
def _whole_or_not_at_all(folder: Path) -> Iterator[Path]:
    """Yield an empty folder which becomes `folder` if all goes well, and goes away otherwise."""
    target = folder.absolute()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-")
    except OSError as error:
        raise UsageError(f"{folder} can't be made: {error.strerror}. Choose another --out.") from None
    with beside as name:
        unfinished = Path(name) / "corpus"
        unfinished.mkdir()
        yield unfinished
        for path in unfinished.iterdir():
            sync_file(path)
        sync_folder(unfinished)
        try:
            os.rename(unfinished, target)  # refuses a folder that holds anything
        except OSError:
            raise UsageError(
                f"{folder} was made by someone else meanwhile; nothing was written over."
            ) from None
        sync_folder(target.parent)


def _write_tokens(path: Path, blocks: Iterable[NDArray[np.uint32]], vocabulary_size: int) -> tuple[int, int]:
    """Write a split; how many documents and tokens it has.

    One record batch needs its length first, so the tokens go to a plain file before, and are mapped from there.
    """
    kind = np.dtype(np.uint16 if vocabulary_size <= UINT16_VOCABULARY_MAX else np.uint32)
    plain = path.with_suffix(".partial")
    documents = tokens = 0
    with open(plain, "wb") as file:
        for block in blocks:
            file.write(block.astype(kind).tobytes())
            documents += int(np.count_nonzero(block == END_OF_TEXT_ID))
            tokens += block.size
    field = pa.field("tokens", pa.from_numpy_dtype(kind), nullable=False)
    with pa.memory_map(str(plain)) as source:
        column = pa.Array.from_buffers(field.type, tokens, [None, source.read_buffer()])
        batch = pa.record_batch([column], schema=pa.schema([field]))
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)
    plain.unlink()
    return documents, tokens


def _map_tokens(path: Path, length: int) -> Tokens:
    try:
        with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as reader:
            batch = reader.get_batch(0)
            tokens: Tokens = batch.column("tokens").to_numpy(zero_copy_only=True)
    except (pa.ArrowException, KeyError, OSError) as error:
        raise _damaged(path, str(error)) from None
    if tokens.dtype not in (np.uint16, np.uint32) or tokens.size != length:
        raise _damaged(path, f"it has {tokens.size} tokens of {tokens.dtype}, {INFO_FILE} says {length}")
    return tokens


def _info_to_json(info: CorpusInfo) -> bytes:
    body: dict[str, Any] = info.model_dump(mode="json")
    checksum = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps({**body, "sha256": checksum}, indent=2).encode() + b"\n"


def _read_info(folder: Path) -> CorpusInfo:
    path = folder / INFO_FILE
    if not path.is_file():
        raise UsageError(f"{folder} is no corpus: it has no {INFO_FILE}. Make one with `pkm data prepare`.")
    content = path.read_bytes()
    try:
        body = json.loads(content)
        del body["sha256"]
        info = CorpusInfo.model_validate(body)
        intact = _info_to_json(info) == content
    except (ValueError, KeyError, TypeError, RecursionError):
        intact = False
    if not intact:
        raise _damaged(path, "it is not as it was written")
    return info


def _damaged(path: Path, why: str) -> UsageError:
    return UsageError(f"{path} is damaged: {why}. Delete its folder and prepare the corpus again.")
