"""Training a job to its end, whatever dies: the driver's process is started again, and goes on from the last cut.

Shards and trainers that die are the driver's business (trainer_group.py). The supervisor itself does nothing that could
fail: it waits.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from memory_store.cuts import complete_cuts, cut_step
from memory_store.durable_files import replace_file
from memory_store.errors import StoreError, UsageError, error_named
from workers.driver import HALTED
from workers.events import count_events, tell
from workers.job_spec import JobSpec
from workers.leftovers import MARK, end_leftovers
from workers.report import Progress, Report
from workers.run_folder import RunFolder

STARTS_IN_VAIN_MAX = 5
_END_S = 20.0


def train(
    job: JobSpec,
    run: RunFolder,
    *,
    resume: bool = False,
    cluster: str | None = None,
    on_progress: Callable[[Progress], None],
) -> Report | None:
    """Train `job`, which `run` holds; with `resume` go on from its last cut. Blocks until the end, and returns the report.

    With `cluster`, a name that no other job has, on the Ray cluster in whose environment this process is. None if somebody
    has stopped the job (halt.py).

    Raises what the driver has raised: UsageError, CutError, StoreError; and StoreError if it dies again and again without
    a new cut. UsageError if the run is being trained already.
    """
    begun = time.time()
    restarts = in_vain = reached = 0
    with _alone(run):
        if cluster is None:
            run.halt_path.unlink(missing_ok=True)
        while (status := _run_driver(run, resume, cluster, on_progress)) < 0:
            end_leftovers(run.path)
            cuts = complete_cuts(run.cuts_path)
            before, reached = reached, cut_step(cuts[-1]) if cuts else 0
            restarts, resume = restarts + 1, bool(cuts)
            message = (
                f"The driver was killed by signal {-status}; another goes on from the cut of step {reached}."
            )
            tell(run.events_path, "restart", reached, message)
            in_vain = 0 if reached > before else in_vain + 1
            if in_vain > STARTS_IN_VAIN_MAX:
                raise StoreError(
                    f"The driver of {run.path} was killed {in_vain} times without a new cut (signal {-status}); "
                    "look for what kills it, memory most likely."
                )
    if status == HALTED:
        return None
    if status:
        raise _failure(run, status)
    report = Report.model_validate_json(run.report_path.read_text(encoding="utf-8"))
    if restarts:
        report = report.model_copy(
            update={
                "restarts": count_events(run.events_path, "restart", begun),
                "cuts_failed": count_events(run.events_path, "cut_failed", begun),
                "wall_seconds": time.time() - begun,
            }
        )
        replace_file(run.report_path, report.model_dump_json(indent=2).encode() + b"\n")
    return report


def is_being_trained(run: RunFolder) -> bool:
    """Whether a supervisor is at work on this run, on this machine."""
    try:
        with _alone(run):
            return False
    except UsageError:
        return True


@contextmanager
def _alone(run: RunFolder) -> Iterator[None]:
    """No other supervisor trains this run meanwhile."""
    with open(run.path / "supervisor.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(
                f"{run.path} is being trained already; wait for its end, or stop it first."
            ) from None
        yield


def _run_driver(
    run: RunFolder, resume: bool, cluster: str | None, on_progress: Callable[[Progress], None]
) -> int:
    """Run a driver to its end; returns its exit status, negative for a signal."""
    run.failure_path.unlink(missing_ok=True)
    reading, writing = os.pipe()
    command = [sys.executable, "-m", "workers.driver", str(run.path), str(writing)]
    if resume:
        command.append("--resume")
    if cluster is not None:
        command += ["--cluster", cluster]
    driver = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        pass_fds=[writing],
        env=os.environ | {MARK: str(run.path), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    os.close(writing)
    try:
        with open(reading, encoding="utf-8") as lines:
            for line in lines:
                if line.endswith("\n"):
                    on_progress(Progress(**json.loads(line)))
        return driver.wait()
    except BaseException:
        # After Ctrl-C the driver has been told so too, and ends by itself.
        with suppress(subprocess.TimeoutExpired):
            driver.wait(_END_S)
        raise
    finally:
        if driver.poll() is None:
            driver.kill()
            driver.wait()
        if driver.stdin is not None:
            driver.stdin.close()


def _failure(run: RunFolder, status: int) -> Exception:
    if not run.failure_path.is_file():
        return StoreError(f"The driver of {run.path} ended with status {status}; its output says why.")
    failure = json.loads(run.failure_path.read_text(encoding="utf-8"))
    return error_named(failure["kind"], failure["message"])
