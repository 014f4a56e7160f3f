"""What all tests share: few threads, and Hypothesis without time limits, since the machine may be busy."""

from __future__ import annotations

import os

import hypothesis

# Read when numba and torch are imported, which is after this file. Two kernel threads, so that a race between
# them can show; waiting threads sleep instead of spinning.
os.environ.setdefault("NUMBA_NUM_THREADS", "2")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

hypothesis.settings.register_profile("pkm", deadline=None, database=None)
hypothesis.settings.load_profile("pkm")


def pytest_configure() -> None:
    """Plant the defect that a run of tests/test_planted_defects.py asks for."""
    if os.environ.get("PKM_PLANTED_DEFECT"):
        from tests.planted_defects import plant_from_environment

        plant_from_environment()
