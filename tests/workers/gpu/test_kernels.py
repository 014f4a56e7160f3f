"""The GPU kernels' logic, by Triton's interpreter; and what remains where there is neither Triton nor a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from workers.gpu import pooling, row_update, selection
from workers.gpu.compilation import kernels_run_on


def run_in_a_process(tests: str, **environment: str) -> None:
    # Whether Triton interprets is decided when it is imported, for the whole process.
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(Path(__file__).with_name(tests))],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("tests", ["interpreted_kernels.py", "interpreted_selection.py"])
def test_kernels_under_the_interpreter(tests: str) -> None:
    run_in_a_process(tests, TRITON_INTERPRET="1")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_kernels_compile_for_gpus_that_are_not_here(tmp_path: Path) -> None:
    run_in_a_process("kernels_for_gpus.py", TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))


def test_without_triton_the_references_run() -> None:
    program = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch\n"
        "torch.cuda.is_available = lambda: True\n"
        "from workers.gpu import selection\n"
        "rows, scores = selection.select(torch.ones(2, 1, 2, 4), torch.eye(4).repeat(1, 2, 1, 1), 2)\n"
        "assert rows.tolist() == [[[0, 1]], [[0, 1]]], rows\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_without_a_gpu_triton_is_not_even_imported() -> None:
    program = "import sys, workers.gpu.selection; sys.exit('triton' in sys.modules)"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    assert subprocess.run([sys.executable, "-c", program], env=environment, check=False).returncode == 0
    if not torch.cuda.is_available() and "TRITON_INTERPRET" not in os.environ:
        assert not kernels_run_on(torch.device("cpu"))


def test_floors_count_every_byte_once() -> None:
    queries, sub_keys = torch.zeros(10, 2, 2, 8), torch.zeros(2, 2, 50, 8)
    rows, scores = selection.select(queries, sub_keys, 4)
    read_and_written = sum(
        tensor.numel() * tensor.element_size() for tensor in (queries, sub_keys, rows, scores)
    )
    assert selection.floor_bytes(10, 2, 50, 8, 4) == read_and_written
    assert pooling.pooling_floor_bytes(10, 4, 8) == 10 * 4 * (8 * 4 + 8 + 4) + 10 * 8 * 4
    assert row_update.floor_bytes(6, 3, 8, 16) == 6 * (8 * 4 + 8 + 8 + 8) + 3 * (2 * 8 * 4 + 2 * 16 * 4 + 4)
