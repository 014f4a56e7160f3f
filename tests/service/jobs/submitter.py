"""A process that submits jobs and moves them on, and says on its output what was acknowledged, until it is killed.

python -m tests.service.jobs.submitter DATABASE FIRST
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

from service.jobs.database import JobDatabase
from service.jobs.states import JobState
from tests.service.jobs.new_jobs import new_job

WAY = (JobState.STARTING, JobState.RUNNING, JobState.RECOVERING, JobState.RUNNING, JobState.SUCCEEDED)


def main(path: Path, first: int) -> None:
    database = JobDatabase(path)
    print("open", flush=True)
    for number in itertools.count(first):
        job = database.submit(new_job(f"r{number}"))
        print(f"submitted {number} {job.id}", flush=True)
        for state in WAY[: number % (len(WAY) + 1)]:
            database.move(job.id, state, "")
            print(f"moved {number} {state}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
