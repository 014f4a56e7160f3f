"""The database of jobs: submitted once, found again, listed in order, held by one service."""

from __future__ import annotations

import sqlite3
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import pytest

from memory_store.errors import UsageError
from service.jobs.database import ID_LENGTH, PAGE_MAX, JobDatabase
from service.jobs.errors import JobConflictError, NoSuchJobError
from service.jobs.migrations import MIGRATIONS
from service.jobs.states import JobState
from tests.service.jobs.new_jobs import DEMAND, new_job


@pytest.fixture
def database(tmp_path: Path) -> Iterator[JobDatabase]:
    ticks = count(1000.0)
    opened = JobDatabase(tmp_path / "jobs.sqlite", lambda: next(ticks))
    yield opened
    opened.close()


# ---- submitting --------------------------------------------------------------------------------------------------


def test_a_submitted_job_waits_in_the_queue(database: JobDatabase) -> None:
    job = database.submit(new_job("r1"))
    assert job == database.get(job.id)
    assert (job.state, job.wanted, job.attempt, job.demand) == (JobState.QUEUED, "run", 0, DEMAND)
    assert len(job.id) == ID_LENGTH
    assert database.spec(job) == '{"name": "small"}'
    assert [(change.state, change.reason) for change in database.changes(job)] == [("queued", "submitted")]


def test_a_request_that_is_sent_again_finds_its_job_wherever_that_is_now(database: JobDatabase) -> None:
    job = database.submit(new_job("r1"))
    moved = database.move(job.id, JobState.STARTING, "there is room")
    assert database.submit(new_job("r1")) == moved
    assert len(database.newest()) == 1


def test_a_request_id_stands_for_one_job_of_one_tenant(database: JobDatabase) -> None:
    database.submit(new_job("r1"))
    for other in (new_job("r1", name="other"), new_job("r1", priority=1)):
        with pytest.raises(JobConflictError, match="'r1' was used for another job"):
            database.submit(other)
    assert database.submit(new_job("r1", tenant="bob")).tenant == "bob"
    assert len(database.newest()) == 2


def test_many_threads_that_send_the_same_requests_make_each_job_once(database: JobDatabase) -> None:
    requests = [f"r{number % 40}" for number in range(400)]
    with ThreadPoolExecutor(8) as pool:
        jobs = list(pool.map(lambda request: database.submit(new_job(request)), requests))
    assert len({job.id for job in jobs}) == 40
    assert {job.id for job in jobs} == {job.id for job in database.newest()}


# ---- states ------------------------------------------------------------------------------------------------------


def test_a_job_keeps_its_whole_history(database: JobDatabase) -> None:
    job = database.submit(new_job("r1"))
    way = [
        "starting",
        "running",
        "recovering",
        "running",
        "pausing",
        "paused",
        "queued",
        "starting",
        "running",
    ]
    for state in way:
        database.move(job.id, JobState(state), f"because {state}")
    ended = database.move(job.id, JobState.SUCCEEDED, "the last step was made")
    changes = database.changes(ended)
    assert [change.state for change in changes] == ["queued", *way, "succeeded"]
    assert [change.reason for change in changes[1:-1]] == [f"because {state}" for state in way]
    assert [change.time for change in changes] == sorted(change.time for change in changes)
    assert ended.attempt == 2
    assert ended.started_at == next(change.time for change in changes if change.state == "running")
    assert ended.ended_at == ended.changed_at == changes[-1].time


def test_a_state_that_can_not_follow_is_refused_and_nothing_noted(database: JobDatabase) -> None:
    job = database.submit(new_job("r1"))
    with pytest.raises(JobConflictError, match="is queued, after which it can't be running"):
        database.move(job.id, JobState.RUNNING, "")
    assert database.get(job.id) == job
    assert database.move(job.id, JobState.QUEUED, "again") == job
    assert len(database.changes(job)) == 1


