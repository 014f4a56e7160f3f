"""The real command line beside a service: every exit code that scripts rely on, and nothing but data on standard output."""

from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer
import yaml
from typer.core import TyperGroup
from typer.testing import CliRunner

import service
from service.cli import app
from service.client import Client, Moved
from service.jobs.database import KeptJob, NewJob
from service.jobs.states import JobState
from tests.service.jobs.new_jobs import DEMAND, new_job
from tests.service.jobs.running_service import TENANTS, Service, running_service
from tests.small_job import small_job

pytestmark = pytest.mark.timeout(400)
WAIT_S = 120


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(tmp_path_factory.mktemp("served") / "service") as found:
        yield found


@pytest.fixture
def environment(running: Service, tmp_path: Path) -> dict[str, str]:
    (tmp_path / "token").write_text(TENANTS["ann"])
    return {
        "PKM_SERVER": f"127.0.0.1:{running.port}",
        "PKM_TOKEN_FILE": str(tmp_path / "token"),
        "PKM_PROFILE": "",
        "COLUMNS": "200",
        "NO_COLOR": "1",
        "GRPC_VERBOSITY": "NONE",
    }


def began(environment: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "service.cli", *arguments],
        env=os.environ | environment | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


_submitted = 0


def job_in(running: Service, *states: JobState) -> KeptJob:
    """A job that has come into these states."""
    global _submitted
    _submitted += 1
    spec = small_job(running.data / "shared" / "corpus").model_dump_json()
    job = running.database.submit(NewJob("ann", f"request-{_submitted}", f"job-{_submitted}", spec, DEMAND))
    for state in states:
        job = running.database.move(job.id, state, "so it is")
    return job


STARTED = (JobState.STARTING, JobState.RUNNING)


@pytest.mark.parametrize(
    ("code", "state"),
    [
        (0, (*STARTED, JobState.SUCCEEDED)),
        (100, (*STARTED, JobState.FAILED)),
        (101, STARTED),
        (103, (JobState.CANCELLED,)),
    ],
)
def test_status_and_watch_end_as_the_job_has(
    running: Service, environment: dict[str, str], code: int, state: tuple[JobState, ...]
) -> None:
    job = job_in(running, *state)
    asked = [began(environment, "status", job.name)]
    if code != 101:
        asked.append(began(environment, "watch", job.id))
    for command in asked:
        told, said = command.communicate(timeout=WAIT_S)
        assert command.returncode == code, said
        assert state[-1] in told


def _broken(*_: object) -> None:
    raise RuntimeError("inside")


@pytest.mark.parametrize(
    ("code", "arguments", "changes", "words"),
    [
        (2, ["cancel", "ended"], {}, "nothing to cancel"),
        (2, ["status", "twins"], {}, "Several jobs"),
        (2, ["eval", "ended"], {}, "no cut"),
        (3, ["list"], {"PKM_SERVER": "127.0.0.1:1"}, "does not answer"),
        (4, ["list"], {"PKM_TOKEN_FILE": "wrong"}, "needs a token"),
        (102, ["pause", "none-such"], {}, "There is no job 'none-such'"),
        (102, ["eval", "none-such"], {}, "There is no job 'none-such'"),
    ],
)
def test_what_goes_wrong_has_a_code_of_its_own_and_one_sentence(
    running: Service, environment: dict[str, str], tmp_path: Path,
    code: int, arguments: list[str], changes: dict[str, str], words: str,
) -> None:  # fmt: skip
    command, given = arguments[0], arguments[1:]
    if given == ["ended"]:
        given = [job_in(running, *STARTED, JobState.SUCCEEDED).id]
    if given == ["twins"]:
        for request in ("twin-1", "twin-2"):
            running.database.submit(new_job(request, name="twins"))
    (tmp_path / "wrong").write_text("wrong")
    if "PKM_TOKEN_FILE" in changes:
        changes = {"PKM_TOKEN_FILE": str(tmp_path / "wrong")}
    told, said = (asked := began(environment | changes, command, *given)).communicate(timeout=WAIT_S)
    assert (asked.returncode, told) == (code, ""), said
    assert words in said
    assert "Traceback" not in said


