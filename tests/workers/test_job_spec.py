"""The job schema: what it refuses, where it puts the blame, and the sizes it computes."""

import copy
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import yaml
from pydantic import ValidationError

from memory_store.placement import Placement
from workers.job_spec import GIB, JobSpec

QUICK: dict[str, Any] = {
    "name": "quick",
    "data": {"corpus": "corpus", "sequence_length": 64},
    "model": {"layers": 4, "dim": 32, "heads": 4},
    "memory": {"layers": [2], "sub_keys": 64, "k": 16},
    "train": {"steps": 10, "batch_tokens": 512},
}


def settings(**changes: object) -> dict[str, Any]:
    """The job above with values replaced: settings(train__lr=3) changes train.lr."""
    changed = copy.deepcopy(QUICK)
    for path, value in changes.items():
        *groups, key = path.split("__")
        target = changed
        for group in groups:
            target = target.setdefault(group, {})
        target[key] = value
    return changed


def mistakes(**changes: object) -> dict[str, str]:
    """Dotted path and message of everything that is wrong with the changed job."""
    with pytest.raises(ValidationError) as raised:
        JobSpec.model_validate(settings(**changes))
    errors = [error for error in raised.value.errors() if error["type"] != "default_factory_not_called"]
    return {".".join(map(str, error["loc"])): error["msg"] for error in errors}


def test_defaults_are_those_of_the_plan():
    job = JobSpec.model_validate(QUICK)
    assert job.memory is not None
    assert (job.model.feed_forward_dim, job.memory.heads, job.memory.query_norm) == (128, 4, "batch")
    assert (job.memory.values.optimizer, job.memory.values.betas) == ("adam", (0.9, 0.999))
    assert (job.store.shards, job.store.carrier, job.store.shard_memory_gib) == (2, "auto", 4.0)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("name", "Has Spaces"),
        ("name", "../escape"),
        ("name", "x" * 64),
        ("name", "newline\n"),
        ("seed", -1),
        ("schema_version", 2),
        ("train.steps", "600"),
        ("train.steps", True),
        ("train.steps", 600.0),
        ("train.steps", 0),
        ("train.lr", float("nan")),
        ("train.lr", float("inf")),
        ("train.lr", -0.1),
        ("train.schedule", "cosin"),
        ("train.keep_cuts", 1),
        ("train.clip_norm", 0.0),
        ("model.heads", 5),
        ("model.heads", 32),  # one number per head can't be rotated
        ("memory.layers", []),
        ("memory.layers", [2, 2]),
        ("memory.layers", [5]),
        ("memory.look_ahead", -1),
        ("memory.look_ahead", 2),
        ("memory.query_dim", 7),
        ("memory.k", 65),
        ("memory.gate", "yes"),
        ("memory.value_expansion", 3),
        ("memory.value_dim", 0),
        ("memory.values.optimizer", "addam"),
        ("store.shards", 1025),
        ("store.shards", 0),
    ],
)
def test_an_impossible_value_is_blamed_on_its_own_path(path: str, value: object):
    assert list(mistakes(**{path.replace(".", "__"): value})) == [path]


@pytest.mark.parametrize("value", [[0.9], [0.9, 0.98, 0.99], [0.9, 1.0], [0.9, "0.98"], 0.9])
def test_betas_are_two_numbers_below_one(value: object):
    assert all(path.startswith("train.betas") for path in mistakes(train__betas=value))


def test_unknown_keys_are_refused_in_every_group():
    unknown = [
        "extra",
        "data__extra",
        "model__extra",
        "memory__extra",
        "memory__values__extra",
        "store__extra",
    ]
    assert set(mistakes(**dict.fromkeys(unknown, 1))) == {path.replace("__", ".") for path in unknown}


def test_checks_between_groups_run_although_another_group_is_wrong():
    found = mistakes(data__corpus=3, memory__layers=[9], store__carrier="in_process", train__trainers=2)
    assert set(found) == {"data.corpus", "memory.layers", "store.carrier"}


