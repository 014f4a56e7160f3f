"""The access map as a file: an Arrow IPC file with one column, a line of pixels a row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def save_access_map(path: Path, pixels: NDArray[np.float64]) -> None:
    """Write a map float64 `[side, side]` (first sub-key down, second across)."""
    side = pixels.shape[0]
    lines = pa.FixedSizeListArray.from_arrays(pa.array(pixels.reshape(-1)), side)
    batch = pa.record_batch([lines], names=["weights"])
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)


def load_access_map(path: Path) -> NDArray[np.float64]:
    """The map that `save_access_map` wrote."""
    with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as reader:
        column = reader.get_batch(0).column("weights")
        flat = column.flatten().to_numpy(zero_copy_only=True)
        return np.array(flat).reshape(len(column), -1)
