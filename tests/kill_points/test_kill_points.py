"""Every so manyth call that changes files is a process's last; all of them: `python -m tests.kill_points`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kill_points.campaign import kill_everywhere


@pytest.mark.timeout(600)
@pytest.mark.parametrize("stride", [31, pytest.param(5, marks=pytest.mark.slow)])
def test_whatever_a_process_was_writing_when_it_was_killed_everything_before_is_there(
    stride: int, tmp_path: Path
) -> None:
    findings = kill_everywhere(tmp_path, stride)
    assert findings.good, findings
    assert findings.kills_fired == len(range(1, findings.calls + 1, stride)) > 10
