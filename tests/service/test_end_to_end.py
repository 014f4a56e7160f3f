"""A user's way through all commands with a small real job: text, corpus, training, and what comes of it."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from service.cli import app
from tests.small_job import ADDRESSES

JOB = """\
name: small
data: {corpus: corpus, sequence_length: 32}
model: {layers: 2, dim: 32, heads: 2}
memory: {layers: [1], sub_keys: 32, heads: 2, k: 8, query_dim: 16}
train: {steps: 6, batch_tokens: 256, warmup_steps: 2, evaluate_every: 3, evaluation_tokens: 512, cut_every: 3}
store: {carrier: in_process}
"""


def pkm(*words: str) -> str:
    """Run a command; its standard output."""
    result = CliRunner().invoke(app, words, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_from_text_to_an_exported_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text(JOB)
    addresses = pq.read_table(ADDRESSES, columns=["text"]).slice(0, 6)
    (tmp_path / "text.txt").write_text("\f".join(addresses.column("text").to_pylist()))

    pkm("data", "prepare", "text.txt", "--vocab-size", "400", "--out", "corpus")
    report = json.loads(pkm("train", "job.yaml", "--json"))
    assert report == json.loads((tmp_path / "runs/small/report.json").read_text())
    assert report["steps"] == 6

    evaluation = json.loads(pkm("eval", "runs/small", "--json"))
    assert evaluation["perplexity"] == pytest.approx(report["test_perplexity"], rel=1e-4)
    assert evaluation["memory"]["memory"]["usage"] == pytest.approx(report["memory_usage"], rel=1e-2)

    longer = json.loads(pkm("train", "--resume", "runs/small", "--set", "train.steps=9", "--json"))
    assert (longer["steps"], longer["test_perplexity"] < report["test_perplexity"]) == (9, True)

    text = pkm("generate", "runs/small", "--prompt", "Fellow citizens", "--tokens", "5", "--seed", "3")
    assert text.startswith("Fellow citizens")
    assert text == pkm(
        "generate", "runs/small", "--prompt", "Fellow citizens", "--tokens", "5", "--seed", "3"
    )

    inspection = json.loads(pkm("inspect", "runs/small", "--split", "test", "--picture", "map.png", "--json"))
    assert inspection["tables"]["memory"]["kl_to_uniform"] == pytest.approx(longer["kl_to_uniform"], rel=1e-3)
    assert inspection["pictures"] == ["map.png"]
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")

    exported = json.loads(pkm("export", "runs/small", "model", "--table", "int8", "--measure", "--json"))
    assert exported["step"] == 9
    assert (tmp_path / "model/model.safetensors").stat().st_size == exported["bytes"]
    assert exported["loss"]["trained"] == pytest.approx(longer["test_perplexity"], rel=1e-4)
    assert exported["loss"]["exported"] == pytest.approx(exported["loss"]["trained"], rel=1e-2)
    exact = json.loads(pkm("export", "runs/small", "exact", "--measure", "--json"))
    assert exact["loss"]["exported"] == pytest.approx(exact["loss"]["trained"], rel=1e-5)
