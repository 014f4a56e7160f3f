"""A service that is killed while it submits and moves jobs: what it has acknowledged is there, once; nothing is half done."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

from service.jobs.database import JobDatabase, KeptJob
from tests.service.jobs.new_jobs import new_job
from tests.service.jobs.submitter import WAY

KILLS = 12
ROOT = Path(__file__).parents[3]


def test_killed_at_any_moment(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    chance = random.Random(7)
    ids: dict[int, str] = {}
    states: dict[int, str] = {}
    fired = 0
    first = 0
    for _ in range(KILLS):
        command = [sys.executable, "-m", "tests.service.jobs.submitter", str(path), str(first)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "open\n"
            time.sleep(chance.uniform(0.0, 0.2))
            process.kill()
            said = process.stdout.read()
        fired += process.returncode == -9
        for line in said[: said.rfind("\n") + 1].splitlines():
            what, number, value = line.split()
            (ids if what == "submitted" else states)[int(number)] = value

        database = JobDatabase(path)
        first = sum(database.count().values())
        # What was not acknowledged is sent again: it is the same job, or one more.
        again = database.submit(new_job(f"r{first}")) if first not in ids else None
        jobs = jobs_by_request(database)
        assert sorted(jobs) == list(range(len(jobs)))
        assert again is None or jobs[first] == again
        for number, job_id in ids.items():
            assert jobs[number].id == job_id
        for number, job in jobs.items():
            changes = database.changes(job)
            assert [change.state for change in changes] == ["queued", *WAY[: len(changes) - 1]]
            assert changes[-1].state == job.state
            reached = ["queued", *WAY].index(states[number]) if number in states else 0
            assert len(changes) - 1 >= reached, "acknowledged, and forgotten"
        first = len(jobs)
        database.close()
    assert fired == KILLS
    assert len(ids) > KILLS


def jobs_by_request(database: JobDatabase) -> dict[int, KeptJob]:
    """All jobs, by the number in their request ids."""
    requests = dict(database._reader().execute("SELECT id, request_id FROM jobs"))
    jobs: list[KeptJob] = []
    while page := database.newest(before=jobs[-1].number if jobs else None):
        jobs += page
    return {int(requests[job.id].removeprefix("r")): job for job in jobs}


def test_a_database_may_be_closed_while_threads_read_it(tmp_path: Path) -> None:
    """A connection that is closed under a reading thread ends the process: so this is tried in another one."""
    command = [sys.executable, "-m", "tests.service.jobs.closing", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stdout) == (0, "closed\n"), done.stderr
