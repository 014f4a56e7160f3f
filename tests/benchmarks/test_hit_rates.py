"""Hit rates of real text: those of the job's own log, and more hits the more rows have a copy."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import hit_rates
from benchmarks.hit_rates import HitRatesSize
from benchmarks.results import load_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).resolve().parent.parent.parent
TRAINED = ("hits, over the run", "hits, second half of the run", "hits, test text")


def test_the_quickstart_is_trained_with_each_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    run = hit_rates.run(HitRatesSize((32,), (16, 1), 24), quick=True)
    everything, a_part = ({"rows": "1,024", "with a copy": f"1/{part}"} for part in (1, 16))
    for what in TRAINED:
        (some,) = run.find(what, **a_part)
        assert 0 < some.median < 0.5
    # Copies are first chosen after the first step and complete after the 21st.
    (steady,) = run.find("hits, second half of the run", **everything)
    assert 0.5 < steady.median <= 1
    (uniform,) = run.find("hits, if rows were read uniformly", **a_part)
    assert uniform.median == 1 / 16


def test_the_results_that_are_kept_are_of_the_sizes_that_are_measured() -> None:
    run = load_run(ROOT / "docs/results/hit-rates.json")
    cases = {(found.case["rows"], found.case["with a copy"]) for found in run.measurements}
    size = hit_rates.FULL
    assert cases == {(f"{sub_keys**2:,}", f"1/{part}") for sub_keys in size.sub_keys for part in size.parts}
    assert {found.what for found in run.measurements} == {*TRAINED, "hits, if rows were read uniformly"}
