"""Token files: the same numbers back, mapped and read-only, and damage that does not crash the reader."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.token_files import map_tokens, write_tokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokens")


@given(blocks=st.lists(st.lists(st.integers(0, 2**16 - 1), min_size=1), min_size=1), wide=st.booleans())
def test_blocks_become_one_array(blocks: list[list[int]], wide: bool, folder: Path) -> None:
    path = folder / "a.arrow"
    vocabulary = 2**16 + 1 if wide else 2**16
    write_tokens(path, [np.array(block, np.uint32) for block in blocks], vocabulary)
    tokens = map_tokens(path)
    assert tokens.dtype == (np.uint32 if wide else np.uint16)
    assert tokens.tolist() == [token for block in blocks for token in block]
    assert not tokens.flags.writeable
    assert [entry.name for entry in folder.iterdir()] == ["a.arrow"]


def test_large_numbers_survive(tmp_path: Path) -> None:
    write_tokens(tmp_path / "a.arrow", [np.array([0, 70_000, 2**32 - 1], np.uint32)], 2**32)
    assert map_tokens(tmp_path / "a.arrow").tolist() == [0, 70_000, 2**32 - 1]


def test_tokens_are_mapped_not_read(tmp_path: Path) -> None:
    before = pa.total_allocated_bytes()
    write_tokens(tmp_path / "a.arrow", (np.full(1 << 16, 7, np.uint32) for _ in range(64)), 258)
    tokens = map_tokens(tmp_path / "a.arrow")
    assert tokens.size == 1 << 22
    assert pa.total_allocated_bytes() - before < 1 << 20


def test_flipped_bytes_and_torn_files_are_read_or_refused_but_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"
    write_tokens(path, [np.arange(8, dtype=np.uint32)], 300)
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        with contextlib.suppress(ValueError):
            map_tokens(path).sum()
    for length in range(0, len(content), 3):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="no Arrow file"):
            map_tokens(path)


@pytest.mark.parametrize(
    "table",
    [
        pa.table({"token": pa.array([1], pa.uint16())}),
        pa.table({"tokens": pa.array([1], pa.int64())}),
        pa.table({"tokens": pa.array([1, None], pa.uint16())}),
        pa.table({"tokens": pa.chunked_array([[1], [2]], pa.uint16())}),
    ],
)
def test_other_arrow_files_are_refused(table: pa.Table, tmp_path: Path) -> None:
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(ValueError, match="of t"):
        map_tokens(tmp_path / "a.arrow")
