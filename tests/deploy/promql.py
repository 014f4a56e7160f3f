"""Whether a query of Prometheus asks only for metrics and labels that exist."""

from __future__ import annotations

import re
from collections.abc import Iterable

from service.metrics_reference import TARGET_LABELS, Family

# Of Prometheus itself, for each target; and what a process tells of itself.
_OTHERS = {"up", "process_resident_memory_bytes", "process_cpu_seconds_total", "process_start_time_seconds"}
_SELECTOR = re.compile(r"\b(pkm_\w+|process_\w+|up)\b(\{[^}]*\})?")
_MATCHER = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"(?:[^"\\]|\\.)*"')
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)")


def check_query(query: str, families: Iterable[Family]) -> None:
    """Raises AssertionError, naming it, for a metric or a label that does not exist. Syntax is Prometheus' business."""
    samples = {name: family for family in families for name in family.samples}
    selectors = _SELECTOR.findall(query)
    assert selectors, f"no metric in {query}"
    labels: set[str] = set(TARGET_LABELS)
    for name, matchers in selectors:
        assert name in samples or name in _OTHERS, f"there is no metric {name}"
        own = {*TARGET_LABELS, *(samples[name].sample_labels(name) if name in samples else ())}
        asked = set(_MATCHER.findall(matchers))
        assert asked <= own, f"{name} has no labels {asked - own}"
        labels |= own
    for grouping in _GROUPING.findall(query):
        asked = set(filter(None, re.split(r"[\s,]+", grouping)))
        assert asked <= labels, f"no metric of {query} has labels {asked - labels}"
