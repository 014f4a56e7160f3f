"""A corpus: text as the model reads it, in a folder that is written once and never changed.

  corpus.json       what the corpus was made of and how, and the size and SHA-256 of every other file; its
                    last key is its own checksum
  tokenizer.json    the tokenizer, learned from the training text alone (tokenizer.py)
  train.arrow, validation.arrow, test.arrow
                    the tokens of each document and an end-of-text token, document after document in the order
                    of the files (token_files.py); the last documents are those held out (splits.py)

A folder is made beside its final place, brought to the disk and renamed: it is there whole or not at all, and
nothing is ever written over. The same files and settings give the same bytes, whatever the number of processes, and
also where a first attempt was killed: the next goes on from the parts that it finished (corpus_parts.py). Text streams
through; memory is bounded by the longest document and the tokenizer's table of distinct words, not by the corpus.
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict
from tokenizers import Tokenizer

from memory_store.durable_files import replace_file, sha256_of
from memory_store.errors import UsageError
from workers.corpus_parts import PARTS_FORMAT, encode_parts, parts_of, tokens_of_parts
from workers.documents import check_files, read_documents
from workers.splits import SPLITS, SplitBy, split_documents, split_ranges
from workers.token_files import Tokens, map_tokens, write_tokens
from workers.tokenizer import (
    END_OF_TEXT_ID,
    check_vocabulary_size,
    load_tokenizer,
    train_tokenizer,
)
from workers.whole_folder import PARTS, resumable_folder

Content = TypeVar("Content")

INFO_FILE = "corpus.json"
TOKENIZER_FILE = "tokenizer.json"

OnProgress = Callable[[str, float], None]
"""Called with what is being done and the share of it that is done."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileInfo(_Record):
    """A file's name without its folder, its size in bytes, and their SHA-256."""

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
    tokenizer_sha256: str | None = None
    """Of the tokenizer that was taken from another corpus."""


class CorpusInfo(CorpusSettings):
    """The content of corpus.json but for its checksum."""

    format: Literal[1] = 1
    end_of_text: int = END_OF_TEXT_ID
    split_by: SplitBy
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
        """The tokens [T] of a split, uint16 or uint32, read-only; from the disk only where they are used."""
        if split not in self.splits:
            raise UsageError(f"There is no split {split!r}; a corpus has {', '.join(self.splits)}.")
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
    vocab_size: int | None = None,
    tokenizer_of: Path | None = None,
    text_column: str = "text",
    validation_share: float = 0.02,
    test_share: float = 0.04,
    processes: int | None = None,
    on_progress: OnProgress | None = None,
) -> CorpusInfo:
    """Make the corpus `folder` out of text files; one already made of the same is left as it is.

    A tokenizer of `vocab_size` tokens is learned, or that of the corpus `tokenizer_of` is taken. The shares are of the
    characters; `processes` encode, by default as many as there are cores. Raises UsageError for files or settings that
    can't be used, and if `folder` holds anything else or another process is making it.
    """
    progress = on_progress or (lambda phase, share: None)
    taken = None
    if tokenizer_of is not None:
        source = open_corpus(tokenizer_of)
        taken, vocab_size = source.tokenizer, source.info.vocabulary_size
    if vocab_size is None:
        raise UsageError("Say how many tokens the vocabulary has, or name a corpus whose tokenizer to take.")
    settings = _settings(files, vocab_size, text_column, validation_share, test_share, taken)
    if made := _made_already(folder, settings):
        progress("prepared already", 1.0)
        return made
    lengths = array("q", map(len, _documents(files, text_column, progress)))
    split_by, ranges = split_ranges(lengths, validation_share, test_share)

    def texts(phase: str, characters: int) -> Iterator[tuple[str, str]]:
        return _reported(_texts(files, text_column, ranges), phase, characters, progress)

    purpose = settings.model_dump_json() + PARTS_FORMAT
    with resumable_folder(folder, purpose.encode()) as unfinished:
        tokenizer = unfinished / TOKENIZER_FILE
        if not tokenizer.exists():
            if taken is None:
                training = takewhile(_is_training, texts("training the tokenizer", len(ranges["train"])))
                taken = train_tokenizer((text for _, text in training), vocab_size)
            replace_file(tokenizer, taken.to_str(pretty=True).encode())
        parts = parts_of(texts("encoding", sum(lengths)))
        encode_parts(parts, unfinished / PARTS, tokenizer, processes or len(os.sched_getaffinity(0)))
        for split in SPLITS:
            blocks = tokens_of_parts(unfinished / PARTS, split)
            write_tokens(unfinished / tokens_file(split), blocks, vocab_size)
        info = CorpusInfo(
            **dict(settings),
            split_by=split_by,
            splits={split: _split_info(unfinished / tokens_file(split), ranges[split]) for split in SPLITS},
            files=tuple(
                _file_info(unfinished / name) for name in sorted([TOKENIZER_FILE, *map(tokens_file, SPLITS)])
            ),
        )
        (unfinished / INFO_FILE).write_bytes(_info_to_json(info))
    return info


