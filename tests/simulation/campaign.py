"""Runs for many seeds, over all cores, and their sum."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

from tests.planted_defects import plant_from_environment
from tests.simulation.run import Outcome, Run
from tests.simulation.world import CONSEQUENCES, FAULTS

_SEEDS_AT_ONCE = 25


@dataclass(frozen=True)
class Campaign:
    """The outcomes of all seeds."""

    outcomes: list[Outcome]

    @property
    def failures(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if not outcome.good]

    @property
    def fired(self) -> Counter[str]:
        return sum((Counter(outcome.fired) for outcome in self.outcomes), Counter())

    @property
    def never_fired(self) -> list[str]:
        """Kinds of faults that a campaign of this length must have seen, and has not."""
        return [what for what in (*FAULTS, *CONSEQUENCES) if not self.fired[what]]

    def summary(self) -> dict[str, Any]:
        """The counts, for people and for machines."""
        total = {
            name: sum(getattr(outcome, name) for outcome in self.outcomes)
            for name in (
                "lost",
                "doubled",
                "corrupted",
                "stale_accepted",
                "wrong_lookups",
                "groups",
                "events",
                "resent",
            )
        }
        return {
            "seeds": len(self.outcomes),
            "first_seed": self.outcomes[0].seed,
            "failed_seeds": [outcome.seed for outcome in self.failures],
            **total,
            "virtual_seconds": round(sum(outcome.seconds for outcome in self.outcomes)),
            "faults_fired": dict(sorted(self.fired.items())),
            "never_fired": self.never_fired,
        }


def campaign(seeds: Sequence[int], *, trace: bool = False, until_failure: bool = False) -> Campaign:
    """Run every seed, or up to the first that fails; a trace is printed by this process alone."""
    if trace or len(seeds) <= _SEEDS_AT_ONCE:
        return Campaign([run(seed, trace=trace) for seed in seeds])
    outcomes = []
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        for outcome in pool.map(run, seeds, chunksize=_SEEDS_AT_ONCE // 5):
            outcomes.append(outcome)
            if until_failure and not outcome.good:
                pool.shutdown(cancel_futures=True)
                break
    return Campaign(outcomes)


def run(seed: int, *, trace: bool = False) -> Outcome:
    """One run; the same seed gives the same trace."""
    plant_from_environment()
    return Run(seed, trace=trace).go()
