"""What every command promises: help with an example, exit codes, clean output, no traceback."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup
from typer.testing import CliRunner, Result

from memory_store.errors import CutError, StoreError, UsageError
from service.cli import app
from service.cli.asking import complete_job
from tests.service.jobs.new_jobs import new_job
from tests.service.jobs.running_service import TENANTS, running_service

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = "examples/quickstart.yaml"


def pkm(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, prog_name="pkm", env={"COLUMNS": "200", "NO_COLOR": "1"})


def commands(group: TyperGroup, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from commands(command, (*prefix, name))
        else:
            yield (*prefix, name)


APP = typer.main.get_command(app)
assert isinstance(APP, TyperGroup)
COMMANDS = list(commands(APP))


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_the_commands_are_those_that_users_were_promised():
    promised = (
        "train finetune reshard plan eval generate inspect export data-prepare config-show config-schema "
        "serve submit list status watch logs cancel pause resume cuts top ui doctor"
    )
    assert {"-".join(command) for command in COMMANDS} == set(promised.split())


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_has_an_example_that_the_command_line_understands(command: tuple[str, ...]):
    result = pkm(*command, "--help")
    assert result.exit_code == 0
    assert f"Example: pkm {' '.join(command)}" in result.output
    example = result.output.partition("Example: ")[2].split(" > ")[0]
    parsed = APP
    for word in command:
        assert isinstance(parsed, TyperGroup)
        parsed = parsed.commands[word]
    with parsed.make_context("pkm", shlex.split(example)[1 + len(command) :]):
        pass


def test_nothing_at_all_shows_the_help():
    assert "Start here: pkm train" in pkm().output
    assert pkm("config").exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], "train"),
        (["train", "job.yaml", "--twn", "deep"], "--twin"),
        (["train", QUICKSTART, "--twin", "wide"], "'dense', 'deep'"),
        (["eval", "runs/x", "--split", "train"], "'test', 'validation'"),
        (["train"], "Give either a job file"),
        (["train", QUICKSTART, "--resume", "runs/x"], "Give either a job file"),
        (["train", "--resume", "runs/x", "--twin", "deep"], "don't go with it"),
        (["train", "--resume", "runs/no-such-run"], "is not the folder of a run"),
        (["train", "no-such-job.yaml"], "There is no job file"),
        (["config", "show", QUICKSTART, "--set", "train.lrr=1"], "did you mean 'lr'?"),
        (["config", "show", QUICKSTART, "--set", "memory.k=500"], "500 is more than sub_keys (128)"),
        (["inspect", "runs/x", "--picture", "map.txt"], ".png"),
        (["generate", "runs/x"], "--prompt"),
        (["data", "prepare", "--vocab-size", "10", "--out", "x"], "FILES"),
    ],
)
def test_a_mistake_of_the_user_exits_with_2_and_says_what_to_do(arguments: list[str], words: str):
    result = pkm(*arguments)
    assert result.exit_code == 2
    assert words in result.stderr.replace("\n│ ", " ")
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("error", "code", "stderr"),
    [
        (UsageError("Wrong value 3; give 4."), 2, "Error: Wrong value 3; give 4.\n"),
        (UsageError("a.yaml:1:1: x\na.yaml:2:1: y"), 2, "Errors:\na.yaml:1:1: x\na.yaml:2:1: y\n"),
        (
            StoreError("Shard 1 is gone."),
            1,
            "Error: Shard 1 is gone.\nRepeat the command as `pkm --debug ...`",
        ),
        (CutError("values.arrow is damaged."), 1, "Error: values.arrow is damaged.\nRepeat"),
        (ZeroDivisionError("division by zero"), 1, "Error: ZeroDivisionError: division by zero\nRepeat"),
        (KeyboardInterrupt(), 130, "Stopped.\n"),
    ],
)
def test_failures_become_one_sentence_and_an_exit_code(
    error: BaseException, code: int, stderr: str, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("service.job_file.load_job", fail)
    result = pkm("config", "show", QUICKSTART)
    assert result.exit_code == code
    assert result.stderr.startswith(stderr)
    assert "Traceback" not in result.stderr

    debugged = pkm("--debug", "config", "show", QUICKSTART)
    assert debugged.exit_code == code
    assert ("Traceback" in debugged.stderr) is isinstance(error, Exception)


def test_the_version_is_that_of_the_installed_package(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.metadata.version", {"pkm": "1.2.3"}.__getitem__)
    result = pkm("--version")
    assert (result.exit_code, result.stdout) == (0, "pkm 1.2.3\n")


def test_config_show_tells_values_and_origins():
    shown = pkm("config", "show", QUICKSTART, "--set", "train.lr=3e-4")
    lines = {line.split()[0]: line.split()[1:] for line in shown.stdout.splitlines()}
    assert lines["train.lr"] == ["0.0003", "--set"]
    assert lines["memory.values.lr"] == ["0.03", f"{QUICKSTART}:28"]
    assert lines["memory.query_network"] == ["linear", "default"]
    figures = json.loads(pkm("config", "show", QUICKSTART, "--set", "train.lr=3e-4", "--json").stdout)
    assert figures["train.lr"] == {"value": 0.0003, "origin": "--set"}
    assert figures["memory.layers"]["value"] == [2]
    assert set(figures) == set(lines)


def test_config_schema_is_what_is_checked_in():
    assert pkm("config", "schema").stdout == (ROOT / "docs" / "job.schema.json").read_text()


def test_settings_complete_after_set():
    command = APP.commands["train"]  # type: ignore[attr-defined]
    (option,) = [parameter for parameter in command.params if parameter.name == "overrides"]
    with command.make_context("train", [], resilient_parsing=True) as context:
        found = {item.value: item.help for item in option.shell_complete(context, "memory.val")}
    assert "memory.values.lr=" in found
    assert "memory.values.clip_norm=" in found
    assert all(name.startswith("memory.val") for name in found)
    assert found["memory.values.eps="] == "Added to the denominator of the adaptive optimizers."


def python(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *program.split(), *arguments], cwd=ROOT, capture_output=True, text=True
    )


def test_a_real_process_separates_output_messages_and_exit_code(tmp_path: Path):
    shown = python("-m service.cli", "config", "show", QUICKSTART, "--json")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert json.loads(shown.stdout)["name"]["value"] == "quickstart"
    bad = tmp_path / "bad.yaml"
    bad.write_text((ROOT / QUICKSTART).read_text().replace("sub_keys", "sub_kyes"))
    refused = python("-m service.cli", "train", str(bad))
    assert (refused.returncode, refused.stdout) == (2, "")
    assert f"{bad}:21:3: memory.sub_kyes: unknown key; did you mean 'sub_keys'?" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_help_and_completion_load_neither_torch_nor_ray_nor_numba():
    program = """