def test_a_wish_is_kept_until_the_driver_has_followed_it(database: JobDatabase) -> None:
    job = database.submit(new_job("r1"))
    for state in (JobState.STARTING, JobState.RUNNING):
        database.move(job.id, state, "")
    cancelled = database.cancel(job.id, "ann wants it")
    assert (cancelled.state, cancelled.wanted) == (JobState.RUNNING, "cancel")
    with pytest.raises(JobConflictError, match="being cancelled"):
        database.pause(job.id, "too late")
    ended = database.move(job.id, JobState.CANCELLED, "after the cut of step 7")
    assert database.cancel(job.id, "again") == ended
    with pytest.raises(JobConflictError, match="submit it again"):
        database.resume(job.id, "")


def test_a_paused_job_keeps_its_place_by_its_number(database: JobDatabase) -> None:
    first, second = (database.submit(new_job(request)) for request in ("r1", "r2"))
    assert database.pause(first.id, "").state == JobState.PAUSED
    assert [job.id for job in database.in_line()] == [second.id]
    database.resume(first.id, "")
    assert [job.id for job in database.in_line()] == [first.id, second.id]


# ---- finding -----------------------------------------------------------------------------------------------------


def test_the_line_is_by_priority_then_first_come_first_served(database: JobDatabase) -> None:
    for number, priority in enumerate([0, 5, 0, 5, -1]):
        database.submit(new_job(f"r{number}", name=f"j{number}", priority=priority))
    assert [job.name for job in database.in_line()] == ["j1", "j3", "j0", "j2", "j4"]
    assert [job.name for job in database.in_line(2)] == ["j1", "j3"]


def test_the_beginning_of_an_id_is_enough_where_it_is_the_only_one(database: JobDatabase) -> None:
    jobs = [database.submit(new_job(f"r{number}")) for number in range(60)]
    for job in jobs:
        assert database.find("ann", job.id) == job
        for length in range(1, ID_LENGTH):
            alike = [other for other in jobs if other.id.startswith(job.id[:length])]
            if len(alike) == 1:
                assert database.find("ann", job.id[:length]) == job
            else:
                with pytest.raises(UsageError, match="give more of the id") as caught:
                    database.find("ann", job.id[:length])
                assert sum(other.id in str(caught.value) for other in alike) == min(4, len(alike))


def test_a_name_is_enough_where_no_other_job_has_it_nor_an_id_that_begins_so(database: JobDatabase) -> None:
    mine = database.submit(new_job("r1", name="model-1"))  # no id has an o or an l
    his = database.submit(new_job("r1", "bob", name="model-2"))
    assert database.find("ann", "model-1") == mine
    assert database.find("bob", "model-2") == his
    for tenant, name in (("ann", "model-2"), ("ann", "model"), ("bob", "model-1")):
        with pytest.raises(NoSuchJobError):
            database.find(tenant, name)
    again = database.submit(new_job("r2", name="model-1"))
    with pytest.raises(UsageError, match=f"{again.id}, {mine.id}; give more of the id"):
        database.find("ann", "model-1")
    called_like = database.submit(new_job("r3", name=mine.id[:3]))
    for job in (mine, again, called_like):
        assert database.find("ann", job.id) == job
    with pytest.raises(UsageError, match="Several jobs have an id that begins with"):
        database.find("ann", mine.id[:3])
    after_whom = database.submit(new_job("r4", name=mine.id))
    assert database.find("ann", mine.id) == mine  # an id is an id
    assert database.find("ann", after_whom.id) == after_whom


@pytest.mark.parametrize("beginning", ["", "~", "%", "_", "'; DROP TABLE jobs; --", "0", "é"])
def test_what_is_the_beginning_of_no_id_finds_no_job(database: JobDatabase, beginning: str) -> None:
    database.submit(new_job("r1"))
    with pytest.raises(NoSuchJobError):
        database.find("ann", beginning)


def test_the_job_of_another_tenant_is_no_job(database: JobDatabase) -> None:
    job = database.submit(new_job("r1", tenant="bob"))
    with pytest.raises(NoSuchJobError) as of_another:
        database.find("ann", job.id)
    with pytest.raises(NoSuchJobError) as of_nobody:
        database.find("ann", "q" * ID_LENGTH)
    assert str(of_another.value).replace(job.id, "ID") == str(of_nobody.value).replace("q" * ID_LENGTH, "ID")
    assert database.newest("ann") == []


