"""The example runs as a user would run it, and learns."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_own_model_learns() -> None:
    run = subprocess.run(
        [sys.executable, "examples/own_model.py"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert run.returncode == 0, run.stderr
    losses = [float(loss) for loss in re.findall(r"loss (\d+\.\d+)", run.stdout)]
    assert len(losses) == 6
    assert losses[0] > 2
    assert losses[-1] < 0.7 * losses[0]
