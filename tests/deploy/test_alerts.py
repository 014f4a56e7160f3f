"""The alerts: each fires when it is to and not on a healthy service, each has its page, none is on a metric that is not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.metrics_reference import families
from tests.deploy.promql import check_query
from tests.deploy.promtool import promtool

ROOT = Path(__file__).resolve().parent.parent.parent
ALERTS, TESTS = ROOT / "deploy/prometheus/alerts.yml", Path(__file__).with_name("alerts_test.yml")


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


RULES: list[dict[str, Any]] = [rule for group in load(ALERTS)["groups"] for rule in group["rules"]]
NAMES = sorted(rule["alert"] for rule in RULES)


def test_promtool_finds_each_alert_right_both_ways() -> None:
    ran = promtool("test", "rules", str(TESTS), folder=TESTS.parent)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_configuration_and_the_rules_are_valid() -> None:
    for command in (
        ["check", "config", "--syntax-only", str(ALERTS.with_name("prometheus.yml"))],
        ["check", "rules", str(ALERTS)],
    ):
        ran = promtool(*command)
        assert ran.returncode == 0, ran.stdout + ran.stderr


def alerts_tried(*, firing: bool) -> list[str]:
    """The alerts that alerts_test.yml has fire, or not fire."""
    return sorted(
        check["alertname"]
        for test in load(TESTS)["tests"]
        for check in test["alert_rule_test"]
        if bool(check["exp_alerts"]) == firing
    )


def test_every_alert_is_tested_both_ways() -> None:
    assert alerts_tried(firing=True) == NAMES
    assert alerts_tried(firing=False) == NAMES
    assert len(set(NAMES)) == len(NAMES)


def test_healthy_series_are_there_for_every_metric_of_an_alert() -> None:
    (healthy,) = [test for test in load(TESTS)["tests"] if test["name"] == "healthy"]
    given = {re.split(r"[{ ]", entry["series"])[0] for entry in healthy["input_series"]}
    asked = {name for rule in RULES for name in re.findall(r"\b(?:pkm_\w+|up)\b", rule["expr"])}
    assert asked - given == set()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["alert"]))
def test_alert_is_on_real_metrics_and_has_its_page(rule: dict[str, Any]) -> None:
    check_query(rule["expr"], families())
    assert rule["labels"]["severity"] in {"page", "ticket"}
    assert rule["annotations"]["summary"].endswith(".")
    page = ROOT / rule["annotations"]["runbook_url"]
    assert page.name == f"{rule['alert']}.md"
    headings = [line for line in page.read_text().splitlines() if line.startswith("#")]
    assert headings == [f"# {rule['alert']}", "## What it means", "## How to look", "## What to do"]


def test_there_is_no_page_without_an_alert() -> None:
    assert sorted(path.stem for path in (ROOT / "docs/runbooks").glob("*.md")) == NAMES
