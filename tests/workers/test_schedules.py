"""Learning rates by step."""

from __future__ import annotations

import math

import pytest

from workers.job_spec import TrainSpec
from workers.memory_spec import ValuesSpec
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


def test_values_fall_to_the_end_that_is_asked_for() -> None:
    def factor(schedule: str, step: int) -> float:
        values = ValuesSpec.model_validate({"schedule": schedule, "lr": 0.01, "lr_end": 0.001})
        return values_factor(values, spec("constant"), step)

    for schedule in ("linear", "cosine"):
        assert factor(schedule, 0) == 1
        assert factor(schedule, 50) == pytest.approx(0.55)
        assert factor(schedule, 100) == pytest.approx(0.1)
    assert factor("linear", 25) == pytest.approx(1 - 0.9 / 4)
    assert factor("cosine", 25) == pytest.approx(0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2)
