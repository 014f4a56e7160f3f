"""The tokens of a corpus part by part: encoded by several processes, kept one file a part, so that nothing is done twice.

A part is a run of pieces of one split (tokenizer.py), of PART_CHARACTERS characters or little more: what it holds is a
function of the text alone. Its file SPLIT-NUMBER.tokens, uint32, is written under another name, brought to the disk and
renamed: if it is there, it is whole. So neither the number of processes nor a kill on the way changes what comes out.

One process reads, the others encode; at most PARTS_WAITING parts for each of them are in memory.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import chain, groupby, islice
from operator import itemgetter
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import Tokenizer

from memory_store.durable_files import replace_file
from memory_store.errors import PkmError
from workers.tokenizer import encode_pieces, load_tokenizer, marked_pieces

PART_CHARACTERS = 1 << 22
PARTS_WAITING = 2
PARTS_FORMAT = f"parts of {PART_CHARACTERS} characters, tokenizers {tokenizers.__version__}"
"""Parts of another format are not gone on from."""


@dataclass(frozen=True)
class Part:
    """Some pieces of a split, in order; an empty one ends a document."""

    name: str
    pieces: tuple[str, ...]


def parts_of(texts: Iterable[tuple[str, str]]) -> Iterator[Part]:
    """The parts of documents that come with the names of their splits, in order."""
    for split, group in groupby(texts, key=itemgetter(0)):
        marked = marked_pieces(text for _, text in group)
        number = 0
        while pieces := tuple(_up_to(PART_CHARACTERS, marked)):
            yield Part(f"{split}-{number:06}.tokens", pieces)
            number += 1


def encode_parts(parts: Iterable[Part], folder: Path, tokenizer: Path, processes: int) -> None:
    """Write the file of every part into `folder`, but for those that are there. A single part is encoded here."""
    parts = (part for part in parts if not (folder / part.name).exists())
    first = list(islice(parts, 2))
    parts = chain(first, parts)
    if processes == 1 or len(first) < 2:
        loaded = load_tokenizer(tokenizer)
        for part in parts:
            _encode_part(loaded, part, folder)
        return
    # Started anew, not forked: libraries here may hold locks of other threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, _begin_process, (tokenizer, folder)) as pool:
        running: deque[Future[None]] = deque()
        try:
            for part in parts:
                if len(running) == PARTS_WAITING * processes:
                    running.popleft().result()
                running.append(pool.submit(_encode_in_process, part))
            for future in running:
                future.result()
        except BrokenProcessPool:
            raise PkmError(
                "A process that encoded text was killed, perhaps for want of memory; run the same command again, with "
                "fewer --processes: it goes on from what is done."
            ) from None
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def tokens_of_parts(folder: Path, split: str) -> Iterator[NDArray[np.uint32]]:
    """The tokens of a split, part by part."""
    for path in sorted(folder.glob(f"{split}-*.tokens")):
        yield np.fromfile(path, dtype=np.uint32)


def _up_to(characters: int, pieces: Iterator[str]) -> Iterator[str]:
    """The next pieces, until they have so many characters."""
    taken = 0
    while taken < characters and (piece := next(pieces, None)) is not None:
        taken += len(piece)
        yield piece


def _encode_part(tokenizer: Tokenizer, part: Part, folder: Path) -> None:
    blocks = [block.tobytes() for block in encode_pieces(tokenizer, part.pieces)]
    replace_file(folder / part.name, b"".join(blocks))


class _Process:
    """What an encoding process keeps."""

    tokenizer: Tokenizer
    folder: Path


def _begin_process(tokenizer: Path, folder: Path) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread a process
    _Process.tokenizer, _Process.folder = load_tokenizer(tokenizer), folder
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent tells nobody; its processes would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _encode_in_process(part: Part) -> None:
    _encode_part(_Process.tokenizer, part, _Process.folder)
