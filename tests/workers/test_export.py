"""Exported folders: complete and exact, shown by plain PyTorch and by `transformers` in processes that have no pkm."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from memory_store.errors import UsageError
from tests.small_job import small_job, table_content
from workers import export as export_module
from workers.export import export_model, export_run, table_values, to_int8
from workers.exported.pkm_model import load
from workers.generation import generate
from workers.run_folder import RunFolder
from workers.trained_model import TrainedModel, load_trained_model
from workers.trainer_group import train
from workers.training_cut import latest_cut

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
    "bare": {"memory__layers": [1, 2], "memory__query_norm": "none", "memory__heads": 3, "memory__k": 5},
    "ahead": {"memory__layers": [2], "memory__look_ahead": 1},
    "bfloat16": {"memory__values": {"lr": 0.01, "dtype": "bfloat16"}},
    "memory+": {
        "memory__layers": [1, 2],
        "memory__gate": True,
        "memory__qk_norm": True,
        "memory__query_norm": "none",
    },
    "peer": {"memory__slots": "experts", "memory__revive_dead_after": 3},
    "ultramem": {"memory__weights": "scores", "memory__value_dim": 16, "memory__value_expansion": 4},
    "flat": {"memory__keys": "flat", "memory__sub_keys": 16, "memory__qk_norm": True},
    "dense": {"memory": None},
}

# Runs where nothing of this project can be imported: PROGRAM FOLDER IN.npy OUT.npy
WITH_PYTORCH = """
import sys
sys.path = [path for path in sys.path if path not in ("", {root!r})] + [sys.argv[1]]
sys.meta_path = [finder for finder in sys.meta_path if "__editable__" not in repr(finder)]
import importlib.util, numpy, torch
assert not any(importlib.util.find_spec(name) for name in ("service", "workers", "memory_store", "protos"))
tokens = torch.from_numpy(numpy.load(sys.argv[2]))
"""
PLAIN = """
from pkm_model import load
model, tokenizer = load(sys.argv[1])
with torch.no_grad():
    numpy.save(sys.argv[3], model(tokens).numpy())
assert not {"transformers", "ray", "numba"} & sys.modules.keys()
"""
TRANSFORMERS = """
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
with torch.no_grad():
    numpy.save(sys.argv[3], model(tokens).logits.numpy())
begun = tokenizer("We the", return_tensors="pt")
made = {cached: model.generate(**begun, max_new_tokens=20, do_sample=False, use_cache=cached) for cached in (True, False)}
assert made[True].tolist() == made[False].tolist()
print(tokenizer.decode(made[True][0], skip_special_tokens=True), end="")
# Two prompts of different lengths at once, padded before: each goes on as it does alone.
tokenizer.padding_side = "left"
both = tokenizer(["We the people of this land", "We the"], return_tensors="pt", padding=True)
together = model.generate(**both, max_new_tokens=20, do_sample=False)
assert together[1][-20:].tolist() == made[True][0][-20:].tolist()
coarse = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True, dtype=torch.bfloat16)
assert ((coarse(tokens).logits - model(tokens).logits).abs() < 0.1).float().mean() > 0.9
loss = model(tokens, labels=tokens).loss
torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(model(tokens).logits[0, :-1], tokens[0, 1:]))
"""


@pytest.fixture(scope="module", params=KINDS)
def run(request: pytest.FixtureRequest, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    job = small_job(corpus, train__steps=6, train__cut_every=6, **KINDS[request.param])
    run = RunFolder(tmp_path_factory.mktemp("export") / "run")
    run.create(job)
    train(job, run, on_progress=lambda _: None)
    return run


@pytest.fixture(scope="module")
def trained(run: RunFolder) -> TrainedModel:
    return load_trained_model(run)


def tokens_of(trained: TrainedModel) -> torch.Tensor:
    return torch.from_numpy(trained.corpus.tokens("test")[:32].astype("int64"))[None]


def trained_logits(trained: TrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return trained.model(tokens_of(trained))


def exported_logits(folder: Path, trained: TrainedModel) -> torch.Tensor:
    model, _ = load(folder)
    with torch.no_grad():
        return model(tokens_of(trained))


def elsewhere(program: str, folder: Path, tokens: torch.Tensor) -> tuple[torch.Tensor, str]:
    """Logits and output of a program that runs where this project is not."""
    given, found = folder.parent / "tokens.npy", folder.parent / "logits.npy"
    np.save(given, tokens.numpy())
    root = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, "-c", WITH_PYTORCH.format(root=root) + program]
    done = subprocess.run(
        [*command, str(folder), str(given), str(found)],
        cwd=folder.parent,
        env={"HF_HOME": str(folder.parent / "cache"), "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return torch.from_numpy(np.load(found)), done.stdout


def test_plain_pytorch_computes_the_very_same_logits(trained: TrainedModel, tmp_path: Path):
    export_model(trained, tmp_path / "model")
    assert torch.equal(exported_logits(tmp_path / "model", trained), trained_logits(trained))


def test_under_autocast_too(trained: TrainedModel, tmp_path: Path):
    """The memory selects and sums in float32 there, as it does in training; what the trainer casts is cast."""
    export_model(trained, tmp_path / "model")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, expected = exported_logits(tmp_path / "model", trained), trained_logits(trained)
    assert torch.equal(found, expected)
    assert not torch.equal(found, trained_logits(trained))


@pytest.mark.parametrize("table", ["bfloat16", "int8"])
def test_with_rounded_tables_the_logits_are_those_of_the_rounded_values(
    trained: TrainedModel, tmp_path: Path, table: str
):
    """As float32 values that were rounded by hand, and not far from the trainer's."""
    export_model(trained, tmp_path / "rounded", table)  # type: ignore[arg-type]
    export_model(trained, tmp_path / "exact")
    by_hand, _ = load(tmp_path / "exact")
    for exact in by_hand.tables.values():
        values = exact.values.detach()  # type: ignore[union-attr, operator]
        step = values.abs().amax(1, keepdim=True) / 127
        rounded = values.bfloat16().float() if table == "bfloat16" else (values / step).round() * step
        exact.values.data.copy_(rounded)  # type: ignore[union-attr, operator]
    found = exported_logits(tmp_path / "rounded", trained)
    with torch.no_grad():
        assert torch.equal(found, by_hand(tokens_of(trained)))
    torch.testing.assert_close(found, trained_logits(trained), rtol=0, atol=0.05)
    if trained.store is not None:
        smaller, whole = (
            (tmp_path / name / "model.safetensors").stat().st_size for name in ("rounded", "exact")
        )
        assert smaller < whole


