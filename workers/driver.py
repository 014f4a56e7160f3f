"""The process that drives a job: it starts shards and trainers and waits for their end. Its supervisor starts it again.

    python -m workers.driver RUN PROGRESS [--resume] [--cluster NAME]

RUN is the run's folder, PROGRESS the number of an open file for its progress, one JSON object a line. With NAME the job runs
under that name on the Ray cluster of its environment. The driver ends when its standard input does: so it never outlives
its supervisor. What went wrong is in the run's failure.json.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import traceback
from dataclasses import asdict
from pathlib import Path

from memory_store.durable_files import replace_file
from memory_store.errors import PkmError
from workers.report import Progress
from workers.run_folder import RunFolder

FAILED, HALTED = 1, 3


def drive(run: RunFolder, progress: int, *, resume: bool, cluster: str | None) -> int:
    """Train the run's job; returns the exit code."""
    from workers.trainer_group import train

    def tell(made: Progress) -> None:
        os.write(progress, json.dumps(asdict(made)).encode() + b"\n")

    try:
        report = train(run.load_job(), run, resume=resume, cluster=cluster, on_progress=tell)
    except PkmError as error:
        _keep(run, type(error).__name__, str(error))
        return FAILED
    except Exception as error:
        traceback.print_exc()
        _keep(run, type(error).__name__, f"{type(error).__name__}: {error}")
        return FAILED
    return 0 if report is not None else HALTED


def _keep(run: RunFolder, kind: str, message: str) -> None:
    replace_file(run.failure_path, json.dumps({"kind": kind, "message": message}).encode())


def _end_with_the_supervisor() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    threading.Thread(target=_end_with_the_supervisor, daemon=True).start()
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("progress", type=int)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--cluster")
    given = parser.parse_args()
    try:
        code = drive(RunFolder(given.run), given.progress, resume=given.resume, cluster=given.cluster)
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    sys.exit(code)
