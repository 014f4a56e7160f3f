"""All that is looked at on one machine, in the order in which it is told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

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


def check_machine(folder: Path) -> Iterator[Finding]:
    """The machine that this runs on; `folder` is where runs are kept."""
    yield check_python()
    yield from check_packages()
    yield check_processor()
    yield check_accelerator()
    yield check_memory()
    yield check_shared_memory()
    yield check_huge_pages()
    yield check_open_files()
    yield check_disk(folder)


def check_service_ports(ports: tuple[int, int]) -> Finding:
    """The ports of a service and its page."""
    return check_ports(((ports[0], "the service"), (ports[1], "its page")))
