"""What results say of the machine: its GPU if there is one, and memory under the limit of a control group."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import machine
from benchmarks.machine import Machine, available_bytes, this_machine
from benchmarks.report import machine_section

KIB, GIB = 1 << 10, 1 << 30


def test_a_machine_without_a_gpu_does_not_mention_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    found = this_machine()
    assert "gpu" not in found.model_dump(mode="json")
    assert Machine.model_validate(found.model_dump(mode="json")) == found
    assert "GPU" not in machine_section(found)


def test_a_gpu_is_named_with_its_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(name="NVIDIA H200", major=9, minor=0, total_memory=140 * GIB)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: properties)
    monkeypatch.setattr("torch.version.cuda", "13.0")
    monkeypatch.setattr(machine, "_driver", lambda: "580.159.04")
    found = this_machine()
    assert found.model_dump(mode="json")["gpu"] == {
        "name": "NVIDIA H200",
        "compute_capability": "9.0",
        "memory_gib": 140.0,
        "driver": "580.159.04",
        "cuda": "13.0",
    }
    assert Machine.model_validate(found.model_dump(mode="json")) == found
    assert "| GPU | NVIDIA H200, compute capability 9.0, 140.0 GiB |" in machine_section(found)


@pytest.mark.parametrize(
    "told",
    [
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build\nGCC version: 12.2.0\n",
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.159.04  Tue Oct 14 2025\n",
    ],
)
def test_the_driver_is_read_off_its_module(told: str, tmp_path: Path) -> None:
    (tmp_path / "version").write_text(told)
    assert machine._driver(tmp_path / "version") == "580.159.04"


def test_the_driver_is_asked_of_nvidia_smi_where_its_module_is_hidden(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine._driver(tmp_path / "version") == "unknown"
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 580.159.03\n")
    program.chmod(0o755)
    assert machine._driver(tmp_path / "version") == "580.159.03"


def test_free_memory_is_what_the_control_group_leaves(tmp_path: Path) -> None:
    def write(name: str, text: str) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    write("proc/meminfo", f"MemTotal: {24 * GIB // KIB} kB\nMemAvailable: {20 * GIB // KIB} kB\n")
    assert available_bytes(tmp_path) == 20 * GIB
    write("sys/fs/cgroup/memory.max", f"{8 * GIB}\n")
    write("sys/fs/cgroup/memory.current", f"{3 * GIB}\n")
    assert available_bytes(tmp_path) == 5 * GIB
    write("sys/fs/cgroup/memory.max", "max\n")
    assert available_bytes(tmp_path) == 20 * GIB
