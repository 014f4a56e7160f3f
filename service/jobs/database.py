"""All jobs of a service, in one SQLite file: what was submitted, where each job is, and how it got there.

What a method has returned is on the disk: a service that is killed at any moment finds every job where it left it. A
submission is known by its tenant and request id, so that one whose answer was lost can be sent again. One service at a
time holds a database; its threads may share it.
"""

from __future__ import annotations

import fcntl
import hashlib
import heapq
import json
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from memory_store.errors import UsageError
from service.jobs.demand import Demand
from service.jobs.errors import JobConflictError, NoSuchJobError
from service.jobs.job import Change, Job
from service.jobs.migrations import migrate
from service.jobs.states import (
    ENDED,
    FOLLOWING,
    Intent,
    JobState,
    after_cancel,
    after_pause,
    after_resume,
)

ID_LENGTH = 12
PAGE_MAX = 1000
_ID_LETTERS = "abcdefghijkmnpqrstuvwxyz23456789"  # none that is read as another
_ALIKE_SHOWN = 4
_BUSY_S = 10.0

_COLUMNS = (
    "number, id, tenant, name, priority, demand, state, reason, wanted, attempt, "
    "submitted_at, changed_at, started_at, ended_at"
)
_COLUMN_NAMES = _COLUMNS.split(", ")
_Row = tuple[Any, ...]


@dataclass(frozen=True)
class NewJob:
    """What is submitted. `request_id` is chosen by who submits, and stands for this job whenever it is sent again."""

    tenant: str
    request_id: str
    name: str
    spec: str
    demand: Demand
    priority: int = 0


@dataclass(frozen=True)
class KeptJob(Job):
    """A job in the database. `number` grows with every submission."""

    number: int

    @property
    def intent(self) -> Intent:
        return Intent(self.state, self.wanted)


