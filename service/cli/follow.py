"""Waiting for the end of a job, with or without showing how it gets on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from service.cli.asking import DETACHED, TIMED_OUT, Output, exit_code, print_job
from service.cli.output import messages

if TYPE_CHECKING:
    from service.client import Client, JobUpdate
    from service.jobs.job import Job


@dataclass(frozen=True)
class Waited:
    """The job when the waiting was over, because it has ended (`code` None), or for the reason of `code`."""

    job: Job
    code: int | None = None

    def finish(self, output: Output) -> None:
        """Print the job and end the command."""
        print_job(self.job, output)
        raise typer.Exit(exit_code(self.job.state) if self.code is None else self.code)


def wait_for_end(client: Client, job_id: str, timeout_s: float | None) -> Waited:
    """Wait until the job has ended, the time is over, or Ctrl-C."""
    return _until_the_end(client, job_id, timeout_s, lambda update: None)


def follow_job(client: Client, job_id: str, timeout_s: float | None) -> Waited:
    """The same, showing every state, and on a terminal how the training gets on."""
    from service.job_view import JobView

    with JobView(messages(), lambda step: client.metrics(job_id, step)) as view:
        return _until_the_end(client, job_id, timeout_s, view.show)


def _until_the_end(
    client: Client, job_id: str, timeout_s: float | None, show: Callable[[JobUpdate], None]
) -> Waited:
    from service.jobs.states import ENDED

    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    last = client.get(job_id).job
    try:
        for update in _updates(client, last.id, deadline):
            if update is None:
                messages().print(
                    f"The time is over; {last.id} is {last.state}. Come back with: pkm watch {last.id}",
                    markup=False,
                )
                return Waited(last, TIMED_OUT)
            last = update.job
            show(update)
            if last.state in ENDED:
                break
        return Waited(last)
    except KeyboardInterrupt:
        messages().print(f"Detached; {last.id} goes on. Come back with: pkm watch {last.id}", markup=False)
        return Waited(last, DETACHED)


def _updates(client: Client, job_id: str, deadline: float | None) -> Iterator[JobUpdate | None]:
    """What is told of the job; None when the time is over."""
    if deadline is None:
        yield from client.watch(job_id)
        return
    # A watch blocks until the job changes: in a thread, so that the time can run out before.
    told: list[JobUpdate] = []
    failed: list[Exception] = []
    changed = threading.Condition()
    over = False

    def listen() -> None:
        nonlocal over
        try:
            for update in client.watch(job_id):
                with changed:
                    told.append(update)
                    changed.notify()
        except Exception as error:
            failed.append(error)
        with changed:
            over = True
            changed.notify()

    threading.Thread(target=listen, daemon=True).start()
    while True:
        with changed:
            changed.wait_for(lambda: told or over, max(0.0, deadline - time.monotonic()))
            fresh, told[:] = list(told), []
            ended = over
        yield from fresh
        if ended:
            if failed:
                raise failed[0]
            return
        if time.monotonic() >= deadline:
            yield None
            return
