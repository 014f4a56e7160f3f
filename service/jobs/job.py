"""A job as everyone sees it: the service, its callers, and what is shown of it."""

from __future__ import annotations

from dataclasses import dataclass

from service.jobs.demand import Demand
from service.jobs.states import JobState, Wanted


@dataclass(frozen=True)
class Job:
    """A job as it is now. Times are seconds since 1970; `attempt` counts its starts; `reason` says why it is in its state."""

    id: str
    tenant: str
    name: str
    priority: int
    demand: Demand
    state: JobState
    reason: str
    wanted: Wanted
    attempt: int
    submitted_at: float
    changed_at: float
    started_at: float | None
    ended_at: float | None


@dataclass(frozen=True)
class Change:
    """A state that a job has come into."""

    time: float
    state: JobState
    reason: str
