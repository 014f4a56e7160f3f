"""A corpus folder: exactly the text, made whole and once, the same bytes every time; damage is named."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from memory_store.errors import UsageError
from workers import corpus as corpus_module
from workers.corpus import Corpus, CorpusInfo, open_corpus, prepare_corpus
from workers.documents import read_documents
from workers.splits import SPLITS
from workers.tokenizer import END_OF_TEXT_ID, train_tokenizer

ADDRESSES = Path(__file__).parents[2] / "examples" / "data" / "sotu.parquet"
SETTINGS: dict[str, Any] = {"vocab_size": 300, "validation_share": 0.1, "test_share": 0.2}


@pytest.fixture(scope="module")
def addresses() -> list[str]:
    texts = read_documents(ADDRESSES, "text")
    return [next(texts)[:3000] for _ in range(10)]


@pytest.fixture
def source(addresses: list[str], tmp_path: Path) -> Path:
    path = tmp_path / "texts" / "addresses.parquet"
    path.parent.mkdir()
    pq.write_table(pa.table({"text": addresses}), path)
    return path


def decoded(corpus: Corpus, split: str) -> list[str]:
    """The documents of a split, out of its tokens."""
    documents = np.split(corpus.tokens(split), np.flatnonzero(corpus.tokens(split) == END_OF_TEXT_ID) + 1)
    assert documents.pop().size == 0
    return [corpus.tokenizer.decode(tokens[:-1].tolist(), skip_special_tokens=False) for tokens in documents]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_tokens_are_the_text_and_the_last_documents_are_held_out(
    source: Path, addresses: list[str], tmp_path: Path
) -> None:
    info = prepare_corpus([source], tmp_path / "corpus", **SETTINGS)
    corpus = open_corpus(tmp_path / "corpus")
    corpus.verify()
    texts = {split: decoded(corpus, split) for split in SPLITS}
    assert texts["train"] + texts["validation"] + texts["test"] == addresses
    characters = list(map(len, addresses))
    held = len(texts["test"])
    assert sum(characters[-held:]) >= 0.2 * sum(characters) > sum(characters[-held + 1 :])
    assert corpus.info == info
    assert info.split_by == "documents"
    for split in SPLITS:
        assert info.splits[split].documents == len(texts[split])
        assert info.splits[split].characters == sum(map(len, texts[split]))
        assert info.splits[split].tokens == corpus.tokens(split).size
        assert corpus.tokens(split).max() < info.vocabulary_size
    assert info.vocabulary_size == corpus.tokenizer.get_vocab_size() == 300


def test_the_tokenizer_learns_from_the_training_text_alone(
    source: Path, addresses: list[str], tmp_path: Path
) -> None:
    info = prepare_corpus([source], tmp_path / "corpus", **SETTINGS)
    expected = train_tokenizer(addresses[: info.splits["train"].documents], 300)
    assert open_corpus(tmp_path / "corpus").tokenizer.to_str() == expected.to_str()
    assert expected.to_str() != train_tokenizer(addresses, 300).to_str()


def test_a_single_document_is_cut_by_position(addresses: list[str], tmp_path: Path) -> None:
    text = "".join(addresses)
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    info = prepare_corpus([tmp_path / "a.txt"], tmp_path / "corpus", **SETTINGS)
    corpus = open_corpus(tmp_path / "corpus")
    parts = [decoded(corpus, split) for split in SPLITS]
    assert [len(part) for part in parts] == [1, 1, 1]
    assert "".join(part[0] for part in parts) == text
    assert len(parts[2][0]) == pytest.approx(0.2 * len(text), abs=1)
    assert info.split_by == "position"
    assert json.loads((tmp_path / "corpus" / "corpus.json").read_text())["split_by"] == "position"


def test_every_kind_of_file_gives_the_same_tokens_and_files_follow_one_another(
    addresses: list[str], tmp_path: Path
) -> None:
    pq.write_table(pa.table({"text": addresses[:3]}), tmp_path / "1.parquet")
    (tmp_path / "2.jsonl.gz").write_bytes(
        gzip.compress("\n".join(json.dumps({"text": text}) for text in addresses[3:6]).encode())
    )
    (tmp_path / "3.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in addresses[6:9]))
    (tmp_path / "4.txt").write_text(addresses[9], encoding="utf-8")
    prepare_corpus(sorted(tmp_path.glob("[1-4].*")), tmp_path / "mixed", **SETTINGS)
    pq.write_table(pa.table({"text": addresses}), tmp_path / "all.parquet")
    prepare_corpus([tmp_path / "all.parquet"], tmp_path / "plain", **SETTINGS)
    mixed, plain = content(tmp_path / "mixed"), content(tmp_path / "plain")
    assert mixed.pop("corpus.json") != plain.pop("corpus.json")
    assert mixed == plain


def test_the_same_again_gives_the_same_bytes_and_in_the_same_place_does_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepare_corpus([source], tmp_path / "one", **SETTINGS)
    prepare_corpus([source], tmp_path / "deep" / "two", **SETTINGS)
    assert content(tmp_path / "one") == content(tmp_path / "deep" / "two")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "one").iterdir()}
    monkeypatch.setattr(corpus_module, "read_documents", None)
    phases: list[tuple[str, float]] = []
    assert (
        prepare_corpus([source], tmp_path / "one", **SETTINGS, on_progress=lambda *now: phases.append(now))
        == first
    )
    assert phases == [("prepared already", 1.0)]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "one").iterdir()} == times


def test_progress_rises_to_the_end_of_each_phase(source: Path, tmp_path: Path) -> None:
    heard: dict[str, list[float]] = {}
    prepare_corpus(
        [source],
        tmp_path / "corpus",
        **SETTINGS,
        on_progress=lambda phase, share: heard.setdefault(phase, []).append(share),
    )
    assert list(heard) == ["reading", "training the tokenizer", "encoding"]
    for shares in heard.values():
        assert shares == sorted(shares)
        assert 0 <= shares[0] <= shares[-1] <= 1
    assert heard["training the tokenizer"][-1] == heard["encoding"][-1] == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vocab_size": 301}, "other vocabulary size;"),
        ({"validation_share": 0.2, "test_share": 0.1}, "other validation share and test share;"),
        ({"text_column": "body"}, "other text column;"),
    ],
)
def test_a_corpus_of_other_settings_is_never_written_over(
    change: dict[str, object], words: str, source: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "corpus"
    prepare_corpus([source], folder, **SETTINGS)
    before = content(folder)
    with pytest.raises(UsageError, match=f"{words} nothing was written over. Choose another --out"):
        prepare_corpus([source], folder, **{**SETTINGS, **change})
    assert content(folder) == before


def test_a_corpus_of_other_files_is_never_written_over(
    source: Path, addresses: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "corpus"
    prepare_corpus([source], folder, **SETTINGS)
    before = content(folder)
    pq.write_table(pa.table({"text": [*addresses[:-1], "Now it ends otherwise."]}), source)
    with pytest.raises(UsageError, match="other sources; nothing was written over"):
        prepare_corpus([source], folder, **SETTINGS)
    assert content(folder) == before


def test_anything_else_in_the_place_is_never_written_over(source: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("full", "file"):
        with pytest.raises(UsageError, match=f"{name} exists and is no corpus; nothing was written over"):
            prepare_corpus([source], tmp_path / name, **SETTINGS)
    with pytest.raises(UsageError, match="can't be made"):
        prepare_corpus([source], tmp_path / "file" / "corpus", **SETTINGS)
    assert (tmp_path / "full" / "mine").read_text() == (tmp_path / "file").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    prepare_corpus([source], tmp_path / "empty", **SETTINGS)
    open_corpus(tmp_path / "empty")


def test_what_someone_else_made_meanwhile_is_never_written_over(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made_meanwhile(info: CorpusInfo) -> bytes:
        (tmp_path / "corpus").mkdir()
        (tmp_path / "corpus" / "mine").write_text("mine")
        return b""

    monkeypatch.setattr(corpus_module, "_info_to_json", made_meanwhile)
    with pytest.raises(UsageError, match=r"can't be put in its place.*Nothing was written over"):
        prepare_corpus([source], tmp_path / "corpus", **SETTINGS)
    assert content(tmp_path / "corpus") == {"mine": b"mine"}


@pytest.mark.parametrize("step", ["train_tokenizer", "encode_parts", "write_tokens", "_info_to_json"])
def test_what_was_stopped_on_the_way_goes_on(
    step: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(corpus_module, step, stop)
        with pytest.raises(KeyboardInterrupt):
            prepare_corpus([source], tmp_path / "corpus", **SETTINGS)
    assert sorted(os.listdir(tmp_path)) == [".corpus.unfinished", "texts"]
    if step != "train_tokenizer":  # it is not learned twice
        monkeypatch.setattr(corpus_module, "train_tokenizer", stop)
    prepare_corpus([source], tmp_path / "corpus", **SETTINGS)
    monkeypatch.undo()
    prepare_corpus([source], tmp_path / "other", **SETTINGS)
    assert content(tmp_path / "corpus") == content(tmp_path / "other")
    assert sorted(os.listdir(tmp_path)) == ["corpus", "other", "texts"]


def test_what_was_begun_with_other_settings_is_begun_anew(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(corpus_module, "write_tokens", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare_corpus([source], tmp_path / "corpus", **{**SETTINGS, "vocab_size": 280})
    prepare_corpus([source], tmp_path / "corpus", **SETTINGS)
    prepare_corpus([source], tmp_path / "other", **SETTINGS)
    assert content(tmp_path / "corpus") == content(tmp_path / "other")


def test_a_file_that_changes_meanwhile_is_noticed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train_and_change(*arguments: object) -> object:
        tokenizer = train_tokenizer(*arguments)  # type: ignore[arg-type]
        pq.write_table(pa.table({"text": ["something else", "and more", "and more"]}), source)
        return tokenizer

    monkeypatch.setattr(corpus_module, "train_tokenizer", train_and_change)
    with pytest.raises(UsageError, match="changed while they were being read"):
        prepare_corpus([source], tmp_path / "corpus", **SETTINGS)
    assert os.listdir(tmp_path) == ["texts"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vocab_size": 257}, "vocabulary of 257 tokens is too small"),
        ({"vocab_size": 1_000_000}, "enough for a vocabulary of [0-9]+ tokens, not of 1000000"),
        ({"text_column": "body"}, "has no column 'body'"),
        ({"validation_share": -0.1}, "-0.1 for validation"),
        ({"validation_share": 0.5, "test_share": 0.5}, "together less than 1"),
        ({"test_share": float("nan")}, "nan for test"),
    ],
)
def test_impossible_settings_are_refused_and_make_nothing(
    change: dict[str, object], words: str, source: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=words):
        prepare_corpus([source], tmp_path / "corpus", **{**SETTINGS, **change})
    assert os.listdir(tmp_path) == ["texts"]


def test_too_little_text_is_refused(tmp_path: Path) -> None:
    for text in ("a", "ab", "abc"):
        (tmp_path / "a.txt").write_text(text)
        with pytest.raises(UsageError, match="enough for a vocabulary of 257 tokens"):
            prepare_corpus([tmp_path / "a.txt"], tmp_path / "corpus", **SETTINGS)


def test_a_folder_without_a_corpus_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(
            UsageError, match=r"is no corpus: it has no corpus.json. Make one with `pkm data prepare`"
        ):
            open_corpus(folder)


def test_an_unknown_split_is_refused(source: Path, tmp_path: Path) -> None:
    prepare_corpus([source], tmp_path / "corpus", **SETTINGS)
    with pytest.raises(UsageError, match="no split 'dev'; a corpus has train, validation, test"):
        open_corpus(tmp_path / "corpus").tokens("dev")


def cut_short(content: bytes) -> bytes:
    return content[:-1]


def flip_first(content: bytes) -> bytes:
    return bytes([content[0] ^ 1]) + content[1:]


def flip_middle(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("damage", [cut_short, flip_first, flip_middle])
@pytest.mark.parametrize(
    "name", ["corpus.json", "tokenizer.json", "train.arrow", "validation.arrow", "test.arrow"]
)
def test_damage_is_found_and_its_file_named(
    name: str, damage: Callable[[bytes], bytes], source: Path, tmp_path: Path
) -> None:
    prepare_corpus([source], tmp_path / "corpus", **SETTINGS)
    path = tmp_path / "corpus" / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UsageError, match=f"{name} is damaged: .* prepare the corpus again"):
        open_corpus(tmp_path / "corpus").verify()
    if damage is cut_short and name != "corpus.json":
        with pytest.raises(UsageError, match=f"{name} is damaged: it has [0-9]+ bytes, corpus.json says"):
            open_corpus(tmp_path / "corpus")
    path.unlink()
    with pytest.raises(UsageError, match=name):
        open_corpus(tmp_path / "corpus")


def test_any_flipped_byte_of_the_description_is_found(source: Path, tmp_path: Path) -> None:
    prepare_corpus([source], tmp_path / "corpus", **SETTINGS)
    path = tmp_path / "corpus" / "corpus.json"
    intact = path.read_bytes()
    for place in range(len(intact)):
        path.write_bytes(intact[:place] + bytes([intact[place] ^ 1]) + intact[place + 1 :])
        with pytest.raises(UsageError, match=r"corpus.json is damaged"):
            open_corpus(tmp_path / "corpus")
