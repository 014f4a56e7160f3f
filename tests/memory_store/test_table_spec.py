"""What a table may be."""

from __future__ import annotations

from typing import Any

import pytest

from memory_store.bucket_files import spec_as_json, spec_from_json
from memory_store.errors import UsageError
from memory_store.table_spec import OptimizerSpec, TableSpec


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": ""}, "name"),
        ({"name": "-memory"}, "name"),
        ({"name": "../memory"}, "name"),
        ({"name": "memory\n"}, "name"),
        ({"name": "m" * 64}, "1 to 63"),
        ({"rows": 0}, "0 rows"),
        ({"rows": 2**32}, "4294967296 rows"),
        ({"dim": 0}, "dim 0"),
        ({"dim": 65537}, "65537"),
        ({"seed": -1}, "seed -1"),
        ({"seed": 2**64}, "seed"),
    ],
)
def test_an_impossible_table_is_refused(change: dict[str, Any], said: str):
    with pytest.raises(UsageError, match=said):
        TableSpec(**{"name": "memory", "rows": 10, "dim": 4, **change})


@pytest.mark.parametrize(
    "change",
    [{"betas": (1.0, 0.9)}, {"betas": (0.9, -0.1)}, {"eps": 0.0}, {"eps": 1e-40}, {"eps": float("nan")}],
)
def test_constants_that_make_nan_are_refused(change: dict[str, Any]):
    with pytest.raises(UsageError, match="not allowed"):
        OptimizerSpec(**change)


def test_a_spec_survives_json():
    spec = TableSpec("memory", 10, 4, "bfloat16", 7, 0.25, OptimizerSpec("rowwise_adam", (0.8, 0.95), 1e-6))
    assert spec_from_json(spec_as_json(spec)) == spec
