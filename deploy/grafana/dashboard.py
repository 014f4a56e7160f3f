"""What a Grafana dashboard is made of here: variables, and rows of panels with their queries."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

_SCHEMA_VERSION = 39
_WIDTH, _HEIGHT = 24, 8
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True)
class Panel:
    """One panel: `queries` by legend. `unit` is a name of Grafana's (s, bytes, percentunit, short, ...)."""

    title: str
    description: str
    unit: str
    queries: Mapping[str, str]
    kind: Literal["timeseries", "stat"] = "timeseries"

    def to_json(self, number: int, position: Mapping[str, int]) -> dict[str, Any]:
        targets = [
            {"refId": chr(ord("A") + index), "datasource": _DATASOURCE, "expr": query, "legendFormat": legend}
            for index, (legend, query) in enumerate(self.queries.items())
        ]
        return {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": self.description,
            "datasource": _DATASOURCE,
            "gridPos": dict(position),
            "fieldConfig": {"defaults": {"unit": self.unit}, "overrides": []},
            "targets": targets,
        }


@dataclass(frozen=True)
class Variable:
    """A choice at the top of a dashboard: the values of a label."""

    name: str
    query: str
    several: bool = True

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "type": "query",
            "datasource": _DATASOURCE,
            "query": {"query": self.query, "refId": self.name},
            "refresh": 2,
            "includeAll": self.several,
            "multi": self.several,
            "allValue": ".*" if self.several else None,
        }


@dataclass(frozen=True)
class Dashboard:
    """A dashboard: `rows` of panels, each row as wide as the page."""

    uid: str
    title: str
    description: str
    variables: Sequence[Variable]
    rows: Sequence[Sequence[Panel]]

    def to_json(self) -> dict[str, Any]:
        panels = []
        for line, row in enumerate(self.rows):
            width = _WIDTH // len(row)
            for column, panel in enumerate(row):
                position = {"x": column * width, "y": line * _HEIGHT, "w": width, "h": _HEIGHT}
                panels.append(panel.to_json(len(panels) + 1, position))
        source = {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"}
        return {
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": ["pkm"],
            "schemaVersion": _SCHEMA_VERSION,
            "editable": False,
            "refresh": "15s",
            "time": {"from": "now-1h", "to": "now"},
            "templating": {"list": [source, *(variable.to_json() for variable in self.variables)]},
            "panels": panels,
        }

    def text(self) -> str:
        """What its file holds."""
        return json.dumps(self.to_json(), indent=2) + "\n"

    def file_in(self, folder: Path) -> Path:
        return folder / f"{self.uid}.json"