class JobDatabase:
    """The jobs kept in the file `path`, which is made if there is none, for its owner's eyes alone.

    `on_change` is called with the number of every job that has been changed, when that is on the disk. Raises UsageError if
    another service holds the file, or if a newer release has made it.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._path, self._clock = path, clock
        self._lock_file = _lock(path)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        self._writing = threading.Lock()
        self._reading = threading.local()
        self.on_change: Callable[[int], None] = lambda number: None
        self._writer = self._connect()
        migrate(self._writer, path)

    def close(self) -> None:
        """Let another service have it.

        Threads that are reading read to the end: their connections close when they are let go.
        """
        with self._writing:
            self._writer.close()
        os.close(self._lock_file)

    # ---- what people do ------------------------------------------------------------------------------------------

    def submit(self, new: NewJob) -> KeptJob:
        """Put a job into the queue, or find the one that this request has put there before.

        Raises JobConflictError if the request id stands for a job that is not the same.
        """
        digest = hashlib.sha256(json.dumps([new.name, new.spec, new.priority]).encode()).hexdigest()
        now = self._clock()
        with self._transaction() as connection:
            known = connection.execute(
                "SELECT number, digest FROM jobs WHERE tenant = ? AND request_id = ?",
                (new.tenant, new.request_id),
            ).fetchone()
            if known is not None:
                number, digest_before = known
                if digest_before != digest:
                    raise JobConflictError(
                        f"the request id {new.request_id!r} was used for another job; choose a new one for each job"
                    )
                return self._job(connection, number)
            number = connection.execute(
                "INSERT INTO jobs (id, tenant, request_id, digest, name, priority, demand, state, reason, wanted, "
                "attempt, submitted_at, changed_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, '', 'run', 0, ?, ?)",
                (
                    _new_id(), new.tenant, new.request_id, digest, new.name, new.priority,
                    new.demand.model_dump_json(), JobState.QUEUED, now, now,
                ),
            ).lastrowid  # fmt: skip
            assert number is not None, "a row has been inserted"
            connection.execute("INSERT INTO specs (job, spec) VALUES (?, ?)", (number, new.spec))
            self._keep_change(connection, number, now, JobState.QUEUED, "submitted")
            return self._job(connection, number)

    def cancel(self, job_id: str, reason: str) -> KeptJob:
        """Want the job to end. Raises NoSuchJobError; JobConflictError if it has ended otherwise."""
        return self._ask(job_id, after_cancel, reason)

    def pause(self, job_id: str, reason: str) -> KeptJob:
        """Want the job to rest after a cut. Raises NoSuchJobError; JobConflictError if it is ending or has ended."""
        return self._ask(job_id, after_pause, reason)

    def resume(self, job_id: str, reason: str) -> KeptJob:
        """Want a paused job to go on. Raises NoSuchJobError; JobConflictError where it can't."""
        return self._ask(job_id, after_resume, reason)

    # ---- what becomes of a job -----------------------------------------------------------------------------------

    def move(self, job_id: str, state: JobState, reason: str) -> KeptJob:
        """Note that a job has come into another state; nothing is noted where it is in that state already.

        Raises NoSuchJobError; JobConflictError if that state can't follow the one it is in.
        """
        with self._transaction() as connection:
            job = self._find(connection, job_id)
            if job.state == state:
                return job
            if state not in FOLLOWING[job.state]:
                raise JobConflictError(f"job {job.id} is {job.state}, after which it can't be {state}")
            changed = self._change(connection, job, Intent(state, job.wanted), reason)
        self.on_change(changed.number)
        return changed

    def resize(self, job_id: str, demand: Demand) -> KeptJob:
        """Note that a job asks for other resources from now on. Raises NoSuchJobError."""
        with self._transaction() as connection:
            job = self._find(connection, job_id)
            connection.execute(
                "UPDATE jobs SET demand = ? WHERE number = ?", (demand.model_dump_json(), job.number)
            )
            changed = self._job(connection, job.number)
        self.on_change(changed.number)
        return changed

    # ---- what is known -------------------------------------------------------------------------------------------

    def get(self, job_id: str) -> KeptJob:
        """The job of this id. Raises NoSuchJobError."""
        return self._find(self._reader(), job_id)

    def find(self, tenant: str, given: str) -> KeptJob:
        """The only job of a tenant whose id begins so, or whose name this is.

        Raises NoSuchJobError if there is none, UsageError if there are several.
        """
        after_all = given + "~"  # sorts behind every letter of an id
        begin_so = self._reader().execute(
            # The plus keeps SQLite from going through all jobs of the tenant.
            f"SELECT {_COLUMNS} FROM jobs WHERE id >= ? AND id < ? AND +tenant = ? ORDER BY id LIMIT ?",
            (given, after_all, tenant, _ALIKE_SHOWN + 1),
        )
        named_so = self._page(tenant, None, given, None, _ALIKE_SHOWN + 1)
        found = {job.id: job for job in map(_job_of, (*begin_so, *named_so))} if given else {}
        if given in found:
            return found[given]
        if not found:
            raise NoSuchJobError(
                f"There is no job {given!r}; give the id of one of your jobs, its beginning, or a name: pkm list."
            )
        if len(found) > 1:
            alike = ", ".join(list(found)[:_ALIKE_SHOWN])
            more = ", ..." if len(found) > _ALIKE_SHOWN else ""
            raise UsageError(
                f"Several jobs have an id that begins with {given!r}, or that name: {alike}{more}; give more of the id."
            )
        return next(iter(found.values()))

    def newest(
        self,
        tenant: str | None = None,
        states: Sequence[JobState] = (),
        name: str | None = None,
        before: int | None = None,
        limit: int = 100,
    ) -> list[KeptJob]:
        """The newest `limit` jobs submitted before the one of number `before`, newest first; at most PAGE_MAX of them.

        Of all tenants, in any state and of any name unless given.
        """
        # One query a state, each read along an index: all of them in one would sort every job there is.
        pages = [self._page(tenant, state, name, before, limit) for state in dict.fromkeys(states) or (None,)]
        newest_first = heapq.merge(*pages, key=lambda row: -row[0])
        return [_job_of(row) for row in islice(newest_first, limit)]

    def in_line(self, limit: int = PAGE_MAX) -> list[KeptJob]:
        """The queued jobs in the order in which they are to be started: by priority, then first come, first served."""
        rows = self._reader().execute(
            f"SELECT {_COLUMNS} FROM jobs INDEXED BY jobs_in_line WHERE state = 'queued' "
            "ORDER BY priority DESC, number LIMIT ?",
            (limit,),
        )
        return [_job_of(row) for row in rows]

    def spec(self, job: KeptJob) -> str:
        """What was submitted."""
        row = self._reader().execute("SELECT spec FROM specs WHERE job = ?", (job.number,)).fetchone()
        return str(row[0])

    def changes(self, job: KeptJob) -> list[Change]:
        """Every state the job has been in, oldest first."""
        rows = self._reader().execute(
            "SELECT time, state, reason FROM changes WHERE job = ? ORDER BY number", (job.number,)
        )
        return [Change(at, JobState(state), reason) for at, state, reason in rows]

    def count(self) -> dict[JobState, int]:
        """How many jobs are in each state."""
        rows = self._reader().execute("SELECT state, COUNT(*) FROM jobs GROUP BY state")
        found = {JobState(state): count for state, count in rows}
        return {state: found.get(state, 0) for state in JobState}

    # ---- inside --------------------------------------------------------------------------------------------------

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
        )
        connection.execute("PRAGMA journal_mode = WAL")
        # Not the NORMAL that is usual with WAL: after that, a power cut forgets what was acknowledged.
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        return connection

    def _reader(self) -> sqlite3.Connection:
        """This thread's own connection, on which it reads while another one writes."""
        connection: sqlite3.Connection | None = getattr(self._reading, "connection", None)
        if connection is None:
            connection = self._reading.connection = self._connect()
        return connection

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._writing:
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
            except BaseException:
                self._writer.execute("ROLLBACK")
                raise
            self._writer.execute("COMMIT")

    def _ask(self, job_id: str, decide: Callable[[Intent], Intent], reason: str) -> KeptJob:
        with self._transaction() as connection:
            job = self._find(connection, job_id)
            changed = self._change(connection, job, decide(job.intent), reason)
        self.on_change(changed.number)
        return changed

    def _change(self, connection: sqlite3.Connection, job: KeptJob, intent: Intent, reason: str) -> KeptJob:
        """Bring a job into another state, or have it wanted otherwise; the first is kept in its history."""
        if intent == job.intent:
            return job
        connection.execute("UPDATE jobs SET wanted = ? WHERE number = ?", (intent.wanted, job.number))
        if intent.state != job.state:
            now = self._clock()
            connection.execute(
                "UPDATE jobs SET state = ?, reason = ?, changed_at = ?, attempt = attempt + ?, "
                "started_at = CASE WHEN ? THEN COALESCE(started_at, ?) ELSE started_at END, "
                "ended_at = CASE WHEN ? THEN ? END WHERE number = ?",
                (
                    intent.state, reason, now, intent.state == JobState.STARTING,
                    intent.state == JobState.RUNNING, now, intent.state in ENDED, now, job.number,
                ),
            )  # fmt: skip
            self._keep_change(connection, job.number, now, intent.state, reason)
        return self._job(connection, job.number)

    def _keep_change(
        self, connection: sqlite3.Connection, number: int, now: float, state: JobState, reason: str
    ) -> None:
        connection.execute(
            "INSERT INTO changes (job, time, state, reason) VALUES (?, ?, ?, ?)", (number, now, state, reason)
        )

    def _find(self, connection: sqlite3.Connection, job_id: str) -> KeptJob:
        row = connection.execute(f"SELECT {_COLUMNS} FROM jobs WHERE id = ?", (job_id,)).fetchone()
        if row is None:
            raise NoSuchJobError(f"There is no job {job_id!r}.")
        return _job_of(row)

    def _job(self, connection: sqlite3.Connection, number: int) -> KeptJob:
        return _job_of(
            connection.execute(f"SELECT {_COLUMNS} FROM jobs WHERE number = ?", (number,)).fetchone()
        )

    def _page(
        self, tenant: str | None, state: JobState | None, name: str | None, before: int | None, limit: int
    ) -> list[_Row]:
        given = {"tenant = ?": tenant, "state = ?": state, "name = ?": name, "number < ?": before}
        conditions = {condition: value for condition, value in given.items() if value is not None}
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        rows = self._reader().execute(
            f"SELECT {_COLUMNS} FROM jobs {where} ORDER BY number DESC LIMIT ?",
            (*conditions.values(), min(limit, PAGE_MAX)),
        )
        return rows.fetchall()


def _lock(path: Path) -> int:
    """Hold the database until this process ends. Raises UsageError if another one does."""
    lock = os.open(path.with_name(path.name + ".lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise UsageError(
            f"Another service works with {path}; stop it first, or give this one a folder of its own."
        ) from None
    return lock


def _new_id() -> str:
    return "".join(secrets.choice(_ID_LETTERS) for _ in range(ID_LENGTH))


def _job_of(row: _Row) -> KeptJob:
    values = dict(zip(_COLUMN_NAMES, row, strict=True))
    values["demand"] = _demand(values["demand"])
    values["state"] = JobState(values["state"])
    return KeptJob(**values)


@lru_cache(maxsize=1024)
def _demand(text: str) -> Demand:
    """Many jobs ask for the same."""
    return Demand.model_validate_json(text)