import os, sys
import service.cli
heavy = lambda: [name for name in ("torch", "ray", "numba", "pyarrow", "matplotlib") if name in sys.modules]
try:
    service.cli.app(["train", "--help"], prog_name="pkm")
except SystemExit:
    pass
assert not heavy(), heavy()
os.environ |= {"_PKM_COMPLETE": "complete_bash", "COMP_WORDS": "pkm train --tw", "COMP_CWORD": "2"}
try:
    service.cli.app([], prog_name="pkm")
except SystemExit:
    pass
assert not heavy(), heavy()
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--twin" in done.stdout.splitlines()


def test_asking_a_service_loads_neither_torch_nor_ray(tmp_path: Path):
    program = """
import sys
import service.cli
try:
    service.cli.app(["list", "--server", "127.0.0.1:1"], prog_name="pkm")
except SystemExit as end:
    assert end.code == 3, end.code
loaded = [name for name in ("torch", "ray", "matplotlib") if name in sys.modules]
assert not loaded, loaded
"""
    (tmp_path / "token").write_text("a token")
    environment = os.environ | {"PKM_TOKEN_FILE": str(tmp_path / "token")}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr


def test_jobs_are_completed_with_their_ids_and_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with running_service(tmp_path / "service") as service:
        (tmp_path / "token").write_text(TENANTS["ann"])
        monkeypatch.setenv("PKM_TOKEN_FILE", str(tmp_path / "token"))
        monkeypatch.setenv("PKM_SERVER", f"127.0.0.1:{service.port}")
        job = service.database.submit(new_job("r1"))
        assert complete_job(job.id[:3]) == [(job.id, f"{job.name}, queued")]
        assert complete_job("0") == []
        assert complete_job("smal") == [(job.name, f"{job.id}, queued")]
        other = service.database.submit(new_job("r2", name="other"))
        assert {offer for offer, _ in complete_job("")} == {job.id, other.id, job.name, other.name}
        service.database.submit(new_job("r3", name="other"))
        assert complete_job("other") == []  # two have it
        monkeypatch.setenv("PKM_TOKEN_FILE", str(tmp_path / "none"))
        assert complete_job(job.id[:3]) == []
        monkeypatch.setenv("PKM_TOKEN_FILE", str(tmp_path / "token"))
        monkeypatch.setenv("PKM_SERVER", "127.0.0.1:1")
        assert complete_job(job.id[:3]) == []
