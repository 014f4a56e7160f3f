"""Exports: complete and exact, shown by a plain PyTorch model that knows nothing but the two files."""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

from memory_store.errors import UsageError
from tests.small_job import small_job, table_content
from workers.export import export_run, table_values
from workers.generation import generate
from workers.run_folder import RunFolder
from workers.trained_model import load_trained_model
from workers.trainer_group import train
from workers.training_cut import latest_cut

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "exported_model.py"

KINDS = {
    "plain": {},
    "rich": {
        "memory__layers": [1, 2],
        "memory__position": "beside",
        "memory__query_network": "mlp",
        "memory__query_norm": "layer",
        "memory__gate": True,
        "memory__shared_table": False,
    },
    "bare": {"memory__layers": [1, 2], "memory__query_norm": "none"},
    "ahead": {"memory__layers": [2], "memory__look_ahead": 1},
    "bfloat16": {"memory__values": {"lr": 0.01, "dtype": "bfloat16"}},
    "dense": {"memory": None},
}


@pytest.fixture(scope="module", params=KINDS)
def run(request: pytest.FixtureRequest, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    job = small_job(corpus, train__steps=6, train__cut_every=6, **KINDS[request.param])
    run = RunFolder(tmp_path_factory.mktemp("export") / "run")
    run.create(job)
    train(job, run, on_progress=lambda _: None)
    return run


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("exported_model", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_plain_pytorch_computes_the_same_logits(
    run: RunFolder, example: ModuleType, tmp_path: Path, dtype: str
):
    report = export_run(run, tmp_path / "model.safetensors", dtype)  # type: ignore[arg-type]
    trained = load_trained_model(run)
    tokens = torch.from_numpy(trained.corpus.tokens("test")[:32].astype("int64"))
    with torch.no_grad():
        expected = trained.model(tokens[None])[0]
    config, weights = example.load(report.file)
    found = example.logits(config, weights, tokens)
    if dtype == "float32":
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    else:
        # Rounded sub-keys may choose other rows; most of the logits stay close.
        assert ((found - expected).abs() < 0.05).float().mean() > 0.9
    assert json.loads(trained.corpus.tokenizer.to_str()) == config["tokenizer"]
    assert report.file.stat().st_mode == report.config.stat().st_mode
    assert report.parameters == sum(tensor.numel() for tensor in weights.values())


def test_tables_are_whole_and_in_the_order_of_rows(run: RunFolder):
    """As the files of the cut have them: row r is line r // 1024 of bucket r mod 1024."""
    trained = load_trained_model(run)
    content = table_content(latest_cut(run.cuts_path))
    for spec in trained.job.tables():
        assert trained.store is not None
        values = table_values(trained.store.table(spec.name))
        assert values.shape == (spec.rows, spec.dim)
        for row in range(spec.rows):
            bucket = content[spec.name, row % 1024]["values"]
            dtype = torch.bfloat16 if spec.dtype == "bfloat16" else torch.float32
            line = torch.frombuffer(bytearray(bucket), dtype=dtype).view(-1, spec.dim)[row // 1024]
            assert torch.equal(values[row], line.float())


def test_bfloat16_rounds_matrices_and_keeps_vectors(run: RunFolder, tmp_path: Path):
    exact = load_file(export_run(run, tmp_path / "exact.safetensors").file)
    rounded = load_file(export_run(run, tmp_path / "rounded.safetensors", "bfloat16").file)
    assert exact.keys() == rounded.keys()
    for name, tensor in exact.items():
        expected = tensor.bfloat16() if tensor.ndim > 1 else tensor
        assert torch.equal(rounded[name], expected), name


@pytest.mark.parametrize("run", ["plain"], indirect=True)
def test_the_example_runs_without_this_project(run: RunFolder, tmp_path: Path):
    imported = set()
    for node in ast.walk(ast.parse(EXAMPLE.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(str(node.module).partition(".")[0])
    assert imported - set(sys.stdlib_module_names) == {"torch", "safetensors", "tokenizers"}

    export_run(run, tmp_path / "model.safetensors")
    command = [sys.executable, str(EXAMPLE), "model.safetensors", "We the"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "We the" + "".join(generate(run, "We the", tokens=50, temperature=0)) + "\n"


@pytest.mark.parametrize("run", ["plain"], indirect=True)
def test_nothing_is_written_over_and_nothing_half_done_stays(run: RunFolder, tmp_path: Path):
    target = tmp_path / "model.safetensors"
    target.write_text("mine")
    for path, reason in [
        (target, "exists already"),
        (tmp_path / "model.bin", "ends in .safetensors"),
        (tmp_path / "gone" / "model.safetensors", "no folder"),
    ]:
        with pytest.raises(UsageError, match=reason):
            export_run(run, path)
    target.unlink()
    (tmp_path / "model.json").write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        export_run(run, target)
    with pytest.raises(UsageError, match="not the folder of a run"):
        export_run(RunFolder(tmp_path / "no-run"), tmp_path / "other.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["model.json"]
