"""A real service with real Ray and real jobs: killed at every step, and looked at from outside, through the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from memory_store.cuts import complete_cuts
from tests.service.served import Served, until
from tests.small_job import dense_weights, small_corpus, small_job, table_content
from workers.report import read_records
from workers.run_folder import RunFolder
from workers.trainer_group import train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
STEPS = 240
LONG = {"train__steps": STEPS, "train__cut_every": 60}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("service")
    (folder / "data" / "shared").mkdir(parents=True)
    small_corpus(folder / "data" / "shared")
    service = Served(folder, cpus=7)
    service.start()
    yield service
    service.end()


@pytest.fixture(scope="module")
def straight(served: Served, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The same job in one process, undisturbed."""
    run = RunFolder(tmp_path_factory.mktemp("straight") / "run")
    job = small_job(served.folder / "data" / "shared" / "corpus", store__lookup="fetch", **LONG)
    run.create(job)
    train(job, run, on_progress=lambda _: None)
    return run


def assert_same_end(served: Served, job: str, straight: RunFolder) -> None:
    run = RunFolder(Path(served.details(job)["run"]))
    cuts = [complete_cuts(folder.cuts_path)[-1] for folder in (run, straight)]
    assert table_content(cuts[0]) == table_content(cuts[1])
    assert dense_weights(cuts[0]) == dense_weights(cuts[1])
    losses = [
        [(line.step, line.loss) for line in read_records(folder.metrics_path)] for folder in (run, straight)
    ]
    assert losses[0] == losses[1]


def states(served: Served, job: str) -> list[str]:
    return [change["state"] for change in served.details(job)["changes"]]


