"""Token files: the tokens of a split as one array that is mapped into memory, of any size.

An Arrow IPC file with one column `tokens`, uint16, or uint32 if the vocabulary has more than 65536 tokens.
It has exactly one record batch, because a batch is one block of bytes and so one array.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

UINT16_VOCABULARY_MAX = 1 << 16

Tokens = NDArray[np.uint16] | NDArray[np.uint32]


def write_tokens(path: Path, blocks: Iterable[NDArray[np.uint32]], vocabulary_size: int) -> None:
    """Write the tokens of all blocks, in order, to `path`.

    A record batch begins with its length, which is known only in the end: until then the tokens go to a plain
    file, whose bytes are then mapped and written as the batch.
    """
    kind = np.dtype(np.uint16 if vocabulary_size <= UINT16_VOCABULARY_MAX else np.uint32)
    plain = path.with_suffix(".partial")
    with open(plain, "wb") as file:
        for block in blocks:
            file.write(block.astype(kind).tobytes())
    field = pa.field("tokens", pa.from_numpy_dtype(kind), nullable=False)
    with pa.memory_map(str(plain)) as source:
        content = source.read_buffer()
        column = pa.Array.from_buffers(field.type, content.size // kind.itemsize, [None, content])
        batch = pa.record_batch([column], schema=pa.schema([field]))
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)
    plain.unlink()


def map_tokens(path: Path) -> Tokens:
    """The tokens [T] of a file, uint16 or uint32, read-only. Raises ValueError if it is no token file."""
    try:
        with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as reader:
            if reader.num_record_batches != 1 or reader.schema.names != ["tokens"]:
                raise ValueError("it is an Arrow file, but not of tokens")
            column = reader.get_batch(0).column(0)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"it is no Arrow file ({error})") from None
    if column.type not in (pa.uint16(), pa.uint32()) or column.null_count:
        raise ValueError(f"its tokens are of type {column.type}")
    tokens: Tokens = column.to_numpy(zero_copy_only=True)
    return tokens
