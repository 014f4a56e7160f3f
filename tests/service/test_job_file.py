"""Job files and overrides into jobs: values, origins, and every mistake at once with place and remedy."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
import yaml

from memory_store.errors import UsageError
from service.job_file import describe_settings, load_job
from service.positioned_yaml import SIZE_BYTES_MAX
from workers.job_spec import JobSpec

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "examples" / "quickstart.yaml"
GOOD = """\
name: quick
data:
  corpus: texts/corpus
model: {layers: 4, dim: 32, heads: 4}
memory:
  layers: [2]
  sub_keys: 64
  values:
    lr: 3e-2
train:
  steps: 10
  batch_tokens: 512
"""


@pytest.fixture
def job_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes a job file: the good one, with text replaced."""

    def write(*replacements: tuple[str, str], text: str | bytes = GOOD) -> Path:
        path = tmp_path / "job.yaml"
        if isinstance(text, bytes):
            path.write_bytes(text)
            return path
        for old, new in replacements:
            assert old in text
            text = text.replace(old, new)
        path.write_text(text)
        return path

    return write


def refusal(path: Path, *overrides: str) -> list[str]:
    """The lines of the error, the file's folder left out."""
    with pytest.raises(UsageError) as raised:
        load_job(path, overrides)
    return str(raised.value).replace(f"{path.parent}/", "").splitlines()


def test_a_job_file_equals_the_model_made_by_hand(job_file: Callable[..., Path]):
    path = job_file()
    settings = yaml.safe_load(GOOD.replace("3e-2", "0.03"))
    settings["data"]["corpus"] = str(path.parent / "texts/corpus")
    assert load_job(path).job == JobSpec.model_validate(settings)


def test_the_quickstart_is_the_job_it_promises_to_be():
    job = load_job(QUICKSTART).job
    assert job.memory is not None
    assert job.data.corpus == ROOT / "examples" / "data" / "sotu"
    assert (job.model.layers, job.model.dim, job.model.heads) == (4, 128, 4)
    assert (job.memory.layers, job.memory.position, job.memory.query_norm) == ((2,), "replace", "batch")
    assert (job.table_rows(), job.memory.heads, job.memory.k, job.memory.query_dim) == (128 * 128, 4, 32, 128)
    assert (job.memory.values.optimizer, job.memory.values.lr) == ("adam", 3e-2)
    assert (job.train.steps, job.train.batch_tokens, job.train.trainers) == (600, 2048, 1)
    assert (job.store.shards, job.store.carrier) == (2, "auto")


def test_the_schema_for_editors_is_current_and_accepts_the_quickstart():
    schema = json.loads((ROOT / "docs" / "job.schema.json").read_text())
    assert schema == JobSpec.model_json_schema(), "run: pkm config schema > docs/job.schema.json"
    first = QUICKSTART.read_text().splitlines()[0]
    assert first == "# yaml-language-server: $schema=../docs/job.schema.json"
    settings = load_job(QUICKSTART).job.model_dump(mode="json")
    jsonschema.validate(settings, schema)
    settings["train"]["stepz"] = 3
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(settings, schema)


# ---- mistakes in the file ----------------------------------------------------------------------------------


