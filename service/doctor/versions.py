"""Python and the packages that pkm needs, against what it declares."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

from service.doctor.finding import Finding, well, wrong

PYTHONS = ((3, 11), (3, 12))
_INSTALL = "Install the pinned packages: make setup, or deploy/install VENV."


def check_python(running: tuple[int, ...] = sys.version_info[:3]) -> Finding:
    """Whether this Python is one that pkm is made for."""
    found = ".".join(map(str, running))
    if running[:2] in PYTHONS:
        return well("python", found)
    names = " or ".join(".".join(map(str, python)) for python in PYTHONS)
    return wrong(
        "python", f"Python {found}", f"Use Python {names}; make setup takes PYTHON=/path/to/python3.11."
    )


def check_packages(
    declared: list[str] | None = None, installed: Callable[[str], str] = version
) -> Iterator[Finding]:
    """Each declared package that is not there or of another version; one finding where all fit."""
    needed = [Requirement(text) for text in (declared if declared is not None else requires("pkm") or [])]
    needed = [need for need in needed if need.marker is None or need.marker.evaluate()]
    amiss = False
    for need in needed:
        try:
            found = installed(need.name)
        except PackageNotFoundError:
            amiss = True
            yield wrong("packages", f"{need.name} is not installed; pkm needs {need}", _INSTALL)
            continue
        if not need.specifier.contains(found, prereleases=True):
            amiss = True
            yield wrong("packages", f"{need.name} is {found}; pkm needs {need.specifier}", _INSTALL)
    if not amiss:
        yield well("packages", f"{len(needed)} packages as declared")
