"""The three dashboards: the fleet, one job, and its shards.

python deploy/grafana/dashboards.py        writes deploy/grafana/dashboards/*.json
"""

from __future__ import annotations

from pathlib import Path

from fleet import FLEET
from job import JOB_DASHBOARD
from shard import SHARD_DASHBOARD

FOLDER = Path(__file__).resolve().parent / "dashboards"

ALL = (FLEET, JOB_DASHBOARD, SHARD_DASHBOARD)

if __name__ == "__main__":
    for dashboard in ALL:
        dashboard.file_in(FOLDER).write_text(dashboard.text())
