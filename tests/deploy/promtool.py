"""The programs of Prometheus, which the tests of its files need."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path


def program(name: str) -> str:
    """The path of `promtool` or `prometheus`."""
    found = shutil.which(name)
    assert found, (
        f"{name} is not installed; it comes with the Debian package `prometheus`: apt-get install prometheus"
    )
    return found


def promtool(*arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run promtool to its end."""
    return subprocess.run(
        [program("promtool"), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
