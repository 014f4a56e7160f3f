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
from workers.gpu import pooling, selection
from workers.gpu.best_of_halves import GROUPS, SUB_KEYS, TOKENS, WARPS
from workers.gpu.row_gradients import PIECE, RowGradients
from workers.gpu.row_update import RowTensors, squared_norm, update_rows

# Bytes of shared memory that a program, and all on a multiprocessor, may have, by compute capability; each program's
# takes a further 1024 (CUDA C++ Programming Guide).
SHARED_BYTES_MAX = {80: 163 * 1024, 90: 227 * 1024}
SHARED_BYTES_OF_ALL = {80: 164 * 1024, 90: 228 * 1024}
REGISTERS = 1 << 16  # of a multiprocessor
WARPS_MIN = 16  # that must find room on one
# Half as many of these: they keep their queries there as long as they last, in shared memory or, with capability 8.0, in
# registers. With k > 32 the sorts of `_pairs_kernel` take as many.
KEEP_QUERIES = ("_bound_kernel", "_best_kernel")
# With capability 8.0 a thread has 128 registers full of queries of 128 columns, and the rest doesn't suffice: some 500 bytes
# are spilled with k = 32, 1400 with k = 64.
SPILLED_BYTES_MAX = {(80, "_best_kernel", 128): 1536}


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
        fits_a_gpu(made, request.param, tmp_path / "cubin")
        assert "f64" not in made.asm["ptx"], "a number became a float64"
        addresses_have_64_bits(made.asm["ttir"])
        launched.append((made.metadata.name, made))

    monkeypatch.setattr(compilation, "INTERPRETED", True)  # kernels are launched for tensors of the CPU
    monkeypatch.setattr(JITFunction, "run", compile_only)
    monkeypatch.setattr(driver, "_active", AbsentGpu(request.param))
    return launched


