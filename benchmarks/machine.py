"""The machine a benchmark ran on: figures from elsewhere mean nothing beside it."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field

from service.doctor.memory import group_limit

_PACKAGES = (
    *("torch", "triton", "numba", "numpy", "ray", "grpcio", "pyarrow", "protobuf"),
    *("fbgemm-gpu-cpu", "product-key-memory"),
)


class Gpu(BaseModel):
    """The GPU that torch takes first."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    compute_capability: str
    memory_gib: float
    driver: str
    cuda: str


class Machine(BaseModel):
    """Processor, memory, versions, and how busy the machine was when the benchmark began; its GPU, if it has one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpu: str
    cores: int
    memory_gib: float
    last_level_cache_mib: float | None
    huge_pages: str
    kernel: str
    python: str
    versions: dict[str, str]
    load_average: float
    gpu: Gpu | None = Field(default=None, exclude_if=lambda gpu: gpu is None)


def this_machine() -> Machine:
    return Machine(
        cpu=_field("/proc/cpuinfo", "model name") or platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(total_bytes() / 2**30, 1),
        last_level_cache_mib=_last_level_cache_mib(),
        huge_pages=f"private {_huge_pages('enabled')}, shared {_huge_pages('shmem_enabled')}",
        kernel=platform.release(),
        python=platform.python_version(),
        versions={name: found for name in _PACKAGES if (found := _installed(name))},
        load_average=round(os.getloadavg()[0], 2),
        gpu=_gpu(),
    )


def total_bytes() -> int:
    """Memory of this machine."""
    return _field_kib("/proc/meminfo", "MemTotal") * 1024


def available_bytes(root: Path = Path("/")) -> int:
    """Memory that can be taken now without swapping, also under the limit of the control group that this process is in."""
    free = _field_kib(f"{root}/proc/meminfo", "MemAvailable") * 1024
    limit = group_limit(root)
    return free if limit is None else min(free, limit[0] - limit[1])


def resident_bytes(process_id: int) -> int:
    """Memory of a process that lies in RAM now."""
    return _field_kib(f"/proc/{process_id}/status", "VmRSS") * 1024


def _gpu() -> Gpu | None:
    if not torch.cuda.is_available():
        return None
    found = torch.cuda.get_device_properties(0)
    return Gpu(
        name=found.name,
        compute_capability=f"{found.major}.{found.minor}",
        memory_gib=round(found.total_memory / 2**30, 1),
        driver=_driver(),
        cuda=torch.version.cuda or "unknown",
    )


def _driver(module: Path = Path("/proc/driver/nvidia/version")) -> str:
    """The version of NVIDIA's driver, as the kernel's module says it, or where that is hidden, nvidia-smi."""
    if module.is_file() and (
        found := re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", module.read_text(encoding="utf-8"))
    ):
        return found[1]
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True, timeout=30
        ).stdout.split()
    except (OSError, subprocess.SubprocessError):
        told = []
    return told[0] if told else "unknown"


def _field(path: str, name: str) -> str:
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def _field_kib(path: str, name: str) -> int:
    return int(_field(path, name).removesuffix(" kB"))


def _last_level_cache_mib() -> float | None:
    caches = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    sizes = [int(path.read_text().strip().removesuffix("K")) / 1024 for path in caches]
    return max(sizes, default=None)


def _huge_pages(setting: str) -> str:
    """What Linux does for large pages: the word in brackets."""
    path = Path("/sys/kernel/mm/transparent_hugepage") / setting
    words = path.read_text(encoding="utf-8") if path.is_file() else "[unknown]"
    return words.partition("[")[2].partition("]")[0]


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
