"""Samples are taken in turn, and a sample is the time of one call."""

import time
from functools import partial

import numpy as np

from benchmarks import measuring
from benchmarks.measuring import paired_seconds


def test_slow_actions_take_turns_and_each_round_begins_with_another():
    called: list[str] = []
    seconds = paired_seconds({name: partial(called.append, name) for name in "abc"}, 3, slow=True)
    assert called == list("abcbcacab")
    assert {name: samples.shape for name, samples in seconds.items()} == dict.fromkeys("abc", (3,))


def test_samples_that_are_equally_long_have_more_calls_of_a_quick_action():
    called: list[str] = []

    def act(name: str, seconds: float) -> None:
        called.append(name)
        time.sleep(seconds)

    actions = {"slow": partial(act, "slow", 0.32), "quick": partial(act, "quick", 0.02)}
    seconds = paired_seconds(actions, 2, equally_long=True)
    assert called.count("slow") == 1 + 2
    assert 2 + 2 * 4 < called.count("quick") <= 2 + 2 * 16
    assert np.all(seconds["quick"] < 0.16)


def test_a_fast_action_is_called_often_and_its_time_is_that_of_one_call():
    calls = 0

    def nap() -> None:
        nonlocal calls
        calls += 1
        time.sleep(0.001)

    (samples,) = paired_seconds({"nap": nap}, 2).values()
    assert calls > 2 + 2
    assert np.all(samples >= 0.001)
    assert np.all(samples * (calls - 2) / 2 >= measuring.SAMPLE_S / 4)
