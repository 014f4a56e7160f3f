"""Memory: what the machine has free, what a control group leaves of it, shared memory, and huge pages in it."""

from __future__ import annotations

import os
import re
from pathlib import Path

from service.doctor.finding import Finding, note, well, wrong

GIB = 1 << 30
FREE_MIN = 2 * GIB
SHARED_MIN = GIB
_SHARED_HUGE = Path("sys/kernel/mm/transparent_hugepage/shmem_enabled")


def check_memory(root: Path = Path("/")) -> Finding:
    """Free memory, also under the limit of the control group that this process is in (version 2, or 1)."""
    figures = dict(re.findall(r"^(\w+): +(\d+) kB", (root / "proc/meminfo").read_text(), re.MULTILINE))
    free, total = int(figures["MemAvailable"]) << 10, int(figures["MemTotal"]) << 10
    found = f"{free / GIB:.1f} of {total / GIB:.1f} GiB are free"
    limit = group_limit(root)
    if limit is not None and limit[0] < total:
        most, used = limit
        free = min(free, most - used)
        found = f"{free / GIB:.1f} GiB are free under the control group's limit of {most / GIB:.1f} GiB"
    if free >= FREE_MIN:
        return well("memory", found)
    return wrong(
        "memory", found, f"pkm needs {FREE_MIN // GIB} GiB for small jobs: end other programs, or raise the limit of the "
        "container (docker run --memory)."
    )  # fmt: skip


def group_limit(root: Path) -> tuple[int, int] | None:
    """The limit of the control group and what of it is used, in bytes; None if there is no limit."""
    groups = root / "sys/fs/cgroup"
    for most, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            text = (groups / most).read_text().strip()
            return (int(text), int((groups / used).read_text())) if text != "max" else None
        except (OSError, ValueError):
            continue
    return None


def check_shared_memory(path: Path = Path("/dev/shm")) -> Finding:
    """Room in shared memory, where Ray keeps its objects and shards their tables."""
    try:
        room = os.statvfs(path)
    except OSError as error:
        return wrong("shared memory", f"{path}: {error.strerror}", f"Mount a tmpfs at {path}.")
    size, free = room.f_blocks * room.f_frsize, room.f_bavail * room.f_frsize
    found = f"{free / GIB:.1f} of {size / GIB:.1f} GiB of {path} are free"
    if free >= SHARED_MIN:
        return well("shared memory", found)
    return wrong(
        "shared memory", found,
        f"Ray and tables need at least {SHARED_MIN // GIB} GiB there: in a container give it --shm-size=4g (compose: "
        f"shm_size), else mount -o remount,size=50% {path}; files that dead processes left may be removed.",
    )  # fmt: skip


def check_huge_pages(root: Path = Path("/")) -> Finding:
    """Whether shared memory may have huge pages, in which large tables are read faster."""
    try:
        text = (root / _SHARED_HUGE).read_text()
    except OSError:
        return note(
            "huge pages",
            "this kernel has none",
            "Tables of gigabytes are read somewhat slower; no more than that.",
        )
    chosen = re.search(r"\[(\w+)\]", text)
    name = chosen[1] if chosen else text.strip()
    if name in ("always", "advise", "within_size", "force"):
        return well("huge pages", f"shared memory: {name}")
    return note(
        "huge pages", f"shared memory: {name}",
        f"Tables of gigabytes are read faster with them: echo advise | sudo tee /{_SHARED_HUGE}",
    )  # fmt: skip