def test_tables_are_whole_and_in_the_order_of_rows(run: RunFolder, trained: TrainedModel):
    """As the files of the cut have them: row r is line r // 1024 of bucket r mod 1024."""
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


def test_int8_is_off_by_half_a_step_of_its_row_at_most():
    values = (
        torch.randn(300, 16, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 3, 300)[:, None]
    )
    values[7] = 0
    integers, scales = to_int8(values)
    assert (integers.dtype, scales.shape) == (torch.int8, (300, 1))
    assert torch.equal(integers[7], torch.zeros(16, dtype=torch.int8))
    torch.testing.assert_close(scales[:, 0], values.abs().amax(1) / 127)
    assert ((integers * scales - values).abs() <= scales * 0.5001).all()
    assert (integers.abs().amax(1)[torch.arange(300) != 7] == 127).all()


@pytest.mark.parametrize("run", ["plain"], indirect=True)
def test_the_folder_runs_where_this_project_is_not(run: RunFolder, trained: TrainedModel, tmp_path: Path):
    export_model(trained, tmp_path / "model")
    found, _ = elsewhere(PLAIN, tmp_path / "model", tokens_of(trained))
    torch.testing.assert_close(found, trained_logits(trained), rtol=1e-5, atol=1e-5)
    command = [sys.executable, str(tmp_path / "model" / "pkm_model.py"), "We the"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "We the" + "".join(generate(run, "We the", tokens=50, temperature=0)) + "\n"


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("run", "table"), [("rich", "float32"), ("ahead", "int8"), ("plain", "bfloat16")], indirect=["run"]
)
def test_transformers_loads_the_folder_and_generates(
    run: RunFolder, trained: TrainedModel, table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(export_module, "FILE_BYTES_MAX", 50_000)
    report = export_model(trained, tmp_path / "model", table)  # type: ignore[arg-type]
    assert len(report.files) > 1
    found, text = elsewhere(TRANSFORMERS, tmp_path / "model", tokens_of(trained))
    torch.testing.assert_close(found, exported_logits(tmp_path / "model", trained), rtol=1e-5, atol=1e-5)
    if table == "float32":
        assert text == "We the" + "".join(generate(run, "We the", tokens=20, temperature=0))


@pytest.mark.parametrize("run", ["plain"], indirect=True)
def test_weights_that_do_not_fit_one_file_are_in_several(
    run: RunFolder, trained: TrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = export_model(trained, tmp_path / "whole")
    monkeypatch.setattr(export_module, "FILE_BYTES_MAX", 50_000)
    parted = export_run(run, tmp_path / "parted")
    index = json.loads((tmp_path / "parted" / "model.safetensors.index.json").read_text())
    found = {}
    for name in parted.files:
        part = load_file(tmp_path / "parted" / name)
        assert {tensor: name for tensor in part}.items() <= index["weight_map"].items()
        assert len(part) == 1 or sum(tensor.nbytes for tensor in part.values()) <= 50_000
        found |= part
    expected = load_file(tmp_path / "whole" / "model.safetensors")
    assert found.keys() == expected.keys() == index["weight_map"].keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in expected.values())
    assert whole.parameters == parted.parameters == sum(tensor.numel() for tensor in expected.values())
    assert whole.bytes == (tmp_path / "whole" / "model.safetensors").stat().st_size
    assert torch.equal(exported_logits(tmp_path / "parted", trained), trained_logits(trained))
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "parted").iterdir()}
    assert modes == {0o644}


@pytest.mark.parametrize("run", ["plain"], indirect=True)
def test_nothing_is_written_over_and_nothing_half_done_stays(
    run: RunFolder, trained: TrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "mine").mkdir()
    with pytest.raises(UsageError, match="exists already"):
        export_run(run, tmp_path / "mine")
    with pytest.raises(UsageError, match="not the folder of a run"):
        export_run(RunFolder(tmp_path / "no-run"), tmp_path / "other")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="can't be made"):
        export_model(trained, tmp_path / "file" / "model")

    def fail(*_: object) -> None:
        raise RuntimeError("no room")

    monkeypatch.setattr(export_module, "_write_json", fail)
    with pytest.raises(RuntimeError, match="no room"):
        export_model(trained, tmp_path / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "mine"]
