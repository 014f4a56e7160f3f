"""Learning rates by step."""

from __future__ import annotations

import math

import pytest

from workers.job_spec import TrainSpec, ValuesSpec
from workers.schedules import dense_factor, values_factor


def spec(schedule: str) -> TrainSpec:
    return TrainSpec.model_validate(
        {"steps": 100, "batch_tokens": 1, "warmup_steps": 10, "schedule": schedule}
    )


@pytest.mark.parametrize("schedule", ["constant", "cosine", "inverse_sqrt"])
def test_warm_up_rises_to_the_full_rate(schedule: str) -> None:
    factors = [dense_factor(spec(schedule), step) for step in range(100)]
    assert factors[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert max(factors) <= 1
    assert factors[10] == pytest.approx(1, abs=0.06)


def test_each_schedule_ends_where_it_should() -> None:
    assert dense_factor(spec("constant"), 99) == 1
    assert dense_factor(spec("cosine"), 100) == pytest.approx(0.1)
    assert dense_factor(spec("cosine"), 55) == pytest.approx(0.55)
    assert dense_factor(spec("inverse_sqrt"), 39) == pytest.approx(math.sqrt(10 / 40))


def test_values_keep_their_rate_unless_asked() -> None:
    def factors(schedule: str) -> list[float]:
        values = ValuesSpec.model_validate({"schedule": schedule})
        return [values_factor(values, spec("cosine"), step) for step in range(100)]

    assert factors("constant") == [1.0] * 100
    assert factors("linear")[0] == 1
    assert factors("linear")[-1] == pytest.approx(0.01)
    assert factors("dense") == [dense_factor(spec("cosine"), step) for step in range(100)]
