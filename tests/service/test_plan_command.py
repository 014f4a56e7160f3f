"""`pkm plan`: rates, refusals, and a real prediction of the quickstart."""

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from memory_store.errors import UsageError
from memory_store.placement import Placement
from memory_store.table import part_bytes
from service.cli import app
from service.job_file import load_job
from service.link_rates import parse_rate, rate_text

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = str(ROOT / "examples/quickstart.yaml")


def pkm(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, prog_name="pkm", env={"COLUMNS": "200", "NO_COLOR": "1"})


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("25Gbit", 3.125e9),
        ("100Mbit", 12.5e6),
        ("100 mbit/s", 12.5e6),
        ("2.5Gbit", 312.5e6),
        ("300MB/s", 300e6),
        ("1.5GB/s", 1.5e9),
    ],
)
def test_rates_are_read_as_people_write_them(text: str, rate: float):
    assert parse_rate(text) == rate


@pytest.mark.parametrize(
    "text", ["", "fast", "25", "0Gbit", "-1Gbit", "25Gb", "25Gibit", "1e3Gbit", "9999999999Tbit"]
)
def test_what_is_no_rate_is_refused(text: str):
    with pytest.raises(
        UsageError, match="no rate of a network link; give a number and a unit, such as 25Gbit"
    ):
        parse_rate(text)


def test_a_rate_is_shown_in_bits():
    assert [rate_text(parse_rate(text)) for text in ("25Gbit", "300MB/s", "56kbit")] == [
        "25 Gbit",
        "2.4 Gbit",
        "56 kbit",
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--network", "fast"], "'fast' is no rate of a network link"),
        (["--network", "1Gbit", "--set", "store.carrier=in_process"], "store.carrier=auto"),
        (["--shards", "0"], "store.shards"),
        (["--shards", "5000"], "store.shards"),
        (["--trainers", "3"], "2048 is no multiple"),
        (["--set", "memory.sub_keys=31623"], "use more shards"),
        (["--pcie", "fast"], "'fast' is no rate"),
        (["--gpu-link", "fast"], "'fast' is no rate"),
        (["--pcie", "25GB/s", "--set", "train.device=cpu"], "train.device cpu use no GPU"),
        (
            [
                "--gpu-memory",
                "0.005",
                "--set",
                "memory.placement=cached",
                "--set",
                "memory.cached_rows=60000",
            ],
            "puts 0.00781 GiB on a GPU of 0.005 GiB; use placement host, or cached with fewer cached_rows",
        ),
    ],
)
def test_impossible_values_exit_with_2_before_anything_is_timed(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "workers.plan_calibration", None)
    result = pkm("plan", QUICKSTART, *arguments)
    assert result.exit_code == 2, result.stderr
    assert words in result.stderr
    assert (result.stdout, "Traceback" in result.stderr) == ("", False)


def test_the_quickstart_is_planned():
    result = pkm("plan", QUICKSTART, "--shards", "2", "--trainers", "1", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["trainers"], found["shards"], found["lookup"]) == (1, 2, "in place")
    assert found["network_bytes_per_second"] is None
    (table,) = load_job(QUICKSTART).job.tables()
    assert found["shard_memory_gib"] * 2**30 == sum(part_bytes(table, Placement.even(2), 0))
    assert found["table_rows"] == table.rows
    names = [part["name"] for part in found["parts"]]
    assert {"dense forward and backward", "selection", "row update", "dense optimizer"} <= set(names)
    assert found["limit"] in names
    assert sum(part["share"] for part in found["parts"]) == pytest.approx(1)
    assert sum(part["step_seconds"] for part in found["parts"]) == pytest.approx(found["step_seconds"])
    assert found["tokens_per_second"] == pytest.approx(2048 / found["step_seconds"])
    assert found["assumptions"]
    assert found["calibration"]["shard"]["pool"]["parallel_s"] > 0


def test_a_plan_for_people_names_the_limit():
    smaller = ["model.dim=32", "model.layers=2", "train.batch_tokens=256", "memory.sub_keys=32"]
    smaller += ["memory.placement=cached", "memory.cached_rows=100"]
    settings = [argument for setting in smaller for argument in ("--set", setting)]
    gpus = ["--gpu-memory", "0.001", "--pcie", "16GB/s"]
    result = pkm("plan", QUICKSTART, "--shards", "4", "--network", "100Mbit", *gpus, *settings)
    assert result.exit_code == 0, result.stderr
    assert "1 trainers, 4 shards, each on a host of its own, links of 100 Mbit" in result.stdout
    assert result.stdout.count("limits") == 1
    assert "memory per shard" in result.stdout
    assert "memory per device" in result.stdout
    assert "copies: PCIe" in result.stdout
    assert "of a GPU of 0.001 GiB: tables 1.19e-05, dense part" in result.stderr.replace("\n", " ")
