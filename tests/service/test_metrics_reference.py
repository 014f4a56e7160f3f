"""docs/metrics.md is what the registries say; and names and labels are as Prometheus' own linter and our rules want them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from prometheus_client import generate_latest

from service.metrics_reference import families, page, registries
from tests.deploy.promtool import program

LABELS = {"table", "kind", "carrier", "cause", "state", "phase", "split", "part", "request", "outcome"}
UNITS = ("seconds", "bytes", "ratio", "nats", "steps", "rows", "slots")


def test_the_page_is_up_to_date() -> None:
    path = Path(__file__).resolve().parent.parent.parent / "docs" / "metrics.md"
    assert path.read_text() == page(), "make it again: python -m service.metrics_reference > docs/metrics.md"


def test_names_and_labels_keep_the_rules() -> None:
    for family in families():
        assert re.fullmatch(r"pkm_[a-z0-9]+(_[a-z0-9]+)*", family.name), family
        assert set(family.labels) <= LABELS, family
        assert family.meaning.endswith("."), family
        if family.kind == "histogram":
            assert family.name.endswith(UNITS), family


def test_one_name_means_the_same_in_every_process() -> None:
    said: dict[str, tuple[str, tuple[str, ...], str]] = {}
    for family in families():
        what = family.kind, family.labels, family.meaning
        assert said.setdefault(family.name, what) == what


def test_promtool_finds_nothing_to_say() -> None:
    for registry in registries().values():
        checked = subprocess.run(
            [program("promtool"), "check", "metrics"],
            input=generate_latest(registry),
            capture_output=True,
            check=False,
        )
        lines = [line for line in (checked.stdout + checked.stderr).decode().splitlines() if "pkm_" in line]
        assert lines == []