def test_a_service_that_fails_ends_the_command_with_1(
    running: Service, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_in(running)
    monkeypatch.setattr(running.database, "spec", _broken)
    told, said = (asked := began(environment, "status", job.id)).communicate(timeout=WAIT_S)
    assert (asked.returncode, told) == (1, "")
    assert "its log has the reason" in said


def test_a_time_that_is_over_ends_with_124_and_ctrl_c_with_130_and_the_job_goes_on(
    running: Service, environment: dict[str, str]
) -> None:
    job = job_in(running, *STARTED)
    late = began(environment, "watch", job.id, "--timeout", "0.1")
    watch = began(environment, "watch", job.id)
    assert watch.stderr is not None
    assert "queued" in watch.stderr.readline()
    watch.send_signal(signal.SIGINT)
    _, said = watch.communicate(timeout=WAIT_S)
    assert (watch.returncode, "Detached" in said) == (130, True)
    late.communicate(timeout=WAIT_S)
    assert late.returncode == 124
    assert running.database.get(job.id).state == JobState.RUNNING


# ---- standard output ---------------------------------------------------------------------------------------------

APP = typer.main.get_command(app)
assert isinstance(APP, TyperGroup)
WITH_OUTPUT = {
    name
    for name, command in APP.commands.items()
    if any("-o" in parameter.opts for parameter in command.params)
}
# With a trained job in test_remote_run.py, and in doctor/test_command.py.
TRIED_ELSEWHERE = {"eval", "inspect", "export", "doctor"}

ARGUMENTS: dict[str, Callable[[Service, Path], list[str]]] = {
    "list": lambda running, _: [],
    "top": lambda running, _: [],
    "status": lambda running, _: [job_in(running).id],
    "watch": lambda running, _: [job_in(running, *STARTED, JobState.SUCCEEDED).id],
    "cuts": lambda running, _: [job_in(running).id],
    "cancel": lambda running, _: [job_in(running).id],
    "pause": lambda running, _: [job_in(running).id],
    "resume": lambda running, _: [job_in(running).id],
    "reshard": lambda running, _: [job_in(running, *STARTED).id, "--shards", "3"],
    "submit": lambda running, path: [job_file(running, path)],
}


def job_file(running: Service, folder: Path) -> str:
    job = small_job(running.data / "shared" / "corpus", store__carrier="auto")
    (folder / "job.yaml").write_text(yaml.safe_dump(job.model_dump(mode="json")))
    return str(folder / "job.yaml")


def test_every_command_that_takes_an_output_is_tried() -> None:
    assert set(ARGUMENTS) | TRIED_ELSEWHERE == WITH_OUTPUT


@pytest.mark.parametrize("command", ARGUMENTS)
def test_with_o_json_standard_output_holds_data_and_nothing_else(
    running: Service,
    environment: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(Client, "reshard", lambda *_: Moved(3, 1, 0.5))
    arguments = [command, *ARGUMENTS[command](running, tmp_path)]
    shown = CliRunner().invoke(app, [*arguments, "-o", "json"])
    assert shown.exit_code in (0, 101), shown.stderr
    json.loads(shown.stdout)
    with pytest.raises(ValueError, match=r"Expecting value|Extra data"):
        json.loads(CliRunner().invoke(app, arguments).stdout)


# ---- programs ----------------------------------------------------------------------------------------------------


def test_every_command_has_its_method_with_types_and_words() -> None:
    methods = {"list": "list", "status": "get", "top": "cluster"}
    for command in ("submit", "watch", "logs", "cancel", "pause", "resume", "cuts", "reshard"):
        methods[command] = command
    asking = set(ARGUMENTS) | {"logs"}
    assert set(methods) == asking
    for found in (*(getattr(Client, name) for name in methods.values()), service.fetch_run):
        assert inspect.getdoc(found)
        hints = typing.get_type_hints(found, vars(sys.modules[found.__module__]))
        assert set(hints) == {*inspect.signature(found).parameters, "return"} - {"self"}
