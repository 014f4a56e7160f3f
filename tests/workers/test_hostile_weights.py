"""Dense parts of a cut that nobody would write: none is opened as a pickle, none is given the memory that it asks for."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch

from memory_store.errors import CutError
from tests.memory_store.test_cut_attacks import Trap
from workers.dense_state import load_optimizer, load_weights


def test_dense_parts_that_are_pickles_are_not_opened(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    path = tmp_path / "dense.safetensors"
    hostile = [
        pickle.dumps(Trap(tmp_path / "trap")),
        (1 << 62).to_bytes(8, "little") + b"{}",
        b"",
        b"\xff" * 4096,
    ]
    header = json.dumps(
        {"weight": {"dtype": "F32", "shape": [1 << 40, 4], "data_offsets": [0, 1 << 44]}}
    ).encode()
    hostile.append(len(header).to_bytes(8, "little") + header)
    for payload in hostile:
        path.write_bytes(payload)
        with pytest.raises(CutError):
            load_weights(path, model)
        with pytest.raises(CutError):
            load_optimizer(path, model, torch.optim.Adam(model.parameters()))
    assert not (tmp_path / "trap").exists()