def fits_a_gpu(made: Any, capability: int, file: Path) -> None:
    """No register is put away in memory, but for what SPILLED_BYTES_MAX allows, and enough programs find room beside each
    other."""
    file.write_bytes(made.asm["cubin"])
    asked = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(file)]
    told = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", told)
    assert found, told
    registers, stack, shared, local = map(int, found.groups())
    shared = max(shared, made.metadata.shared)
    name, warps = made.metadata.name, made.metadata.num_warps
    facts = f"{name}, sm_{capability}: {registers} registers, {shared} bytes shared, {stack} spilled"
    print(facts)
    assert local == 0, facts
    assert stack <= SPILLED_BYTES_MAX.get((capability, name, constant(made, "C")), 0), facts
    assert shared <= SHARED_BYTES_MAX[capability], facts
    programs = min(REGISTERS // (32 * warps * registers), SHARED_BYTES_OF_ALL[capability] // (shared + 1024))
    half_as_many = name in KEEP_QUERIES or (name == "_pairs_kernel" and constant(made, "K") > 32)
    assert programs * warps >= WARPS_MIN >> half_as_many, facts


def constant(made: Any, name: str) -> Any:
    """The value of a compiled kernel's constant, None if there is no such."""
    names = made.src.fn.arg_names
    return made.src.constants.get((names.index(name),)) if name in names else None


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


@pytest.mark.parametrize(("k", "n", "width"), [(32, 512, 64), (32, 1024, 128), (64, 512, 128), (7, 70, 3)])
def test_selection_and_its_gradient(
    compiled: list[tuple[str, Any]], tmp_path: Path, k: int, n: int, width: int
) -> None:
    queries, sub_keys = torch.zeros(40, 4, 2, width), torch.zeros(4, 2, n, width, requires_grad=True)
    _, scores = selection.select(queries, sub_keys, k)
    # Nobody has written the rows; the gradients' kernels are only compiled too.
    scores.sum().backward()  # type: ignore[no-untyped-call]
    assert [name for name, _ in compiled] == [
        "_split_kernel",
        "_split_kernel",
        "_bound_kernel",
        "_best_kernel",
        "_pairs_kernel",
        "_pool_kernel",
        "_piece_kernel",
        "_sum_kernel",
    ]
    made = dict(compiled)
    for name in ("_bound_kernel", "_best_kernel"):
        # Tensor cores: that the parts suffice is shown in interpreted_selection.py.
        assert "tf32" in made[name].asm["ptx"]
    # Threads write scratch lines, wait, read what others wrote, wait before these write there again; last come the results.
    accesses = re.findall(r"tt\.store|tt\.load|ttg\.barrier all", made["_best_kernel"].asm["ttgir"])
    assert accesses[-6:] == [
        "tt.store",
        "ttg.barrier all",
        "tt.load",
        "ttg.barrier all",
        "tt.store",
        "tt.store",
    ]
    if made["_best_kernel"].metadata.target.arch >= 90 and k == 32:
        instructions = issued_in_loop(made["_bound_kernel"], tmp_path) / GROUPS
        instructions += issued_in_loop(made["_best_kernel"], tmp_path) / SUB_KEYS
        multiplications = TOKENS * width / (32 * WARPS)
        print(f"{instructions / multiplications:.2f} instructions a multiplication, without sorts")
        # Products in float32 would take one instruction each.
        assert instructions < 0.6 * multiplications


def issued_in_loop(made: Any, folder: Path) -> int:
    """Instructions that a warp executes between one multiplication of matrices and that of the next sub-keys."""
    file = folder / "loop.cubin"
    file.write_bytes(made.asm["cubin"])
    asked = [triton.knobs.nvidia.nvdisasm.path, "-c", str(file)]
    lines = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()
    labels = {line.rstrip(":"): number for number, line in enumerate(lines) if line.startswith(".L_x_")}
    first = next(number for number, line in enumerate(lines) if "HGMMA" in line)
    begin, end = min(
        (
            (labels[jump[1]], number)
            for number, line in enumerate(lines)
            if (jump := re.search(r"BRA.* `\((\.L_x_\d+)\)", line)) and labels[jump[1]] <= first <= number
        ),
        key=lambda loop: loop[1] - loop[0],
    )
    instructions = [line for line in lines[begin : end + 1] if re.match(r"\s+/\*[0-9a-f]{4,}\*/", line)]
    print(f"{made.metadata.name}: {len(instructions)} instructions for the next sub-keys")
    return len(instructions)


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
    assert [name for name, _ in compiled] == ["_piece_kernel", "_sum_kernel"]
    for _, made in compiled:
        assert in_blocks_of_16_bytes(made) >= 4


# ---- row update --------------------------------------------------------------------------------------------------


def updated(
    kind: OptimizerKind, dtype: torch.dtype, dim: int, *, first_address: int = 0, entries: int = 60, step: int = 5
) -> RowGradients:  # fmt: skip
    optimizer, rows = OptimizerSpec(kind), 30
    states = (torch.zeros(rows, width) for width in optimizer.state_widths(dim))
    table = RowTensors(torch.zeros(rows, dim, dtype=dtype), *states, torch.zeros(rows, dtype=torch.int32))
    several = torch.zeros(entries, dtype=torch.int64)
    gradients = RowGradients(several, several, torch.zeros(entries), torch.zeros(5, dim), rows)
    update_rows(
        optimizer, table, gradients, step=step, learning_rate=0.1, scale=torch.ones(()), seed=step,
        first_address=first_address,
    )  # fmt: skip
    return gradients


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", get_args(OptimizerKind))
def test_row_update(compiled: list[tuple[str, Any]], kind: OptimizerKind, dtype: torch.dtype) -> None:
    squared_norm(updated(kind, dtype, 256))
    assert [name for name, _ in compiled] == ["_piece_kernel", "_update_kernel", "_squares_kernel"]
    update = compiled[1][1]
    ptx = update.asm["ptx"]
    for _, made in compiled:
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
    _, (_, made) = compiled
    assert made.src.signature["first_address"] == "i64"


@pytest.mark.parametrize("kind", ["rowwise_adagrad", "rowwise_adam"])
def test_no_thread_writes_what_another_has_still_to_read(
    compiled: list[tuple[str, Any]], kind: OptimizerKind
) -> None:
    """The state of a row, one number, which all threads of a program read."""
    updated(kind, torch.float32, 1024)
    _, (_, made) = compiled
    assert made.metadata.num_warps > 1
    change = r"ld\.global\.b32 \{ %r\d+ \}, \[ (%rd\d+) \+ 0 \];(.*?)st\.global\.b32 \[ \1 \+ 0 \]"
    ((_, between),) = re.findall(change, made.asm["ptx"], re.DOTALL)
    assert "bar.sync" in between


def test_no_step_has_anything_compiled(compiled: list[tuple[str, Any]]) -> None:
    for step, entries in [(1, 1), (2, 60), (16, 64), (17, 64), (48, 33), (20, 16 * PIECE)]:
        squared_norm(updated("adam", torch.float32, 64, step=step, entries=entries))
        rows = torch.zeros(entries, 3, dtype=torch.int64)
        pooling.sum_by_row(50, rows, torch.zeros(entries, 3), torch.zeros(entries, 64))
    # Of a table pieces, update and norm; of sub-keys pieces and sums.
    assert len({made.hash for _, made in compiled}) == 5