@pytest.mark.parametrize(
    ("together", "blamed", "why"),
    [
        ({"qk_norm": True, "query_norm": "layer"}, "qk_norm", "normalised again"),
        ({"slots": "experts", "value_dim": 16}, "value_dim", "leave it out"),
        ({"slots": "experts", "value_expansion": 2}, "value_expansion", "only values are expanded"),
        ({"value_expansion": 6}, "value_expansion", r"4096 keys \(sub_keys squared\) don't divide by 6"),
        ({"keys": "flat", "sub_keys": 2048}, "sub_keys", "at most 1024"),
        ({"keys": "flat", "revive_dead_after": 9}, "revive_dead_after", "only the sub-keys of product keys"),
        ({"value_expansion": 4, "revive_dead_after": 9}, "revive_dead_after", "value_expansion 1"),
        ({"values": {"lr_end": 1e-4}}, "values.lr_end", "schedule constant has no end"),
        ({"values": {"lr_end": 2e-3, "schedule": "linear"}}, "values.lr_end", r"0.002 is above lr \(0.001\)"),
    ],
)
def test_options_that_make_no_sense_together_are_refused(together: dict[str, Any], blamed: str, why: str):
    found = mistakes(**{f"memory__{name}": value for name, value in together.items()})
    assert list(found) == [f"memory.{blamed}"]
    assert re.search(why, found[f"memory.{blamed}"])


@pytest.mark.parametrize(
    ("options", "rows", "width"),
    [
        ({"value_dim": 16}, 4096, 16),
        ({"slots": "experts"}, 4096, 64),
        ({"value_expansion": 4, "value_dim": 8}, 1024, 8),
        ({"keys": "flat"}, 4096, 32),
    ],
)
def test_the_table_has_the_shape_that_the_options_ask_for(options: dict[str, Any], rows: int, width: int):
    job = JobSpec.model_validate(settings(**{f"memory__{name}": value for name, value in options.items()}))
    (table,) = job.tables()
    assert (table.rows, table.dim) == (rows, width)


@pytest.mark.parametrize(
    ("together", "why"),
    [
        ({"memory": None}, "no rows to update"),
        ({"train__gradient_accumulation": 2}, "one trainer that has all of it"),
    ],
)
def test_rows_are_chosen_only_where_that_makes_sense(together: dict[str, Any], why: str):
    found = mistakes(train__only_rows=3, **together)
    assert list(found) == ["train.only_rows"]
    assert why in found["train.only_rows"]


def test_experts_of_a_model_that_is_too_wide_are_refused():
    found = mistakes(model__dim=32_772, model__heads=1, memory__slots="experts", store__shard_memory_gib=1e6)
    assert list(found) == ["memory.slots"]


def test_a_refused_look_ahead_says_what_is_allowed():
    JobSpec.model_validate(settings(memory__layers=[4, 3], memory__look_ahead=2))
    message = mistakes(memory__layers=[4, 3], memory__look_ahead=3)["memory.look_ahead"]
    assert message == (
        "3 layers before the memory in layer 3 there is no layer to take its query from; "
        "use 0 to 2, or move the memory to layer 4 or later"
    )


@pytest.mark.parametrize(("trainers", "accumulation", "fits"), [(2, 4, True), (3, 1, False), (8, 2, False)])
def test_a_batch_divides_over_trainers_and_micro_batches(trainers: int, accumulation: int, fits: bool):
    changes = {"train__trainers": trainers, "train__gradient_accumulation": accumulation}
    if fits:
        JobSpec.model_validate(settings(**changes))
    else:
        assert f"= {64 * trainers * accumulation};" in mistakes(**changes)["train.batch_tokens"]


def test_cpu_has_no_bfloat16_arithmetic():
    assert list(mistakes(train__precision="bfloat16", train__device="cpu")) == ["train.device"]


