"""The GPU kernels compiled for GPUs that are not here, by the compiler that Triton brings; test_kernels.py runs these tests.

The functions of workers/gpu are called with tensors of the CPU, and every launch ends with the code for the GPU: so the
arguments are those of real launches. Nothing runs.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

with pytest.MonkeyPatch.context() as patch:
    patch.setattr(torch.cuda, "is_available", lambda: True)  # so that kernels are for Triton's compiler
    from workers.gpu import compilation
from memory_store.table_spec import OptimizerKind, OptimizerSpec
from workers.gpu import best_of_halves, pooling, selection
from workers.gpu.row_update import RowGradients, RowTensors, squared_norm, update_rows

# By compute capability: bytes of shared memory that a program may have (CUDA C++ Programming Guide).
SHARED_BYTES_MAX = {80: 163 * 1024, 90: 227 * 1024}
REGISTERS = 1 << 16  # of a multiprocessor
WARPS_MIN = 16  # that must find room on one
SPILLED_BYTES_MAX = 1536  # of a thread of _best_kernel; none for 64 columns on an H100
OF_SELECTION = {"_bound_kernel", "_best_kernel", "_pairs_kernel"}  # each sorts in registers: half as many


class AbsentGpu:
    """What Triton asks of a driver before it compiles."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_device(self) -> int:
        return int(self._target.arch)

    def get_current_stream(self, _: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self._target


@pytest.fixture(params=[80, 90], ids=["ampere", "hopper"])
def compiled(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> list[tuple[str, Any]]:
    """The kernels that were launched, by name, compiled; each looked at for what is asked of all."""
    launched: list[tuple[str, Any]] = []
    run = JITFunction.run

    def compile_only(self: Any, *arguments: Any, grid: Any, warmup: bool, **named: Any) -> None:
        made = run(self, *arguments, grid=grid, warmup=True, **named)
        assert f".target sm_{request.param}" in made.asm["ptx"]
        fits_a_gpu(made, SHARED_BYTES_MAX[request.param], tmp_path / "cubin")
        assert "f64" not in made.asm["ptx"], "a number became a float64"
        addresses_have_64_bits(made.asm["ttir"])
        launched.append((made.metadata.name, made))

    monkeypatch.setattr(compilation, "INTERPRETED", True)  # kernels are launched for tensors of the CPU
    monkeypatch.setattr(JITFunction, "run", compile_only)
    monkeypatch.setattr(driver, "_active", AbsentGpu(request.param))
    monkeypatch.setattr(best_of_halves, "_queries_stay", lambda _: request.param >= 90)
    return launched


def fits_a_gpu(made: Any, shared_bytes_max: int, file: Path) -> None:
    """No register is put away in memory, but for what SPILLED_BYTES_MAX allows, and enough programs
    find room beside each other."""
    file.write_bytes(made.asm["cubin"])
    asked = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(file)]
    told = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", told)
    assert found, told
    registers, stack, shared, local = map(int, found.groups())
    facts = f"{made.metadata.name}: {registers} registers, {made.metadata.shared} bytes shared"
    print(facts)
    room = SPILLED_BYTES_MAX if made.metadata.name == "_best_kernel" else 0
    print(f"{stack} bytes put away")
    assert local == 0, facts
    assert stack <= room, (stack, facts)
    assert max(shared, made.metadata.shared) <= shared_bytes_max, facts
    assert REGISTERS // (32 * registers) >= WARPS_MIN >> (made.metadata.name in OF_SELECTION), facts


def addresses_have_64_bits(ttir: str) -> None:
    """What is added to an address as 32 bits depends on no number that was read, and not on the first axis of the grid: so
    it is a place within a block. Tables, batches and their products may have more than 2**31 numbers."""
    made_by = dict(re.findall(r"^\s*(%[\w-]+) = (.+)$", ttir, re.M))

    def origins(name: str) -> set[str]:
        operation = made_by.get(name, "")
        return {operation.split()[0] if operation else name, operation}.union(
            *map(origins, re.findall(r"%[\w-]+", operation.split(" : ")[0]))
        )

    added = re.findall(r"= tt\.addptr %[\w-]+, (%[\w-]+) : .*[ x]i32>? loc", ttir)
    assert "tt.addptr" in ttir
    for offset in added:
        for origin in origins(offset):
            assert not origin.startswith(("tt.load", "tt.get_program_id x")), (offset, origin)


def in_blocks_of_16_bytes(made: Any) -> int:
    """How many loads and stores of 16 bytes a thread makes, as they are written."""
    return len(re.findall(r"(?:ld|st)\.global\S*\.v4\.b32", made.asm["ptx"]))


# ---- selection ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "n", "width"), [(32, 512, 64), (32, 1024, 128), (7, 70, 3)])
def test_selection_and_its_gradient(
    compiled: list[tuple[str, Any]], tmp_path: Path, k: int, n: int, width: int
) -> None:
    queries, sub_keys = torch.zeros(40, 4, 2, width), torch.zeros(4, 2, n, width, requires_grad=True)
    _, scores = selection.select(queries, sub_keys, k)
    # Nobody has written the rows; the gradients' kernels are only compiled too.
    scores.sum().backward()  # type: ignore[no-untyped-call]
    names = ["_split_kernel", "_bound_kernel", "_best_kernel", "_pairs_kernel", "_pool_kernel", "_sum_kernel"]
    assert [name for name, _ in compiled] == names
    _, (_, bound), (_, best), *_ = compiled
    for made in (bound, best):
        assert (
            "tf32" in made.asm["ptx"]
        )  # tensor cores: that the parts suffice is shown in interpreted_kernels.py
    if n == 512 and made.metadata.target.arch >= 90:
        assert max(issued_in_loop(bound, tmp_path), issued_in_loop(best, tmp_path)) < 2048


def issued_in_loop(made: Any, folder: Path) -> int:
    """Instructions of a warp from one multiplication of matrices to that of the next sub-keys, without the rare sort."""
    file = folder / "loop.cubin"
    file.write_bytes(made.asm["cubin"])
    asked = [triton.knobs.nvidia.nvdisasm.path, "-c", str(file)]
    lines = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()
    labels = {
        line.split(":")[0].strip(): number for number, line in enumerate(lines) if line.startswith(".L_x_")
    }
    first = next(number for number, line in enumerate(lines) if "HGMMA" in line)
    loops = [
        (labels[found[1]], number)
        for number, line in enumerate(lines)
        if (found := re.search(r"BRA `\((\.L_x_\d+)\)", line)) and labels[found[1]] <= first <= number
    ]
    begin, end = min(loops, key=lambda loop: loop[1] - loop[0])
    count, number = 0, begin
    while number <= end:
        count += bool(re.match(r"\s+/\*[0-9a-f]{4,}\*/", lines[number])) and "NOP" not in lines[number]
        found = re.search(r"@!?U?P\d BRA `\((\.L_x_\d+)\)", lines[number])
        ahead = labels[found[1]] if found else 0
        number = ahead if number + 500 < ahead <= end else number + 1  # over the sort
    print(f"{made.metadata.name}: {count} instructions a block of sub-keys")
    return count


# ---- pooling -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dim", [64, 256, 1024, 70])
def test_pooling_and_the_weights_gradient(
    compiled: list[tuple[str, Any]], dim: int, dtype: torch.dtype
) -> None:
    values, weights = torch.zeros(9, dim, dtype=dtype), torch.zeros(20, 128)
    rows = torch.zeros(20, 128, dtype=torch.int64)
    pooling.pool(values, rows, weights)
    pooling.weight_gradient(values, rows, torch.zeros(20, dim))
    assert [name for name, _ in compiled] == ["_pool_kernel", "_weight_gradient_kernel"]
    for _, made in compiled:
        assert made.metadata.num_warps == 1
        if dim % 16 == 0:
            assert in_blocks_of_16_bytes(made) >= pooling.TILE * values.element_size() // (16 * 32)
            # What is read 4 bytes at a time are weights, at most one for each entry.
            assert len(re.findall(r"ld\.global\.[bu]16", made.asm["ptx"])) == 0
            assert len(re.findall(r"ld\.global\.b32 ", made.asm["ptx"])) <= pooling.TILE // dim


@pytest.mark.parametrize("dim", [64, 1024])
def test_rows_are_summed_in_blocks_of_16_bytes(compiled: list[tuple[str, Any]], dim: int) -> None:
    rows = torch.zeros(20, 64, dtype=torch.int64)
    pooling.sum_by_row(50, rows, torch.zeros(20, 64), torch.zeros(20, dim))
    ((_, made),) = compiled
    assert in_blocks_of_16_bytes(made) >= 4


# ---- row update --------------------------------------------------------------------------------------------------


def updated(
    kind: OptimizerKind, dtype: torch.dtype, dim: int, *, first_address: int = 0, entries: int = 60, step: int = 5
) -> RowGradients:  # fmt: skip
    optimizer, rows = OptimizerSpec(kind), 30
    states = (torch.zeros(rows, width) for width in optimizer.state_widths(dim))
    table = RowTensors(torch.zeros(rows, dim, dtype=dtype), *states, torch.zeros(rows, dtype=torch.int32))
    several = torch.zeros(entries, dtype=torch.int64)
    gradients = RowGradients(several, several, torch.zeros(entries), torch.zeros(5, dim))
    update_rows(
        optimizer, table, gradients, step=step, learning_rate=0.1, scale=torch.ones(()), seed=step,
        first_address=first_address,
    )  # fmt: skip
    return gradients


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", get_args(OptimizerKind))
def test_row_update(compiled: list[tuple[str, Any]], kind: OptimizerKind, dtype: torch.dtype) -> None:
    squared_norm(updated(kind, dtype, 256), 30)
    (_, update), (norm_name, norm) = compiled
    assert norm_name == "_squares_kernel"
    ptx = update.asm["ptx"]
    for made in (update, norm):
        assert in_blocks_of_16_bytes(made) >= 8  # a thread has 8 columns of 4 entries' vectors
    # Divisions and roots are rounded as on the CPU.
    assert "div.full" not in ptx
    assert "approx" not in ptx
    if dtype == torch.bfloat16:
        # Random bits are unsigned: of a signed number a shift to the right would repeat the sign.
        assert update.asm["ttir"].count("arith.shrui") >= 6
        assert "arith.shrsi" not in update.asm["ttir"]


@pytest.mark.parametrize("dim", [64, 70, 1024])
def test_row_update_of_other_widths(compiled: list[tuple[str, Any]], dim: int) -> None:
    updated("adam", torch.bfloat16, dim, first_address=2**31 + 16)
    ((_, made),) = compiled
    assert made.src.signature["first_address"] == "i64"


def test_no_step_has_anything_compiled(compiled: list[tuple[str, Any]]) -> None:
    for step, entries in [(1, 1), (2, 60), (16, 64), (17, 64), (48, 33)]:
        squared_norm(updated("adam", torch.float32, 64, step=step, entries=entries), 30)
    assert len({made.hash for _, made in compiled}) == 2