def test_all_mistakes_are_reported_at_once_from_top_to_bottom(job_file: Callable[..., Path]):
    path = job_file(
        ("name: quick", "nam: quick"),
        ("heads: 4}", "heads: 5}"),
        ("sub_keys: 64", "sub_kyes: 64"),
        ("lr: 3e-2", "lr: fast\n    lr: 3"),
        ("steps: 10", "steps: '10'"),
        ("batch_tokens: 512", "batch_tokens: 512\nstore: [1]"),
    )
    assert [line.split(": ", 2)[:2] for line in refusal(path)] == [
        ["job.yaml:1:1", "nam"],
        ["job.yaml:1:1", "name"],
        ["job.yaml:4:29", "model.heads"],
        ["job.yaml:5:1", "memory.sub_keys"],
        ["job.yaml:7:3", "memory.sub_kyes"],
        ["job.yaml:9:5", "memory.values.lr"],
        ["job.yaml:10:5", "memory.values.lr"],
        ["job.yaml:12:3", "train.steps"],
        ["job.yaml:14:1", "store"],
    ]


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (
            "sub_keys: 64",
            "sub_keys: 64\n  sub_kyes: 1",
            "8:3: memory.sub_kyes: unknown key; did you mean 'sub_keys'?",
        ),
        ("name:", "lr: 3\nname:", "1:1: lr: unknown key; did you mean 'memory.values.lr' or 'train.lr'?"),
        (
            "corpus:",
            "qqqq: 1\n  corpus:",
            "3:3: data.qqqq: unknown key; known here are corpus, sequence_length",
        ),
        ("steps: 10", "steps: many", "11:3: train.steps: must be a valid integer, not 'many'"),
        ("steps: 10", "steps:", "11:3: train.steps: must be a valid integer, not null"),
        ("steps: 10", "steps: yes", "11:3: train.steps: must be a valid integer, not 'yes'"),
        ("steps: 10", "steps: 0", "11:3: train.steps: must be greater than or equal to 1, not 0"),
        ("[2]", "[2, x]", "6:15: memory.layers[1]: must be a valid integer, not 'x'"),
        ("[2]", "2", "6:3: memory.layers: must be a list such as [1, 2], not 2"),
        ("[2]", "[9]", "6:3: memory.layers: layer 9 does not exist; model.layers allows 1 to 4"),
        ("layers: [2]", "layers: [2]\n  k: 65", "7:3: memory.k: 65 is more than sub_keys (64); "),
        ("  steps: 10\n", "", "10:1: train.steps: this key is missing (Optimizer steps)"),
        ("name: quick\n", "", "1:1: name: this key is missing (Name of the job"),
        ("name: quick", "name: ../x", "1:1: name: '../x' is not allowed: "),
        (
            "lr: 3e-2",
            "dtype: float16",
            "9:5: memory.values.dtype: must be 'float32' or 'bfloat16', not 'float16'",
        ),
        (
            "sub_keys: 64",
            "sub_keys: 40000",
            "1:1: store.shard_memory_gib: a shard needs 295 GiB and may take 4 GiB: ",
        ),
        ("name:", "{a: b}: 1\nname:", "1:1: {'a': 'b'}: unknown key; "),
        ("steps: 10", "steps: " + "9" * 100, "11:3: train.steps: must be a valid integer, not 1e+100"),
    ],
)
def test_a_mistake_names_place_key_value_and_what_is_allowed(
    job_file: Callable[..., Path], old: str, new: str, line: str
):
    (found,) = refusal(job_file((old, new)))
    assert found.startswith(f"job.yaml:{line}")
    assert len(found) < 400


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("", "job.yaml:1:1: this job file is empty"),
        ("# nothing\n", "job.yaml:1:1: this job file is empty"),
        ("- a\n- b\n", "job.yaml:1:1: this job file is not a mapping"),
        ("name: [a\n", "job.yaml:2:1: this can't be read as YAML: "),
        ("a: 1\nb: &x {c: 1}\nd: *x\n", "job.yaml:2:4: this can't be read as YAML: anchors"),
        (b"name: q\ndata: \xff\xfe", "job.yaml:2:1: this file is not UTF-8 text"),
        (b"PK\x03\x04\x00\x00", "job.yaml:1:3: this can't be read as YAML: character U+0003"),
        (b"#" * (SIZE_BYTES_MAX + 1), "The job file 'job.yaml' is larger than 1048576 bytes"),
    ],
)
def test_text_that_is_no_job_file_is_refused(job_file: Callable[..., Path], text: str | bytes, start: str):
    (line,) = refusal(job_file(text=text))
    assert line.startswith(start)


def test_a_missing_file_or_a_folder_is_named(tmp_path: Path):
    assert refusal(tmp_path / "gone.yaml") == [
        "There is no job file 'gone.yaml'; give the path of a YAML file."
    ]
    (tmp_path / "folder").mkdir()
    assert refusal(tmp_path / "folder") == ["The job file 'folder' can't be read: Is a directory."]


# ---- overrides ---------------------------------------------------------------------------------------------


def test_overrides_are_typed_by_the_model(job_file: Callable[..., Path]):
    overrides = [
        "train.lr=3e-4",
        "memory.gate=true",
        "train.betas=[0.5, 0.6]",
        "name=123abc",
        "train.steps=20",
    ]
    job = load_job(job_file(), overrides).job
    assert job.memory is not None
    assert (job.train.lr, job.memory.gate, job.train.betas) == (3e-4, True, (0.5, 0.6))
    assert (job.name, job.train.steps) == ("123abc", 20)


def test_the_last_override_counts(job_file: Callable[..., Path]):
    assert load_job(job_file(), ["train.steps=20", "train.steps=30"]).job.train.steps == 30
    assert load_job(job_file(), ["train.steps=x", "train.steps=30"]).job.train.steps == 30


