"""What a device and its bus reach when nothing else is asked of them: the ceilings of kernels and transfers.

A copy on the device; a large product of matrices in float32, TF32 and bfloat16; copies from and to page-locked memory of the
host. Beside the last, the same bytes by workers/gpu/transfers.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.cases import Cases
from benchmarks.device_clock import seconds_on
from workers.gpu.transfers import transfers


@dataclass(frozen=True)
class Ceilings:
    """Medians: bytes read and written by a copy, and multiplications and additions of products, each per second."""

    copy: float
    float32: float
    tf32: float


def measure_ceilings(
    cases: Cases, device: torch.device, copy_bytes: int, matrix: int, repeats: int
) -> Ceilings:
    """Copies of `copy_bytes`, products of two square matrices of `matrix` rows."""

    def rate(what: str, unit: str, amount: int, work: Callable[[], object], **case: str) -> float:
        seconds = [seconds_on(device, work) for _ in range(repeats + 1)][1:]
        scale = {"GB/s": 1e9, "TFLOP/s": 1e12}[unit]
        found = cases.recorder.add(what, unit, [amount / second / scale for second in seconds], **case)
        return found.median * scale

    source = torch.randn(copy_bytes // 4, device=device)
    target = torch.empty_like(source)
    copied = rate("ceiling", "GB/s", 2 * copy_bytes, lambda: target.copy_(source), of="copy on the device")
    operations: dict[str, float] = {}
    for name, dtype, precision in (
        ("float32", torch.float32, "highest"),
        ("tf32", torch.float32, "high"),
        ("bfloat16", torch.bfloat16, "highest"),
    ):
        square = torch.randn(matrix, matrix, device=device).to(dtype)
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(precision)
        try:
            operations[name] = rate(
                "ceiling",
                "TFLOP/s",
                2 * matrix**3,
                lambda square=square: square @ square,
                of=f"{name} product",
            )
        finally:
            torch.set_float32_matmul_precision(before)

    on_gpu = device.type == "cuda"
    on_host = torch.empty(copy_bytes // 4, pin_memory=on_gpu)

    def across(what: str, to_device: Callable[[], object], to_host: Callable[[], object]) -> None:
        rate(what, "GB/s", copy_bytes, to_device, of="host to device")
        rate(what, "GB/s", copy_bytes, to_host, of="device to host")

    def ceilings_of_bus() -> None:
        across(
            "ceiling",
            lambda: target.copy_(on_host, non_blocking=True),
            lambda: on_host.copy_(source, non_blocking=True),
        )

    def our_transfers() -> None:
        copies = transfers(device)
        array = copies.to_host(source)()[0]
        across("transfers", lambda: copies.to_device(array), lambda: copies.to_host(source)())

    cases.run("ceilings of the bus", ceilings_of_bus)
    if on_gpu:
        cases.run("transfers", our_transfers)
    else:
        cases.recorder.missing("transfers", "on a CPU nothing is copied")
    return Ceilings(copied, operations["float32"], operations["tf32"])
