"""What may follow what: looked at for every state and every wish."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import get_args

import pytest

from service.jobs.errors import JobConflictError
from service.jobs.states import (
    ENDED,
    FOLLOWING,
    WITH_DRIVER,
    WITHOUT_DRIVER,
    Intent,
    JobState,
    Wanted,
    after_cancel,
    after_pause,
    after_resume,
)

EVERY = [Intent(state, wanted) for state, wanted in product(JobState, get_args(Wanted))]


def test_every_state_is_reached_from_the_queue_and_an_end_is_final() -> None:
    reached, fresh = set(), {JobState.QUEUED}
    while fresh:
        reached |= fresh
        fresh = set().union(*(FOLLOWING[state] for state in fresh)) - reached
    assert reached == set(JobState)
    assert not any(FOLLOWING[state] for state in ENDED)
    assert {*WITH_DRIVER, *WITHOUT_DRIVER, *ENDED} == set(JobState)


@pytest.mark.parametrize("state", sorted(WITH_DRIVER))
def test_a_job_with_a_driver_can_be_found_to_have_ended_in_any_way(state: JobState) -> None:
    assert FOLLOWING[state] >= ENDED


@pytest.mark.parametrize("ask", [after_cancel, after_pause, after_resume])
@pytest.mark.parametrize("now", EVERY, ids=lambda now: f"{now.state}-{now.wanted}")
def test_what_a_person_asks_for_follows_from_where_the_job_is(
    ask: Callable[[Intent], Intent], now: Intent
) -> None:
    try:
        then = ask(now)
    except JobConflictError:
        assert now.state in ENDED or now.wanted == "cancel" or now.state == JobState.PAUSING
        return
    assert then.state == now.state or then.state in FOLLOWING[now.state]
    assert ask(then) == then, "asking twice is asking once"
    if now.state in ENDED:
        assert then == now


@pytest.mark.parametrize("state", sorted(WITH_DRIVER))
def test_a_cancelled_job_is_never_brought_back(state: JobState) -> None:
    now = after_cancel(Intent(state, "run"))
    assert now == (state, "cancel")
    for ask in (after_pause, after_resume):
        with pytest.raises(JobConflictError, match="being cancelled"):
            ask(now)


@pytest.mark.parametrize("state", sorted(WITHOUT_DRIVER))
def test_without_a_driver_there_is_nothing_to_wait_for(state: JobState) -> None:
    assert after_cancel(Intent(state, "run")).state == JobState.CANCELLED
    assert after_pause(Intent(state, "run")).state == JobState.PAUSED
    assert after_resume(Intent(state, "pause")).state == JobState.QUEUED
