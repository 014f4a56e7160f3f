"""The process of a job of a service: it supervises the job's driver to the end, and tells how far it is and how it ended.

    python -m workers.job_process RUN ATTEMPT NAME

RUN is the run's folder, ATTEMPT which start of the job this is, NAME what it is called on the Ray cluster of this process's
environment. Everything that is printed, by the driver, the shards and the trainers too, goes to the end of RUN/job.log.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from pathlib import Path

from memory_store.cuts import complete_cuts
from memory_store.errors import PkmError
from workers.job_status import Outcome, Status, tell_outcome, tell_status
from workers.leftovers import end_leftovers
from workers.report import Progress
from workers.run_folder import RunFolder
from workers.supervisor import train

_LINE_EVERY_S = 10.0

_log = logging.getLogger("job")


def run_job(run: RunFolder, attempt: int, name: str) -> Outcome:
    """Train the run's job to its end, or until somebody stops it."""
    end_leftovers(run.path)
    tell = _Teller(run, attempt)
    try:
        report = train(
            run.load_job(), run, resume=bool(complete_cuts(run.cuts_path)), cluster=name, on_progress=tell
        )
    except PkmError as error:
        return Outcome(attempt=attempt, kind="failed", message=str(error))
    except Exception as error:
        _log.exception("the job failed")
        return Outcome(attempt=attempt, kind="failed", message=f"{type(error).__name__}: {error}")
    if report is None:
        return Outcome(attempt=attempt, kind="halted", message="stopped after a cut")
    message = f"test perplexity {report.test_perplexity:.2f} after {report.steps} steps"
    return Outcome(attempt=attempt, kind="succeeded", message=message)


class _Teller:
    """Keeps the progress in the run's status, and now and then in the log."""

    def __init__(self, run: RunFolder, attempt: int) -> None:
        self._run, self._attempt = run, attempt
        self._phase, self._next_line = "", 0.0

    def __call__(self, progress: Progress) -> None:
        tell_status(self._run.path, Status(attempt=self._attempt, progress=progress))
        now = time.monotonic()
        if progress.news:
            _log.warning("step=%d %s", progress.step, progress.news)
        elif progress.phase != self._phase or now >= self._next_line:
            self._phase, self._next_line = progress.phase, now + _LINE_EVERY_S
            figures = "" if progress.loss is None else f" loss={progress.loss:.4f}"
            figures += f" tokens_per_second={progress.tokens_per_second or 0:.0f}" if figures else ""
            _log.info("step=%d/%d phase=%s%s", progress.step, progress.steps, progress.phase, figures)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("attempt", type=int)
    parser.add_argument("name")
    given = parser.parse_args()
    folder = RunFolder(given.run)
    log = os.open(folder.log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for standard in (sys.stdout.fileno(), sys.stderr.fileno()):
        os.dup2(log, standard)
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(
        level=logging.INFO,
        format=f"%(asctime)sZ %(levelname)s job={given.name} attempt={given.attempt} %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
    )
    outcome = run_job(folder, given.attempt, given.name)
    _log.info("%s: %s", outcome.kind, outcome.message)
    tell_outcome(folder.path, outcome)
