"""`pkm doctor`: what it prints, how it ends, and what it says of a cluster."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from service.cli import app
from service.doctor import checks, cluster
from service.doctor.cluster import HostReport, check_cluster, findings_of
from service.doctor.finding import Finding, note, well, wrong


def pkm(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, prog_name="pkm", env={"NO_COLOR": "1"})


def machine_with(monkeypatch: pytest.MonkeyPatch, *findings: Finding) -> None:
    def found(folder: Path) -> Iterator[Finding]:
        yield from findings

    monkeypatch.setattr(checks, "check_machine", found)


def test_it_ends_with_1_only_if_something_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine_with(monkeypatch, well("python", "3.11"), note("huge pages", "never", "echo advise"))
    result = pkm("doctor", "--folder", str(tmp_path))
    assert result.exit_code == 0
    assert "All is well." in result.stdout
    assert "looked at by pkm doctor --cluster" in result.stdout
    assert "-> echo advise" in result.stdout
    machine_with(monkeypatch, well("python", "3.11"), wrong("memory", "1 GiB", "end other programs"))
    result = pkm("doctor", "--folder", str(tmp_path))
    assert result.exit_code == 1
    assert "WRONG  memory  1 GiB\n" in result.stdout
    assert "-> end other programs" in result.stdout
    assert "1 of 3 are wrong." in result.stdout


def test_json_is_all_that_stands_on_standard_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine_with(monkeypatch, wrong("memory", "1 GiB", "end other programs"))
    result = pkm("doctor", "--folder", str(tmp_path), "-o", "json")
    assert result.exit_code == 1
    memory, ports = json.loads(result.stdout)
    assert memory == {"check": "memory", "level": "wrong", "found": "1 GiB", "advice": "end other programs"}
    assert ports["check"] == "ports"


def test_a_cluster_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    machine_with(monkeypatch)
    result = pkm("doctor", "--cluster", "--folder", str(tmp_path), "-o", "json")
    assert result.exit_code == 1
    (finding,) = json.loads(result.stdout)
    assert "no cluster is known" in finding["found"]
    assert "pkm serve" in finding["advice"]
    (silent,) = check_cluster("http://127.0.0.1:9", tmp_path)
    assert silent.level == "wrong"
    assert "http://127.0.0.1:9 does not answer" in silent.found


def host(name: str, ahead: float = 0.0, unsure: float = 0.01, python: str = "3.11.9") -> HostReport:
    return HostReport(host=name, ahead_s=ahead, unsure_s=unsure, findings=(well("python", python),))


def test_what_hosts_have_found_is_told_by_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    reports = (host("10.0.0.1"), host("10.0.0.2", ahead=-3.0), host("10.0.0.3", ahead=5.0, unsure=9.0))
    printed = f"noise\n{cluster.MARK}{cluster.REPORTS.dump_json(reports).decode()}\n"
    monkeypatch.setattr(cluster, "_run_on_cluster", lambda dashboard, folder: printed)
    ray, *found = check_cluster("http://127.0.0.1:1", tmp_path)
    assert "3 hosts" in ray.found
    levels = {finding.check: finding.level for finding in found}
    assert levels["10.0.0.1: clock"] == "well"
    assert levels["10.0.0.2: clock"] == "wrong"
    assert levels["10.0.0.3: clock"] == "note"
    (late,) = [finding for finding in found if finding.level == "wrong"]
    assert late.found.startswith("3.00 s behind")
    assert "NTP" in late.advice


def test_hosts_with_another_python() -> None:
    mixed = findings_of([host("a"), host("b", python="3.12.1")])
    assert [finding.found for finding in mixed if finding.level == "wrong"] == ["hosts run 3.11.9, 3.12.1"]


def test_a_cluster_whose_hosts_can_not_be_looked_at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(
        cluster, "_run_on_cluster", lambda dashboard, folder: "No module named service.doctor"
    )
    (finding,) = check_cluster("http://127.0.0.1:1", tmp_path)
    assert finding.level == "wrong"
    assert "No module named" in finding.found
