"""The dashboards: made by their module, whole, and asking only for what there is."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.metrics_reference import families
from tests.deploy.promql import check_query
from tests.deploy.promtool import promtool

ROOT = Path(__file__).resolve().parent.parent.parent
GRAFANA = ROOT / "deploy/grafana"

sys.path.insert(0, str(GRAFANA))
try:
    dashboards = importlib.import_module("dashboards")
finally:
    sys.path.remove(str(GRAFANA))

DASHBOARDS: list[dict[str, Any]] = [dashboard.to_json() for dashboard in dashboards.ALL]
PANELS = [(dashboard, panel) for dashboard in DASHBOARDS for panel in dashboard["panels"]]


def queries() -> list[str]:
    """Every query, as Grafana would send it."""
    chosen = {"$job_id": "j1", "$index": ".*", "$__rate_interval": "1m"}
    found = []
    for _, panel in PANELS:
        for target in panel["targets"]:
            query = target["expr"]
            for name, value in chosen.items():
                query = query.replace(name, value)
            found.append(query)
    return found


def test_the_files_are_what_the_module_writes() -> None:
    files = {path.name: path.read_text() for path in (GRAFANA / "dashboards").iterdir()}
    assert files == {f"{dashboard.uid}.json": dashboard.text() for dashboard in dashboards.ALL}


@pytest.mark.parametrize(("dashboard", "panel"), PANELS, ids=lambda part: part["title"])
def test_panel_is_whole(dashboard: dict[str, Any], panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"] in {"short", "s", "bytes", "Bps", "percentunit"}
    assert panel["targets"]
    for part in (panel, *panel["targets"]):
        assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    assert "datasource" in variables
    for target in panel["targets"]:
        assert target["legendFormat"]
        check_query(target["expr"], families())
        asked = {name for name in ("job_id", "index") if f"${name}" in target["expr"]}
        assert asked <= variables


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: dashboard["title"])
def test_panels_lie_side_by_side(dashboard: dict[str, Any]) -> None:
    taken = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"]) for x in range(place["w"])}
        assert place["x"] + place["w"] <= 24
        assert not cells & taken
        taken |= cells
    titles = [panel["title"] for panel in dashboard["panels"]]
    assert len(set(titles)) == len(titles)
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(titles)


def test_every_query_parses(tmp_path: Path) -> None:
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(queries())]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    ran = promtool("check", "rules", str(tmp_path / "rules.yml"))
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_every_metric_of_a_job_is_looked_at_somewhere() -> None:
    shown = " ".join(queries()) + (ROOT / "deploy/prometheus/alerts.yml").read_text()
    unseen = {family.name for family in families() if not any(name in shown for name in family.samples)}
    assert unseen == set()


def test_what_is_provisioned_is_there() -> None:
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/pkm.yml").read_text())["providers"]
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())[
        "datasources"
    ]
    interval = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())["global"][
        "scrape_interval"
    ]
    assert provider["options"]["path"].endswith("/dashboards")
    assert (source["type"], source["jsonData"]["timeInterval"]) == ("prometheus", interval)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("rate(pkm_lookups_total[1m]) + pkm_nothing", "no metric pkm_nothing"),
        ('pkm_lookups_total{layer="1"}', "no labels {'layer'}"),
        ("sum by (shape) (pkm_shard_version)", "labels {'shape'}"),
        ("pkm_lookups", "no metric pkm_lookups"),
    ],
)
def test_the_linter_sees_what_is_wrong(query: str, message: str) -> None:
    with pytest.raises(AssertionError) as caught:
        check_query(query, families())
    assert message in str(caught.value)