def test_its_page_is_served_to_who_has_the_token(served: Served) -> None:
    address, token = served.pkm("ui", "--no-browser").stdout.strip().split("/#token=")
    with urllib.request.urlopen(address, timeout=60) as page:
        assert b"<title>pkm</title>" in page.read()
    asked = urllib.request.Request(f"{address}/api/jobs", headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(asked, timeout=60) as answer:
        assert json.load(answer)["next_page"] == ""
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{address}/api/jobs", timeout=60)


def test_the_doctor_looks_at_every_host_of_the_cluster(served: Served) -> None:
    seen = served.pkm("doctor", "--cluster", "-o", "json")
    findings = {finding["check"]: finding for finding in json.loads(seen.stdout)}
    assert "1 hosts" in findings["ray"]["found"], findings["ray"]
    (host,) = (check.removesuffix(": clock") for check in findings if check.endswith(": clock"))
    assert findings[f"{host}: clock"]["level"] == "well"
    assert findings[f"{host}: python"]["found"] == findings["python"]["found"]
    assert seen.returncode == any(finding["level"] == "wrong" for finding in findings.values())


def test_a_job_is_submitted_followed_and_used(served: Served) -> None:
    done = served.pkm("submit", served.job_file(), "--follow", "-o", "json")
    assert done.returncode == 0, done.stderr
    job = json.loads(done.stdout)
    assert job["state"] == "succeeded"
    assert "running: trains" in done.stderr
    prefix = job["id"][:8]
    assert served.pkm("watch", prefix).returncode == 0
    assert "phase=training" in served.pkm("logs", prefix).stdout
    assert served.pkm("logs", prefix, "--tail", "1").stdout.count("\n") == 1
    assert [cut["step"] for cut in json.loads(served.pkm("cuts", prefix, "-o", "json").stdout)] == [30, 60]
    evaluated = json.loads(served.pkm("eval", prefix, "--json").stdout)
    assert f"test perplexity {evaluated['perplexity']:.2f}" in job["reason"]
    top = json.loads(served.pkm("top", "-o", "json").stdout)
    assert top["cluster"]["hosts"][0]["cpus"] == 7


def test_the_example_submits_follows_and_plots(served: Served, tmp_path: Path) -> None:
    example = Path(__file__).parents[2] / "examples" / "submit_and_plot.py"
    done = subprocess.run(
        [sys.executable, str(example), served.job_file(), str(tmp_path / "loss.png")],
        env=served.environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "succeeded: test perplexity" in done.stdout
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_two_jobs_of_one_name_run_at_once_and_end_alike(served: Served, straight: RunFolder) -> None:
    first, second = served.submit(**LONG), served.submit(**LONG)
    assert first != second
    until(lambda: served.state(first) == "running" and served.state(second) == "running")
    for job in (first, second):
        served.wait_for(job, "succeeded")
        assert_same_end(served, job, straight)


def test_jobs_do_not_notice_that_their_service_is_killed(served: Served, straight: RunFolder) -> None:
    job = served.submit(**LONG)
    served.kill()
    served.start()
    watch = served.begin("watch", job)
    logs = served.begin("logs", "-f", job)
    assert watch.stderr  # who begins while there is no service is told so, and gives up
    assert logs.stdout
    assert watch.stderr.readline()
    first = logs.stdout.readline()
    for reached in (1, 20, 100):
        until(lambda at=reached: served.steps(job) >= at)  # type: ignore[misc]
        served.kill()
        assert served.pkm("list").returncode == 3
        served.start()
    assert watch.wait(300) == 0, watch.stderr.read()
    assert logs.wait(60) == 0
    printed = first + logs.stdout.read()
    assert printed == (Path(served.details(job)["run"]) / "job.log").read_text()
    assert states(served, job) == ["queued", "starting", "running", "succeeded"]
    assert_same_end(served, job, straight)


def test_pause_resume_and_cancel_outlive_a_killed_service(served: Served, straight: RunFolder) -> None:
    job = served.submit(**LONG)
    until(lambda: served.steps(job) >= 10)
    assert served.pkm("pause", job, "--reason", "lunch").returncode == 0
    served.kill()
    served.start()
    served.wait_for(job, "paused")
    assert served.pkm("watch", job, "--timeout", "1").returncode == 124
    assert served.pkm("resume", job).returncode == 0
    served.kill()
    served.start()
    served.wait_for(job, "succeeded")
    assert served.details(job)["job"]["attempt"] == 2
    assert_same_end(served, job, straight)

    other = served.submit(**LONG)
    until(lambda: served.steps(other) >= 10)
    assert served.pkm("cancel", other).returncode == 0
    served.kill()
    served.start()
    served.wait_for(other, "cancelled")
    assert served.pkm("status", other).returncode == 103
    assert complete_cuts(RunFolder(Path(served.details(other)["run"])).cuts_path)


def test_a_job_whose_processes_are_killed_goes_on_from_its_last_cut(
    served: Served, straight: RunFolder
) -> None:
    job = served.submit(**LONG)
    until(lambda: served.steps(job) >= 80)
    found = subprocess.run(
        ["pgrep", "-f", f"workers.job_process .*{job}"], capture_output=True, text=True, check=True
    )
    for process in found.stdout.split():
        os.kill(int(process), signal.SIGKILL)
    served.wait_for(job, "succeeded")
    assert states(served, job).count("queued") == 2
    assert_same_end(served, job, straight)


def test_a_job_moves_to_more_shards(served: Served, straight: RunFolder) -> None:
    job = served.submit(**LONG)
    until(lambda: served.steps(job) >= 10)
    moved = served.pkm("reshard", job, "--shards", "3", "--json")
    assert moved.returncode == 0, moved.stderr
    assert json.loads(moved.stdout)["shards"] == 3
    other = served.submit(**LONG)
    until(lambda: served.state(other) == "running" or served.state(job) == "succeeded")
    if served.state(job) == "running":
        crowded = served.pkm("reshard", job, "--shards", "5")
        assert crowded.returncode == 2
        assert "other jobs have taken 3 CPUs" in crowded.stderr
    served.pkm("cancel", other)
    refused = served.pkm("reshard", job, "--shards", "900")
    assert refused.returncode == 2
    served.wait_for(job, "succeeded")
    assert served.details(job)["job"]["demand"]["shards"] == 3
    assert_same_end(served, job, straight)
    served.wait_for(other, "cancelled")


def test_commands_end_with_the_codes_that_scripts_expect(served: Served, tmp_path: Path) -> None:
    assert served.pkm("status", "zzzzzzzzzzzz").returncode == 102
    refused = served.pkm("submit", served.job_file(store__shards=64))
    assert refused.returncode == 2
    assert "asks for 64 shards" in refused.stderr
    failing = served.submit(train__steps=20, train__lr=1e30, train__clip_norm=None)
    assert served.pkm("watch", failing).returncode == 100
    (tmp_path / "token").write_text("wrong\n")
    denied = subprocess.run(
        [sys.executable, "-m", "service.cli", "list"],
        env=served.environment | {"PKM_TOKEN_FILE": str(tmp_path / "token")}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert denied.returncode == 4
    job = served.submit(**LONG)
    watch = served.begin("watch", job)
    assert watch.stderr is not None
    assert "queued" in watch.stderr.readline()
    watch.send_signal(signal.SIGINT)
    assert watch.wait(30) == 130
    assert served.pkm("status", job).returncode == 101
    served.pkm("cancel", job)
    served.wait_for(job, "cancelled")


def test_ray_answers_nobody_without_its_token(served: Served) -> None:
    dashboard = json.loads((served.folder / "ray.json").read_text())["dashboard"]
    job = {"entrypoint": f"touch {served.folder}/broken-in"}
    for path, data in (("/api/jobs/", None), ("/nodes", None), ("/api/jobs/", json.dumps(job).encode())):
        request = urllib.request.Request(
            f"{dashboard}{path}", data, {"Content-Type": "application/json", "Authorization": "Bearer wrong"}
        )
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=20)
        assert refused.value.code in (401, 403)
        refused.value.close()
    assert not (served.folder / "broken-in").exists()


def test_no_secret_is_in_arguments_logs_or_the_database(served: Served) -> None:
    secrets = [(served.folder / name).read_text().strip() for name in ("token", "ray-token")]
    for name in ("token", "ray-token"):
        assert (served.folder / name).stat().st_mode & 0o077 == 0
    arguments = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    kept = [
        path
        for path in served.folder.rglob("*")
        if path.is_file() and path.name not in ("token", "ray-token")
    ]
    assert any(path.name == "job.log" for path in kept)
    for secret in secrets:
        assert len(secret) == 64
        assert secret not in arguments
        for path in kept:
            assert secret.encode() not in path.read_bytes(), path
