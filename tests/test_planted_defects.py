"""Every planted defect is caught by the test that is named with it: an ordinary test, which passes without the defect."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.planted_defects import DEFECTS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def run_test(name: str, defect: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", name],
        env=os.environ | {"PKM_PLANTED_DEFECT": defect},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_planted_defect_is_caught(defect: str) -> None:
    done = run_test(DEFECTS[defect].caught_by, defect)
    assert done.returncode == 1, done.stdout[-3000:]
    assert " failed" in done.stdout
