"""Brings jobs where they are wanted: starts those whose turn it is, follows those that run, stops those that are to stop.

It keeps nothing in mind. Where a job is stands in the database; what has become of its process, the cluster and the run's
folder tell. So a service that is killed at any moment goes on where it was, and whatever happened meanwhile is found out:

    the database says     the cluster says     what follows
    queued                                     when its turn comes: starting, and its process is started
    starting              no such process      its process is started: the service died before it did so
    starting and after    it runs              the state that the run's status tells
    starting and after    it has ended         the run's outcome; without one, it waits in the queue again
    running and after     no such process      the same: the cluster was started anew

A process is named by its job and attempt. To start one that has been started does nothing, so a job never has two.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable

from memory_store.cuts import complete_cuts
from service.jobs.cluster import Cluster, ClusterUnreachableError, ProcessState
from service.jobs.database import JobDatabase, KeptJob
from service.jobs.demand import demand_of
from service.jobs.errors import JobConflictError, NoSuchJobError
from service.jobs.folder import ServiceFolder
from service.jobs.scheduling import Quotas, jobs_to_start
from service.jobs.states import WITH_DRIVER, JobState
from workers.halt import Purpose, ask_to_halt
from workers.job_spec import JobSpec
from workers.job_status import Outcome, read_outcome, read_status
from workers.run_folder import RunFolder

EVERY_S, UNREACHABLE_S = 0.5, 5.0
STARTS_IN_VAIN_MAX = 5
CANCEL_PATIENCE_S = 120.0
WAITS_FOR_PLACE = "waiting"

_log = logging.getLogger(__name__)


class Runner:
    """Brings the jobs of `database` where they are wanted, on `cluster`, with run folders in `folders`.

    `scrape_digest` is of the token with which the metrics of their processes may be read.
    """

    def __init__(
        self,
        database: JobDatabase,
        cluster: Cluster,
        folders: ServiceFolder,
        quotas: Quotas,
        cancel_patience_s: float = CANCEL_PATIENCE_S,
        scrape_digest: str = "",
    ) -> None:
        self._database, self._cluster, self._folders, self._quotas = database, cluster, folders, quotas
        self._cancel_patience_s = cancel_patience_s
        self._scrape_digest = scrape_digest
        self.reaches_cluster = True
        self._stopped = threading.Event()
        self.on_progress: Callable[[int], None] = lambda number: None
        self._told: dict[int, bytes] = {}

    def run(self) -> None:
        """Look after the jobs until `stop`."""
        while not self._stopped.wait(EVERY_S):
            try:
                self.look()
                self.reaches_cluster = True
            except ClusterUnreachableError:
                self.reaches_cluster = False
                self._stopped.wait(UNREACHABLE_S)  # the cluster itself has said why, in the log
            except Exception:
                _log.exception("the runner could not look after the jobs")

    def stop(self) -> None:
        """Have `run` return; jobs go on."""
        self._stopped.set()

    def look(self) -> None:
        """Look once at every job that has a process, then start those whose turn it is."""
        processes = self._cluster.processes()
        active = self._active()
        for job in active:
            try:
                self._follow(job, processes.get(process_name(job)))
            except (JobConflictError, NoSuchJobError) as error:
                _log.warning("job=%s %s", job.id, error)  # somebody was faster; the next look sees what is
            except ClusterUnreachableError:
                raise
            except Exception:
                _log.exception("job=%s could not be looked after", job.id)  # the others can
        self._start_next()

    def _active(self) -> list[KeptJob]:
        return self._database.newest(states=sorted(WITH_DRIVER), limit=1000)

    def _run(self, job: KeptJob) -> RunFolder:
        return self._folders.run_of(job)

    # ---- starting ------------------------------------------------------------------------------------------------

    def _start_next(self) -> None:
        line = self._database.in_line()
        if not line:
            return
        active = self._active()
        waiting = {job.id for job in active if self._waits_for_place(job)}
        for job in jobs_to_start(line, active, waiting, self._cluster.hosts(), self._quotas):
            if self._starts_in_vain(job) >= STARTS_IN_VAIN_MAX:
                why = f"started {STARTS_IN_VAIN_MAX} times without a new cut; see its log"
                self._database.move(job.id, JobState.FAILED, why)
            else:
                self._launch(self._database.move(job.id, JobState.STARTING, "its turn has come"))

    def _waits_for_place(self, job: KeptJob) -> bool:
        try:
            status = read_status(self._run(job).path, job.attempt)
        except ValueError:
            return True  # nobody can tell
        return status is None or status.progress.phase == WAITS_FOR_PLACE

    def _launch(self, job: KeptJob) -> None:
        run = self._run(job)
        if not run.exists():
            shutil.rmtree(run.path, ignore_errors=True)  # what a service that was killed has begun
            run.create(JobSpec.model_validate_json(self._database.spec(job)))
        if self._scrape_digest:
            run.save_scrape_digest(self._scrape_digest)
        run.halt_path.unlink(missing_ok=True)
        run.move_path.unlink(missing_ok=True)
        # A job whose only trainer is the driver itself has no placement group: its process takes what that one needs.
        alone = job.demand.trainer if run.load_job().in_one_process() else None
        self._cluster.start(process_name(job), run.path, job.attempt, job.id, alone)

    def _starts_in_vain(self, job: KeptJob) -> int:
        """How often the job was started since its last cut, or since a person last resumed it."""
        cuts = complete_cuts(self._run(job).cuts_path)
        since = cuts[-1].stat().st_mtime if cuts else 0.0
        starts = 0
        for change in self._database.changes(job):
            if change.state == JobState.PAUSED or change.time < since:
                starts = 0
            elif change.state == JobState.STARTING:
                starts += 1
        return starts

    # ---- following -----------------------------------------------------------------------------------------------

    def _follow(self, job: KeptJob, process: ProcessState | None) -> None:
        run = self._run(job)
        outcome = read_outcome(run.path, job.attempt)  # of before the question to the cluster, or of after
        if outcome is not None:
            self._end(job, outcome)
        elif process is None and job.state == JobState.STARTING and job.wanted == "run":
            self._launch(job)
        elif process is None or process is ProcessState.ENDED:
            self._lost(job)
        else:
            if job.wanted != "run":
                self._halt(job, run)
            self._follow_status(job, run)
            self._follow_demand(job, run)

    def _follow_status(self, job: KeptJob, run: RunFolder) -> None:
        status = read_status(run.path, job.attempt)
        if status is None:
            return
        told = status.model_dump_json().encode()
        if self._told.get(job.number) != told:
            self._told[job.number] = told
            self.on_progress(job.number)
        phase, step = status.progress.phase, status.progress.step
        if phase in ("training", "evaluating") and job.state in (JobState.STARTING, JobState.RECOVERING):
            self._database.move(job.id, JobState.RUNNING, f"trains, at step {step}")
        elif phase == "recovering" and job.state == JobState.RUNNING:
            why = status.progress.news or "a process failed; the job goes on from its last cut"
            self._database.move(job.id, JobState.RECOVERING, why)
        elif phase in ("starting", WAITS_FOR_PLACE) and job.state == JobState.RUNNING:
            why = "goes on with other processes, from its last cut"
            self._database.move(job.id, JobState.RECOVERING, why)

    def _follow_demand(self, job: KeptJob, run: RunFolder) -> None:
        """A job that has been moved to other shards asks for other resources from then on."""
        if not run.move_path.exists() and run.exists():
            demand = demand_of(run.load_job())
            if demand != job.demand:
                self._database.resize(job.id, demand)

    def _halt(self, job: KeptJob, run: RunFolder) -> None:
        purpose: Purpose = "cancel" if job.wanted == "cancel" else "pause"
        asked = run.halt_path.stat().st_mtime if run.halt_path.exists() else None
        if asked is None:
            ask_to_halt(run.halt_path, purpose)
        elif purpose == "cancel":
            if time.time() > asked + self._cancel_patience_s:
                self._cluster.stop(process_name(job))
            elif b"cancel" not in run.halt_path.read_bytes():  # it was to pause, until now
                ask_to_halt(run.halt_path, purpose)

    def _lost(self, job: KeptJob) -> None:
        """Its process is gone and has not said how it ended."""
        self._told.pop(job.number, None)
        if job.wanted == "cancel":
            self._database.move(job.id, JobState.CANCELLED, "cancelled; its process was ended")
        elif job.wanted == "pause":
            self._database.move(
                job.id, JobState.PAUSED, "its process was ended; it goes on from its last cut"
            )
        else:
            why = "its process was lost; it waits to go on from its last cut"
            self._database.move(job.id, JobState.QUEUED, why)

    def _end(self, job: KeptJob, outcome: Outcome) -> None:
        self._told.pop(job.number, None)
        if outcome.kind == "succeeded":
            self._database.move(job.id, JobState.SUCCEEDED, outcome.message)
        elif outcome.kind == "failed":
            self._database.move(job.id, JobState.FAILED, outcome.message)
        elif job.wanted == "cancel":
            self._database.move(job.id, JobState.CANCELLED, "cancelled, " + outcome.message)
        elif job.wanted == "pause":
            self._database.move(job.id, JobState.PAUSED, "paused, " + outcome.message)
        else:
            self._database.move(job.id, JobState.QUEUED, outcome.message)


def process_name(job: KeptJob) -> str:
    """What the process of a job is called on the cluster."""
    return f"pkm-{job.id}-{job.attempt}"
