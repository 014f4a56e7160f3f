"""The machine: processor, accelerator, disk, limits of the operating system, ports."""

from __future__ import annotations

import os
import re
import resource
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from service.doctor.finding import Finding, note, well, wrong

FILES_MIN = 4096
FSYNC_SLOW_S = 0.05
DISK_FREE_MIN = 5 << 30
_ROUNDS = 12
_BLOCK = 4096


def check_processor(root: Path = Path("/")) -> Finding:
    """Cores, and the vector instructions that the kernels are compiled to."""
    cores = len(os.sched_getaffinity(0))
    text = (root / "proc/cpuinfo").read_text()
    flags = set(" ".join(re.findall(r"^(?:flags|Features)\s*: (.*)$", text, re.MULTILINE)).split())
    known = [name for name in ("avx512f", "avx2", "asimd") if name in flags]
    found = f"{cores} cores, {known[0] if known else 'no known vector instructions'}"
    if not known:
        return note(
            "processor", found, "Kernels run, but slowly; on a virtual machine, pass the host's processor on."
        )
    if cores < 2:
        return note(
            "processor", found, "Trainer and shards take turns on one core; give the machine two or more."
        )
    return well("processor", found)


def check_accelerator(
    devices: Callable[[], tuple[int, str]] | None = None, driver: Path = Path("/proc/driver/nvidia/version")
) -> Finding:
    """GPUs that PyTorch can use; one that the machine has and PyTorch can't is wrong."""
    count, names = (devices or _devices)()
    if count:
        return well("accelerator", f"{count} ({names})")
    if driver.exists():
        return wrong(
            "accelerator", "there is an NVIDIA driver, and PyTorch finds no GPU",
            "Install PyTorch's CUDA build (deploy/requirements-cuda.lock); in a container, pass the GPUs on (--gpus all).",
        )  # fmt: skip
    return well("accelerator", "none; trainers use processors")


def _devices() -> tuple[int, str]:
    import torch

    if not torch.cuda.is_available():
        return 0, ""
    count = torch.cuda.device_count()
    return count, ", ".join(sorted({torch.cuda.get_device_name(index) for index in range(count)}))


def check_disk(folder: Path, sync: Callable[[int], None] = os.fsync) -> Finding:
    """Room in a folder, and how long it takes to force a block of 4 KiB to its disk: the median of a dozen."""
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    free = os.statvfs(nearest).f_bavail * os.statvfs(nearest).f_frsize
    try:
        with tempfile.TemporaryFile(dir=nearest) as file:
            times = []
            for _ in range(_ROUNDS):
                file.write(os.urandom(_BLOCK))
                file.flush()
                began = time.perf_counter()
                sync(file.fileno())
                times.append(time.perf_counter() - began)
    except OSError as error:
        return wrong(
            "disk",
            f"{nearest} can't be written: {error.strerror}",
            "Choose a folder on a disk with --folder.",
        )
    median = statistics.median(times)
    found = f"{nearest}: {free / 2**30:.0f} GiB free, fsync takes {1000 * median:.2f} ms"
    if free < DISK_FREE_MIN:
        return wrong(
            "disk", found, "Cuts need room: remove old runs (RUN/cuts), or choose another disk with --folder."
        )
    if median > FSYNC_SLOW_S:
        return note(
            "disk", found, "With store.durability: log each step waits for that; use a local disk, or durability: snapshot."
        )  # fmt: skip
    return well("disk", found)


def check_open_files(limits: tuple[int, int] | None = None) -> Finding:
    """How many files and connections a process may have open."""
    soft, hard = limits or resource.getrlimit(resource.RLIMIT_NOFILE)
    told = [("no limit" if limit == resource.RLIM_INFINITY else str(limit)) for limit in (soft, hard)]
    found = f"{told[0]} (at most {told[1]})"
    if soft == resource.RLIM_INFINITY or soft >= FILES_MIN:
        return well("open files", found)
    return wrong(
        "open files", found, f"Ray needs {FILES_MIN} or more: ulimit -n 65536; for a service of systemd LimitNOFILE=65536, "
        "for a container --ulimit nofile=65536."
    )  # fmt: skip


def check_ports(ports: Sequence[tuple[int, str]], host: str = "127.0.0.1") -> Finding:
    """Whether the ports on which a service answers unless told otherwise are free, or taken by one of pkm's already."""
    taken = [(port, use) for port, use in ports if not _is_free(host, port)]
    if not taken:
        return well("ports", f"{', '.join(str(port) for port, _ in ports)} are free")
    names = ", ".join(f"{port} ({use})" for port, use in taken)
    return note(
        "ports", f"taken: {names}",
        "If that is not a running pkm serve, choose others with pkm serve --port N --http-port M.",
    )  # fmt: skip


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as trying:
        trying.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trying.bind((host, port))
        except OSError:
            return False
    return True