def open_corpus(
    folder: Path, splits: Sequence[str] = SPLITS, *, tokenizer: Tokenizer | None = None
) -> Corpus:
    """Open a corpus with some of its splits: the files of others may be elsewhere.

    Raises UsageError if there is none, or naming a file that is missing or damaged; with `tokenizer`, also if the corpus
    was made with another one.
    """
    info = read_corpus_info(folder)
    needed = {TOKENIZER_FILE, *map(tokens_file, splits)}
    for file in info.files:
        if file.name not in needed:
            continue
        path = folder / file.name
        if not path.is_file():
            raise _damaged(path, "it is missing")
        if path.stat().st_size != file.size:
            raise _damaged(path, f"it has {path.stat().st_size} bytes, {INFO_FILE} says {file.size}")
    own = _open(folder / TOKENIZER_FILE, load_tokenizer)
    if tokenizer is not None and tokenizer.to_str() != own.to_str():
        raise UsageError(
            f"{folder} was made with another tokenizer than the run's; prepare the text again with that of the run's "
            "corpus: pkm data prepare FILES... --tokenizer CORPUS --out FOLDER"
        )
    opened = {split: _open(folder / tokens_file(split), map_tokens) for split in splits}
    return Corpus(folder, info, own, opened)


def tokens_file(split: str) -> str:
    """The name of the file with the tokens of a split."""
    return f"{split}.arrow"


def _settings(
    files: Sequence[Path],
    vocabulary_size: int,
    text_column: str,
    validation_share: float,
    test_share: float,
    tokenizer: Tokenizer | None,
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
        tokenizer_sha256=hashlib.sha256(tokenizer.to_str().encode()).hexdigest() if tokenizer else None,
    )


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
            f"{folder} is a corpus made with other {names}; nothing was written over. Choose another --out."
        )
    return made


def _documents(
    files: Sequence[Path], text_column: str, progress: OnProgress = lambda phase, share: None
) -> Iterator[str]:
    for number, path in enumerate(files):
        progress("reading", number / len(files))
        yield from read_documents(path, text_column)


def _texts(files: Sequence[Path], text_column: str, ranges: Mapping[str, range]) -> Iterator[tuple[str, str]]:
    return split_documents(_documents(files, text_column), ranges)


def _is_training(part: tuple[str, str]) -> bool:
    return part[0] == "train"


def _reported(
    parts: Iterable[tuple[str, str]], phase: str, characters: int, progress: OnProgress
) -> Iterator[tuple[str, str]]:
    """The same parts; `progress` hears of every thousandth of the characters that has gone by."""
    progress(phase, 0.0)
    done, permille = 0, 0
    for split, text in parts:
        yield split, text
        done += len(text)
        if done * 1000 // characters > permille:
            permille = done * 1000 // characters
            progress(phase, done / characters)


def _file_info(path: Path) -> FileInfo:
    try:
        return FileInfo(name=path.name, size=path.stat().st_size, sha256=sha256_of(path))
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror}.") from None


def _split_info(path: Path, characters: range) -> SplitInfo:
    tokens = map_tokens(path)
    documents = tokens.size - int(np.count_nonzero(tokens))  # the end of text is token 0
    return SplitInfo(documents=documents, characters=len(characters), tokens=tokens.size)


def _info_to_json(info: CorpusInfo) -> bytes:
    body: dict[str, Any] = info.model_dump(mode="json", exclude_none=True)
    checksum = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps({**body, "sha256": checksum}, indent=2).encode() + b"\n"


def read_corpus_info(folder: Path) -> CorpusInfo:
    """What corpus.json says. Raises UsageError if there is none, or if it is damaged."""
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


def _open(path: Path, read: Callable[[Path], Content]) -> Content:
    try:
        return read(path)
    except ValueError as error:
        raise _damaged(path, str(error)) from None


def _damaged(path: Path, why: str) -> UsageError:
    return UsageError(f"{path} is damaged: {why}. Delete its folder and prepare the corpus again.")
