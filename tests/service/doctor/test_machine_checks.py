"""Each thing that the doctor looks at, with a bad condition planted that it must find, and say what to do about."""

from __future__ import annotations

import os
import socket
import time
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest

from service.doctor import machine, memory
from service.doctor.checks import check_machine
from service.doctor.finding import Finding
from service.doctor.machine import (
    check_accelerator,
    check_disk,
    check_open_files,
    check_ports,
    check_processor,
)
from service.doctor.memory import check_huge_pages, check_memory, check_shared_memory
from service.doctor.versions import check_packages, check_python

GIB_KB = 1 << 20


def told(finding: Finding, level: str, word: str, advice: str = "") -> None:
    assert finding.level == level, finding
    assert word in finding.found
    assert advice in finding.advice
    assert bool(finding.advice) == (level != "well")


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_this_machine_is_looked_at_whole(tmp_path: Path) -> None:
    names = [finding.check for finding in check_machine(tmp_path)]
    expected = "python packages processor accelerator memory/shared memory/huge pages/open files/disk"
    first, *rest = expected.split("/")
    assert [name for name in dict.fromkeys(names)] == [*first.split(), *rest]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("python", "level"),
    [((3, 11, 9), "well"), ((3, 12, 0), "well"), ((3, 10, 1), "wrong"), ((3, 13, 0), "wrong")],
)
def test_python(python: tuple[int, ...], level: str) -> None:
    told(check_python(python), level, f"3.{python[1]}", "Use Python 3.11 or 3.12" if level == "wrong" else "")


def test_packages() -> None:
    versions = {"numpy": "2.4.6", "ray": "2.59.0"}

    def installed(name: str) -> str:
        if name not in versions:
            raise PackageNotFoundError(name)
        return versions[name]

    declared = ["numpy>=2.4,<3", "ray[default]==2.60.0", "torch==2.13.0", "absent>1 ; extra == 'dev'"]
    old, missing = check_packages(declared, installed)
    told(old, "wrong", "ray is 2.59.0; pkm needs ==2.60.0", "make setup")
    told(missing, "wrong", "torch is not installed", "make setup")
    (fine,) = check_packages(declared[:1], installed)
    told(fine, "well", "1 packages")


def test_a_local_build_is_the_version_that_it_is_a_build_of() -> None:
    (fine,) = check_packages(["torch==2.13.0"], lambda name: "2.13.0+cpu")
    assert fine.level == "well"


def meminfo(root: Path, free: int, total: int) -> None:
    write(root / "proc/meminfo", f"MemTotal:  {total * GIB_KB} kB\nMemAvailable:  {free * GIB_KB} kB\n")


def test_memory(tmp_path: Path) -> None:
    meminfo(tmp_path, 20, 24)
    told(check_memory(tmp_path), "well", "20.0 of 24.0 GiB")
    meminfo(tmp_path, 1, 24)
    told(check_memory(tmp_path), "wrong", "1.0 of 24.0 GiB", "end other programs")


@pytest.mark.parametrize(
    "names",
    [("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")],
)
def test_the_limit_of_a_control_group(tmp_path: Path, names: tuple[str, str]) -> None:
    meminfo(tmp_path, 20, 24)
    groups = tmp_path / "sys/fs/cgroup"
    write(groups / names[0], f"{4 << 30}\n")
    write(groups / names[1], f"{3 << 30}\n")
    told(
        check_memory(tmp_path),
        "wrong",
        "1.0 GiB are free under the control group's limit of 4.0 GiB",
        "--memory",
    )
    write(groups / names[0], f"{1 << 62}\n")
    told(check_memory(tmp_path), "well", "20.0 of 24.0 GiB")


def test_a_control_group_without_a_limit(tmp_path: Path) -> None:
    meminfo(tmp_path, 20, 24)
    write(tmp_path / "sys/fs/cgroup/memory.max", "max\n")
    told(check_memory(tmp_path), "well", "20.0 of 24.0 GiB")