def test_an_override_can_drop_a_group_or_bring_one(job_file: Callable[..., Path]):
    path = job_file()
    assert load_job(path, ["memory=null"]).job.memory is None
    assert load_job(path, ["memory="]).job.memory is None
    again = load_job(path, ["memory=null", "memory.layers=[1]", "memory.sub_keys=32"]).job
    assert again.memory is not None
    assert (again.memory.layers, again.memory.values.lr) == ((1,), 1e-3)
    assert load_job(path, ["store={shards: 3, lookup: pool}"]).job.store.shards == 3
    assert load_job(path, ["store.shards=3"]).job.store.shards == 3


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("train.lr=fast", "train.lr: must be a valid number, not 'fast'"),
        ("train.lrr=1", "train.lrr: unknown key; did you mean 'lr'?"),
        ("trian.lr=1", "trian: unknown key; did you mean 'train'?"),
        ("train.lr.peak=1", "train.lr is a single value and has no key 'peak'"),
        ("train.lr", "write it as key=value with the dotted path of the key, such as train.lr=3e-4"),
        ("=3", "write it as key=value with the dotted path of the key, such as train.lr=3e-4"),
        ("train..lr=3", "write it as key=value with the dotted path of the key, such as train.lr=3e-4"),
        ("train=3", "train: must be a group of keys, not 3 (it needs steps, batch_tokens)"),
        ("memory.layers=[1", "this can't be read as YAML: "),
        ("memory.k=*x", "this can't be read as YAML: anchors"),
        ("memory.layers=[7]", "memory.layers: layer 7 does not exist"),
        ("store={shards: 1, shards: 2}", "store.shards: this key stands twice"),
        ("store={shards: 1, shrads: 2}", "store.shrads: unknown key; did you mean 'shards'?"),
        ("name=", "name: must be a valid string, not null"),
    ],
)
def test_a_mistaken_override_is_quoted(job_file: Callable[..., Path], override: str, sentence: str):
    (line,) = refusal(job_file(), override)
    assert line.startswith(f"--set {override}: {sentence}")


def test_mistakes_of_file_and_overrides_come_together(job_file: Callable[..., Path]):
    lines = refusal(job_file(("steps: 10", "steps: x")), "store.shards=0", "train.lrr=1")
    assert [line.split(": ")[0] for line in lines] == [
        "job.yaml:11:3",
        "--set store.shards=0",
        "--set train.lrr=1",
    ]


def test_an_override_repairs_the_file(job_file: Callable[..., Path]):
    assert load_job(job_file(("steps: 10", "steps: x")), ["train.steps=5"]).job.train.steps == 5


# ---- corpus, origins, twins --------------------------------------------------------------------------------


def test_a_corpus_is_looked_for_beside_the_file_that_names_it(
    job_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "elsewhere").mkdir()
    path = job_file()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_job(Path("..") / path.name).job.data.corpus == tmp_path / "texts" / "corpus"
    overridden = load_job(path, ["data.corpus=mine"]).job
    assert overridden.data.corpus == tmp_path / "elsewhere" / "mine"
    assert load_job(path, ["data.corpus=/abs"]).job.data.corpus == Path("/abs")
    monkeypatch.setenv("HOME", "/home/someone")
    assert load_job(path, ["data.corpus=~/mine"]).job.data.corpus == Path("/home/someone/mine")


def test_every_value_has_an_origin(job_file: Callable[..., Path]):
    path = job_file()
    loaded = load_job(path, ["train.lr=0.5", "store={shards: 3}"])
    origins = dict(loaded.origins)
    given = {
        "name": f"{path}:1",
        "data.corpus": f"{path}:3",
        "model.layers": f"{path}:4",
        "model.dim": f"{path}:4",
        "model.heads": f"{path}:4",
        "memory.layers": f"{path}:6",
        "memory.sub_keys": f"{path}:7",
        "memory.values.lr": f"{path}:9",
        "train.steps": f"{path}:11",
        "train.batch_tokens": f"{path}:12",
        "train.lr": "--set",
        "store.shards": "--set",
    }
    assert {name: origins.pop(name) for name in given} == given
    assert set(origins.values()) == {"default"}
    groups = {"data", "model", "memory", "memory.values", "train", "store"}
    assert set(loaded.origins) == {name for name, _ in describe_settings()} - groups


def test_a_replaced_group_forgets_where_its_old_values_came_from(job_file: Callable[..., Path]):
    loaded = load_job(job_file(), ["memory={layers: [1], sub_keys: 32}"])
    assert (loaded.origins["memory.sub_keys"], loaded.origins["memory.values.lr"]) == ("--set", "default")
    (line,) = refusal(job_file(), "memory={layers: [1], values: {lr: 1}}")
    assert line.startswith(
        "--set memory={layers: [1], values: {lr: 1}}: memory.sub_keys: this key is missing"
    )


def test_a_twin_tells_what_it_changed(job_file: Callable[..., Path]):
    path = job_file()
    loaded = load_job(path, ["train.steps=5"], twin="deep")
    assert loaded.job == load_job(path, ["train.steps=5"]).job.twin("deep")
    changed = {name for name, origin in loaded.origins.items() if origin == "--twin deep"}
    assert changed == {"name", "model.layers", "memory"}
    assert loaded.origins["train.steps"] == "--set"


def test_a_twin_that_is_too_deep_is_refused(job_file: Callable[..., Path]):
    with pytest.raises(
        UsageError, match=re.escape("model.layers: must be less than or equal to 1024, not 1200")
    ):
        load_job(job_file(("layers: 4", "layers: 600")), twin="deep")
