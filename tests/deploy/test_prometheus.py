"""A real Prometheus, which finds a real job through the service's targets: every query and every alert can be asked."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.jobs.cluster import RayCluster
from service.jobs.database import JobDatabase, NewJob
from service.jobs.demand import demand_of
from service.jobs.folder import ServiceFolder
from service.jobs.monitoring import open_metrics_port
from service.jobs.runner import Runner
from service.jobs.scheduling import Quotas
from service.jobs.states import JobState
from service.metrics_reference import families
from tests.deploy.promtool import program
from tests.deploy.test_alerts import RULES
from tests.deploy.test_dashboards import queries
from tests.small_job import small_corpus, small_job
from workers.halt import ask_to_halt
from workers.run_folder import RunFolder
from workers.supervisor import train

PROMETHEUS = Path(__file__).resolve().parent.parent.parent / "deploy" / "prometheus"
PATIENCE_S = 240.0


@contextmanager
def training(run: RunFolder) -> Iterator[None]:
    """The run's job, as `pkm train` runs it, until the end of the block."""
    job = run.load_job()
    thread = threading.Thread(target=train, args=(job, run), kwargs={"on_progress": lambda _: None})
    thread.start()
    try:
        yield
    finally:
        ask_to_halt(run.halt_path, "cancel")
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


@contextmanager
def prometheus(folder: Path, service: str, files: ServiceFolder) -> Iterator[str]:
    """A Prometheus on the configuration that is shipped, but for addresses and times; where it answers."""
    text = (PROMETHEUS / "prometheus.yml").read_text()
    text = text.replace("https://service:7072", f"http://{service}").replace("service:7072", service)
    text = text.replace("/etc/pkm/scrape", str(files.scrape_token.parent))
    text = text.replace("/etc/pkm/service-authority.pem", str(files.scrape_authorities))
    config = yaml.safe_load(text)
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(PROMETHEUS / "alerts.yml")]
    own, jobs = config["scrape_configs"]
    own["scheme"] = "http"
    jobs["http_sd_configs"][0]["refresh_interval"] = "1s"
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{found.getsockname()[1]}"
    command = [
        program("prometheus"),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
        "--log.level=warn",
    ]
    with open(folder / "prometheus.log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield f"http://{address}/api/v1"
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def ask(api: str, path: str, **parameters: str) -> Any:
    """What Prometheus answers; an error of its fails the test."""
    url = f"{api}/{path}?{urllib.parse.urlencode(parameters)}"
    with urllib.request.urlopen(url, timeout=60) as answer:
        content = json.loads(answer.read())
    assert content["status"] == "success", content
    return content["data"]


def until(left: Callable[[], object]) -> None:
    """Wait until nothing is left."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            missing: object = left()
        except OSError as error:  # it has not started yet
            missing = error
        if not missing:
            return
        assert time.monotonic() < deadline, missing
        time.sleep(0.5)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("carrier", "durability", "processes"),
    [
        ("in_process", "snapshot", ["driver/0"]),
        ("auto", "log", ["driver/0", "shard/0", "shard/1", "trainer/0"]),
    ],
)
def test_every_metric_is_there_and_every_query_of_the_dashboards_has_an_answer(
    carrier: str, durability: str, processes: list[str], tmp_path: Path
) -> None:
    files = ServiceFolder(tmp_path / "service")
    job = small_job(
        small_corpus(tmp_path),
        store__carrier=carrier,
        store__durability=durability,
        memory__values={"lr": 0.01, "clip_norm": 1.0},
        train__steps=1_000_000,
        train__evaluate_every=10,
        train__evaluation_tokens=256,
        train__cut_every=20,
    )
    database = JobDatabase(files.database)
    kept = database.submit(NewJob("ann", "request", job.name, job.model_dump_json(), demand_of(job)))
    database.move(kept.id, JobState.STARTING, "its turn")
    run = files.run_of(kept)
    run.create(job)
    runner = Runner(database, RayCluster("http://127.0.0.1:1"), files, Quotas())
    with (
        closing(database),
        closing(open_metrics_port(database, files, runner, None, "127.0.0.1", 0)) as port,
        training(run),
        prometheus(tmp_path, port.address, files) as api,
    ):

        def targets_not_up() -> list[tuple[str, str]]:
            found = {t["labels"]["instance"]: t["health"] for t in ask(api, "targets")["activeTargets"]}
            wanted = [port.address, *(f"{kept.id}/{process}" for process in processes)]
            return [(name, found.get(name, "missing")) for name in wanted if found.get(name) != "up"]

        def metrics_not_there() -> set[str]:
            return {name for family in families() for name in family.samples} - set(
                ask(api, "label/__name__/values")
            )

        until(targets_not_up)
        until(metrics_not_there)
        asked = [query.replace("j1", kept.id).replace("[1m]", "[30s]") for query in queries()]
        until(lambda: [query for query in asked if not ask(api, "query", query=query)["result"]])
        for rule in RULES:
            ask(api, "query", query=rule["expr"])

        def rules_not_well() -> list[dict[str, Any]]:
            (group,) = ask(api, "rules")["groups"]
            return [rule for rule in group["rules"] if rule["health"] != "ok"]

        until(rules_not_well)
        # It is well, so that what needs no time to be known to be wrong is not firing.
        firing = [
            alert["labels"]["alertname"]
            for alert in ask(api, "alerts")["alerts"]
            if alert["state"] == "firing"
        ]
        assert set(firing) <= {"PkmDiskNearlyFull"}  # that is the machine's own
