"""The machine a benchmark ran on: figures from elsewhere mean nothing beside it."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pydantic import BaseModel, ConfigDict

_PACKAGES = (
    *("torch", "numba", "numpy", "ray", "grpcio", "pyarrow", "protobuf"),
    *("fbgemm-gpu-cpu", "product-key-memory"),
)


class Machine(BaseModel):
    """Processor, memory, versions, and how busy the machine was when the benchmark began."""

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
    )


def total_bytes() -> int:
    """Memory of this machine."""
    return _field_kib("/proc/meminfo", "MemTotal") * 1024


def available_bytes() -> int:
    """Memory that can be taken now without swapping."""
    return _field_kib("/proc/meminfo", "MemAvailable") * 1024


def resident_bytes(process_id: int) -> int:
    """Memory of a process that lies in RAM now."""
    return _field_kib(f"/proc/{process_id}/status", "VmRSS") * 1024


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
