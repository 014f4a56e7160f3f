"""How often the trainers of a run have started in this start of the job, and how often in vain."""

from __future__ import annotations

import json
from dataclasses import dataclass

from memory_store.cuts import complete_cuts, cut_step
from memory_store.durable_files import replace_file
from workers.events import tell
from workers.run_folder import RunFolder

ATTEMPTS = "attempts.json"
ATTEMPTS_IN_VAIN_MAX = 5


@dataclass(frozen=True)
class Attempts:
    """How often the trainers have started, and how often in a row without a new cut; the last began at `step`."""

    count: int
    in_vain: int
    step: int


def count_attempt(run: RunFolder) -> Attempts:
    """The leading trainer starts; it tells so if it is not for the first time."""
    path = run.path / ATTEMPTS
    before = Attempts(**json.loads(path.read_text())) if path.is_file() else Attempts(0, 0, 0)
    cuts = complete_cuts(run.cuts_path)
    step = cut_step(cuts[-1]) if cuts else 0
    in_vain = before.in_vain + 1 if before.count and step == before.step else 0
    attempts = Attempts(before.count + 1, in_vain, step)
    if before.count:
        tell(
            run.events_path, "restart", step, f"The trainers were started again, from the cut of step {step}."
        )
    replace_file(path, json.dumps(vars(attempts)).encode())
    return attempts
