"""The states of a job, which may follow which, and what becomes of one when a person asks for something.

    queued -> starting -> running <-> recovering
      ^                     |             |
      +------ paused <- pausing <---------+        and from each of these: failed, cancelled;
                                                   queued again, if the process of a job is lost

A state is where a job is; what it is wanted to be (`Wanted`) is kept beside it. So a service that dies between the two
finds out, when it is started again, what is still to be done.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Literal, NamedTuple

from service.jobs.errors import JobConflictError

Wanted = Literal["run", "pause", "cancel"]


class JobState(StrEnum):
    """Where a job is."""

    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    RECOVERING = "recovering"
    PAUSING = "pausing"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDED = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})
WITHOUT_DRIVER = frozenset({JobState.QUEUED, JobState.PAUSED})
WITH_DRIVER = frozenset(JobState) - ENDED - WITHOUT_DRIVER

# A driver that a service has started and then forgotten, by dying, may have ended meanwhile: so whatever has a driver can
# be found to have ended in any way.
FOLLOWING: Mapping[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.STARTING, JobState.PAUSED, JobState.FAILED, JobState.CANCELLED}),
    JobState.STARTING: ENDED | {JobState.QUEUED, JobState.RUNNING, JobState.PAUSING},
    JobState.RUNNING: ENDED | {JobState.RECOVERING, JobState.PAUSING, JobState.QUEUED},
    JobState.RECOVERING: ENDED | {JobState.RUNNING, JobState.PAUSING, JobState.QUEUED},
    JobState.PAUSING: ENDED | {JobState.PAUSED, JobState.RUNNING},
    JobState.PAUSED: frozenset({JobState.QUEUED, JobState.CANCELLED}),
    **dict.fromkeys(ENDED, frozenset[JobState]()),
}


class Intent(NamedTuple):
    """Where a job is and what it is wanted to be."""

    state: JobState
    wanted: Wanted


def after_cancel(now: Intent) -> Intent:
    """A job without a driver is cancelled at once; one with a driver when that has written its last cut.

    Raises JobConflictError if the job has ended in another way.
    """
    if now.state == JobState.CANCELLED:
        return now
    if now.state in ENDED:
        raise JobConflictError(f"the job has {now.state} already; there is nothing to cancel")
    state = JobState.CANCELLED if now.state in WITHOUT_DRIVER else now.state
    return Intent(state, "cancel")


def after_pause(now: Intent) -> Intent:
    """Raises JobConflictError if the job has ended, or is being cancelled."""
    if now.state in ENDED:
        raise JobConflictError(f"the job has {now.state} already; there is nothing to pause")
    if now.wanted == "cancel":
        raise JobConflictError("the job is being cancelled and can't be paused; wait until it has ended")
    state = JobState.PAUSED if now.state in WITHOUT_DRIVER else JobState.PAUSING
    return Intent(state, "pause")


def after_resume(now: Intent) -> Intent:
    """A paused job waits in the queue again. Raises JobConflictError if the job has ended, or is on its way there."""
    if now.state in ENDED:
        raise JobConflictError(f"the job has {now.state} and can't go on; submit it again")
    if now.wanted == "cancel":
        raise JobConflictError("the job is being cancelled and can't go on; submit it again")
    if now.state == JobState.PAUSING:
        raise JobConflictError("the job is still writing its cut to pause; resume it when it is paused")
    state = JobState.QUEUED if now.state == JobState.PAUSED else now.state
    return Intent(state, "run")
