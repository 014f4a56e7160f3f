"""Clients, shards, logs and networks under every fault at once: the table ends as if nothing had happened."""

from __future__ import annotations

import pytest

from tests.simulation.campaign import campaign, run

SEEDS_EACH = 100


@pytest.mark.parametrize(
    "first", [0, 100, *(pytest.param(first, marks=pytest.mark.slow) for first in range(200, 500, SEEDS_EACH))]
)
def test_runs_under_faults_end_as_without(first: int) -> None:
    found = campaign(range(first, first + SEEDS_EACH), until_failure=True)
    print(found.summary())
    assert [(each.seed, each.unexplained) for each in found.failures] == []
    assert found.never_fired == [], "a fault that never happens proves nothing"


def test_a_seed_repeats_to_the_last_event() -> None:
    for seed in range(0, 40, 8):
        first, again = run(seed), run(seed)
        assert first == again
        assert first.trace