def test_shared_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told(check_shared_memory(tmp_path / "none"), "wrong", "No such file", "Mount a tmpfs")
    for blocks, level in ((64 << 8, "wrong"), (2 << 18, "well")):  # of 4 KiB: 64 MiB as Docker gives, 2 GiB
        room = SimpleNamespace(f_blocks=blocks, f_bavail=blocks, f_frsize=4096)
        monkeypatch.setattr(memory.os, "statvfs", lambda path, room=room: room)
        told(
            check_shared_memory(), level, "GiB of /dev/shm are free", "--shm-size" if level == "wrong" else ""
        )


@pytest.mark.parametrize(
    ("chosen", "level"), [("never", "note"), ("deny", "note"), ("advise", "well"), ("always", "well")]
)
def test_huge_pages(tmp_path: Path, chosen: str, level: str) -> None:
    text = " ".join(
        f"[{name}]" if name == chosen else name
        for name in ("always", "within_size", "advise", "never", "deny", "force")
    )
    write(tmp_path / "sys/kernel/mm/transparent_hugepage/shmem_enabled", text)
    told(check_huge_pages(tmp_path), level, chosen, "echo advise" if level == "note" else "")


def test_a_kernel_without_huge_pages(tmp_path: Path) -> None:
    told(check_huge_pages(tmp_path), "note", "has none")


def test_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda process: set(range(8)))
    write(tmp_path / "proc/cpuinfo", "processor : 0\nflags\t\t: fpu avx avx2\n")
    told(check_processor(tmp_path), "well", "8 cores, avx2")
    write(tmp_path / "proc/cpuinfo", "processor : 0\nflags\t\t: fpu sse2\n")
    told(check_processor(tmp_path), "note", "no known vector instructions", "pass the host's processor on")
    write(tmp_path / "proc/cpuinfo", "processor : 0\nFeatures\t: fp asimd\n")
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda process: {0})
    told(check_processor(tmp_path), "note", "1 cores, asimd", "two or more")


def test_accelerator(tmp_path: Path) -> None:
    driver = tmp_path / "version"
    told(check_accelerator(lambda: (0, ""), driver), "well", "none")
    told(check_accelerator(lambda: (2, "NVIDIA H100"), driver), "well", "2 (NVIDIA H100)")
    driver.touch()
    told(check_accelerator(lambda: (0, ""), driver), "wrong", "finds no GPU", "CUDA build")


def test_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "FSYNC_SLOW_S", 60.0)
    monkeypatch.setattr(machine, "DISK_FREE_MIN", 0)
    told(check_disk(tmp_path / "not" / "yet", sync=os.fsync), "well", f"{tmp_path}: ")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(machine, "FSYNC_SLOW_S", 0.01)
    told(
        check_disk(tmp_path, sync=lambda file: time.sleep(0.02)),
        "note",
        "fsync takes",
        "durability: snapshot",
    )
    monkeypatch.setattr(machine, "DISK_FREE_MIN", 1 << 60)
    told(check_disk(tmp_path, sync=lambda file: None), "wrong", "GiB free", "remove old runs")

    def refuse(file: int) -> None:
        raise OSError(30, "Read-only file system")

    told(check_disk(tmp_path, sync=refuse), "wrong", "Read-only file system", "--folder")


@pytest.mark.parametrize(
    ("limits", "level"), [((1024, 4096), "wrong"), ((4096, 4096), "well"), ((-1, -1), "well")]
)
def test_open_files(limits: tuple[int, int], level: str) -> None:
    told(
        check_open_files(limits),
        level,
        "no limit" if limits[0] < 0 else str(limits[0]),
        "ulimit -n" if level == "wrong" else "",
    )


def test_ports() -> None:
    with socket.socket() as taken, socket.socket() as free:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        free.bind(("127.0.0.1", 0))
        port, other = taken.getsockname()[1], free.getsockname()[1]
        free.close()
        told(
            check_ports([(port, "the service"), (other, "its page")]),
            "note",
            f"taken: {port} (the service)",
            "--port N",
        )
        told(check_ports([(other, "its page")]), "well", "are free")
