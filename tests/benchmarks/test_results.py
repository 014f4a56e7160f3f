"""Medians, quartiles and ratios as they are kept and written."""

from pathlib import Path

import pytest

from benchmarks.misses import WHY
from benchmarks.results import Recorder, joined, load_run
from benchmarks.targets import TARGETS


def recorded(benchmark: str) -> Recorder:
    """A recorder with every ratio of a benchmark set but the last, which is missing."""
    recorder = Recorder(benchmark, quick=True)
    *others, last = [target.ratio for target in TARGETS if target.benchmark == benchmark]
    for name in others:
        recorder.ratio(name, recorder.add(name, "ratio", [1.0, 2.0, 3.0, 4.0, 100.0]))
    recorder.missing(last, "not here")
    return recorder


def test_a_measurement_is_the_median_with_quartiles():
    found = Recorder("selection", quick=True).add("layer", "ms", [5.0, 1.0, 2.0, 4.0, 3.0], who="ours", n=64)
    assert (found.median, found.low, found.high, found.repeats) == (3.0, 2.0, 4.0, 5)
    assert found.name == "layer who=ours n=64"


def test_a_run_comes_back_from_its_file(tmp_path: Path):
    run = recorded("selection").finish()
    run.save(tmp_path / "deep" / "selection.json")
    assert load_run(tmp_path / "deep" / "selection.json") == run
    assert run.ratios == {"selection_vs_plain": 3.0}
    assert run.missing == {"layer_vs_product_key_memory": "not here"}


def test_a_forgotten_ratio_is_found_out():
    recorder = Recorder("selection", quick=True)
    recorder.ratio("selection_vs_plain", 3.0)
    with pytest.raises(AssertionError, match="layer_vs_product_key_memory"):
        recorder.finish()


def test_joined_runs_have_one_flat_object_of_ratios():
    runs = [recorded(name).finish() for name in ("selection", "scaling")]
    whole = joined(runs, quick=True)
    assert whole.ratios == {"selection_vs_plain": 3.0, "lookups_2e24_over_2e16": 3.0}
    assert set(whole.missing) == {"layer_vs_product_key_memory", "resident_over_ideal_bytes"}
    names = [measurement.name for measurement in whole.measurements]
    assert len(set(names)) == len(names)


def test_reasons_are_given_for_targets():
    assert WHY.keys() <= {target.ratio for target in TARGETS}


def test_targets_are_bounds_in_the_right_direction():
    by_name = {target.ratio: target for target in TARGETS}
    assert by_name["selection_vs_plain"].met(3.1)
    assert not by_name["selection_vs_plain"].met(2.9)
    assert by_name["step_grpc_over_inprocess"].met(1.2)
    assert not by_name["step_grpc_over_inprocess"].met(1.3)