def test_pages_show_every_job_once_newest_first(database: JobDatabase) -> None:
    made = []
    for number in range(30):
        job = database.submit(
            new_job(f"r{number}", tenant="ab"[number % 2], name=f"n{number % 3}", priority=number % 2)
        )
        if number % 5 == 0:
            job = database.cancel(job.id, "")
        made.append(job)
    for tenant in (None, "a", "b"):
        for states in ((), (JobState.QUEUED,), (JobState.CANCELLED, JobState.QUEUED), (JobState.FAILED,)):
            for name in (None, "n1"):
                expected = [
                    job
                    for job in reversed(made)
                    if tenant in (None, job.tenant) and (not states or job.state in states)
                    if name in (None, job.name)
                ]
                seen, before = [], None
                while page := database.newest(tenant, states, name, before, limit=4):
                    assert len(page) <= 4
                    seen += page
                    before = page[-1].number
                assert seen == expected
    assert database.count() == dict.fromkeys(JobState, 0) | {JobState.QUEUED: 24, JobState.CANCELLED: 6}


def test_a_page_is_bounded_whatever_is_asked_for(tmp_path: Path) -> None:
    database = JobDatabase(tmp_path / "jobs.sqlite")
    # As fast as the disk takes them; the point is the number.
    database._writer.execute("PRAGMA synchronous = OFF")
    for number in range(PAGE_MAX + 1):
        database.submit(new_job(f"r{number}"))
    assert len(database.newest(limit=10**9)) == PAGE_MAX
    database.close()


def test_readers_see_whole_changes_while_another_thread_writes(database: JobDatabase) -> None:
    job = database.submit(new_job("r1"))
    over = threading.Event()
    torn: list[object] = []

    def read() -> None:
        while not over.is_set():
            seen = database.get(job.id)
            last = database.changes(seen)
            if seen.state not in {change.state for change in last}:
                torn.append((seen, last))

    reader = threading.Thread(target=read)
    reader.start()
    database.move(job.id, JobState.STARTING, "")
    for _ in range(200):
        database.move(job.id, JobState.RUNNING, "")
        database.move(job.id, JobState.RECOVERING, "")
    over.set()
    reader.join()
    assert torn == []


# ---- the file ----------------------------------------------------------------------------------------------------


def test_what_was_acknowledged_is_there_when_it_is_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    first = JobDatabase(path)
    job = first.submit(new_job("r1"))
    first.close()
    second = JobDatabase(path)
    assert second.get(job.id) == second.submit(new_job("r1")) == job
    second.close()


def test_one_service_holds_it(database: JobDatabase, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Another service works with"):
        JobDatabase(tmp_path / "jobs.sqlite")


def test_only_its_owner_can_read_it(database: JobDatabase, tmp_path: Path) -> None:
    database.submit(new_job("r1"))
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert {"jobs.sqlite", "jobs.sqlite-wal", "jobs.sqlite.lock"} <= modes.keys()
    assert set(modes.values()) == {0o600}


def test_a_database_of_a_newer_release_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    before = path.read_bytes()
    with pytest.raises(UsageError, match="was made by a newer pkm"):
        JobDatabase(path)
    assert path.read_bytes()[100:] == before[100:], "all but the header, where the journal mode stands"


def test_lists_are_read_along_an_index(database: JobDatabase) -> None:
    """However many jobs there are: none of the queries goes through all of them, or sorts them."""
    job = database.submit(new_job("r1"))
    asked: list[str] = []
    reader = database._reader()
    reader.set_trace_callback(asked.append)
    for tenant in (None, "ann"):
        for states in ((), (JobState.RUNNING, JobState.FAILED)):
            database.newest(tenant, states, before=7)
    database.newest("ann", (), "small", 7)
    database.in_line()
    database.find("ann", database.get(job.id).id)
    reader.set_trace_callback(None)
    assert len(asked) >= 8
    for query in asked:
        plan = " | ".join(row[3] for row in reader.execute(f"EXPLAIN QUERY PLAN {query}"))
        assert "USE TEMP B-TREE" not in plan, (query, plan)
        assert "(tenant=?)" not in plan or "ORDER BY number" in query, (query, plan)
        assert "SCAN jobs" not in plan or "USING INDEX" in plan or "PRIMARY KEY" in plan, (query, plan)
