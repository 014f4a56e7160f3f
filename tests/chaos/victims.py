"""The processes of a running job, found by the mark that its supervisor gives them, and their deaths."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from workers.leftovers import MARK

TITLES = {"shard": "ray::ShardActor", "trainer": "ray::TrainerActor", "driver": "workers.driver"}


def victims(run: Path, kind: str) -> list[psutil.Process]:
    """The living processes of one kind: shards, trainers, or the driver."""
    return [process for process in _marked(run) if TITLES[kind] in " ".join(_command(process))]


def kill(process: psutil.Process) -> bool:
    """SIGKILL it; whether it was alive, and is gone."""
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return False
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.01)
    return False


def _marked(run: Path) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(MARK) == str(run):
                yield process
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []
