"""`pkm data prepare` on real files."""

import json
from pathlib import Path

from typer.testing import CliRunner, Result

from service.cli import app
from workers.corpus import open_corpus

SENTENCES = "The state of the union is strong. We the people know that it always was, and always will be.\n"


def prepare(*arguments: object) -> Result:
    words = ["data", "prepare", *map(str, arguments)]
    return CliRunner().invoke(app, words, env={"COLUMNS": "200", "NO_COLOR": "1"})


def write_text(folder: Path) -> Path:
    path = folder / "speeches.txt"
    path.write_text("\f".join(f"Address number {year}. {SENTENCES * 5}" for year in range(20)))
    return path


def test_a_corpus_is_made_and_described(tmp_path: Path):
    result = prepare(write_text(tmp_path), "--vocab-size", 280, "--out", tmp_path / "corpus")
    assert result.exit_code == 0, result.stderr
    corpus = open_corpus(tmp_path / "corpus")
    figures = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines()}
    assert figures["corpus"] == [str(tmp_path / "corpus")]
    assert figures["vocabulary"] == ["280", "tokens"]
    for split in ("train", "validation", "test"):
        assert figures[split][0] == f"{corpus.tokens(split).size:,}"
    assert result.stderr.splitlines() == ["reading", "training the tokenizer", "encoding"]


def test_preparing_again_says_so_and_gives_the_same_figures(tmp_path: Path):
    arguments = (write_text(tmp_path), "--vocab-size", 280, "--out", tmp_path / "corpus", "--json")
    first, second = prepare(*arguments), prepare(*arguments)
    assert json.loads(first.stdout)["vocabulary_size"] == 280
    assert (second.exit_code, second.stdout) == (0, first.stdout)
    assert second.stderr == "prepared already\n"


def test_what_can_not_be_used_is_a_mistake_of_the_user(tmp_path: Path):
    text = write_text(tmp_path)
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    for arguments in [
        (tmp_path / "gone.txt", "--vocab-size", 280),
        (empty, "--vocab-size", 280),
        (text, "--vocab-size", 3),
        (text, "--vocab-size", 280, "--test-share", 0.9, "--validation-share", 0.2),
    ]:
        result = prepare(*arguments, "--out", tmp_path / "corpus")
        assert (result.exit_code, result.stdout) == (2, ""), result.stderr
        assert result.stderr.splitlines()[-1].startswith("Error: ")
        assert not (tmp_path / "corpus").exists()