@pytest.mark.parametrize(
    ("optimizer", "state_numbers"),
    [("sgd", 0), ("adagrad", 32), ("rowwise_adagrad", 1), ("adam", 64), ("rowwise_adam", 33)],
)
@pytest.mark.parametrize(("dtype", "value_bytes"), [("float32", 4), ("bfloat16", 2)])
def test_table_bytes_are_values_state_and_statistics(
    optimizer: str, state_numbers: int, dtype: str, value_bytes: int
):
    job = JobSpec.model_validate(settings(memory__values={"optimizer": optimizer, "dtype": dtype}))
    statistics = 12
    assert job.table_rows() == 64 * 64
    assert job.table_bytes() == 64 * 64 * (32 * value_bytes + 4 * state_numbers + statistics)


@pytest.mark.parametrize("sub_keys", [16, 40, 300])
@pytest.mark.parametrize("shards", [1, 2, 3, 7, 1000])
def test_a_table_is_refused_exactly_when_its_fullest_shard_does_not_fit(sub_keys: int, shards: int):
    job = JobSpec.model_validate(settings(memory__sub_keys=sub_keys))
    (table,) = job.tables()
    owned = np.diff(Placement.even(shards).address_bounds(table.rows)).max()
    needed = int(owned) * table.bytes_per_row
    changes = {"memory__sub_keys": sub_keys, "store__shards": shards}
    JobSpec.model_validate(settings(**changes, store__shard_memory_gib=needed / GIB))
    found = mistakes(**changes, store__shard_memory_gib=(needed - 1) / GIB)
    assert list(found) == ["store.shard_memory_gib"]


def test_a_refused_table_says_how_much_is_needed_and_had():
    message = mistakes(memory__sub_keys=8192, store__shard_memory_gib=0.5)["store.shard_memory_gib"]
    assert f"needs {8192 * 8192 * (3 * 32 * 4 + 12) / 2 / GIB:.3g} GiB" in message
    assert "may take 0.5 GiB" in message


def test_memory_layers_share_one_table_or_have_one_each():
    shared = JobSpec.model_validate(settings(memory__layers=[4, 2]))
    separate = JobSpec.model_validate(settings(memory__layers=[4, 2], memory__shared_table=False))
    assert [table.name for table in shared.tables()] == ["memory"]
    assert [table.name for table in separate.tables()] == ["memory-2", "memory-4"]
    assert separate.memory is not None
    assert separate.memory.table_name(4) == "memory-4"
    first, second = separate.tables()
    assert first.seed != second.seed
    assert separate.table_bytes() == 2 * shared.table_bytes()


def test_twins_differ_only_in_memory_depth_and_name():
    job = JobSpec.model_validate(settings(model__feed_forward_dim=100, train__lr=0.5))
    dense, deep = job.twin("dense"), job.twin("deep")
    assert dense == job.model_copy(update={"name": "quick-dense", "memory": None})
    assert deep.model == job.model.model_copy(update={"layers": 8})
    assert (deep.name, deep.memory, deep.train, dense.tables()) == ("quick-deep", None, job.train, ())
    assert len(JobSpec.model_validate(settings(name="x" * 63)).twin("dense").name) == 63


def test_a_job_survives_json_and_yaml():
    job = JobSpec.model_validate(settings(memory__values={"eps": 1e-8, "lr": 3e-2}, train__clip_norm=None))
    assert JobSpec.model_validate_json(job.model_dump_json()) == job
    assert JobSpec.model_validate(yaml.safe_load(yaml.safe_dump(job.model_dump(mode="json")))) == job


def test_a_job_does_not_change():
    job = JobSpec.model_validate(QUICK)
    with pytest.raises(ValidationError):
        job.train.lr = 1.0  # type: ignore[misc]


def test_every_setting_has_a_description():
    schema = JobSpec.model_json_schema()
    groups = [schema, *schema["$defs"].values()]
    bare = [
        name
        for group in groups
        for name, field in group["properties"].items()
        if "description" not in field and "$ref" not in str(field)
    ]
    assert bare == []


def test_the_schema_loads_without_torch():
    program = "import sys, workers.job_spec; from workers import JobSpec; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
