"""Generated text: what the model itself would say next, whole characters, the same for the same seed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from memory_store.errors import UsageError
from tests.small_job import small_job
from workers.generation import generate, sample
from workers.run_folder import RunFolder
from workers.trained_model import load_trained_model
from workers.trainer_group import train


@pytest.fixture(scope="module")
def run(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    job = small_job(corpus, train__steps=20, train__cut_every=20)
    run = RunFolder(tmp_path_factory.mktemp("generation") / "run")
    run.create(job)
    train(job, run, on_progress=lambda _: None)
    return run


def test_each_token_is_the_likeliest_after_the_last_window(run: RunFolder, monkeypatch: pytest.MonkeyPatch):
    seen: list[torch.Tensor] = []

    def likeliest(logits: torch.Tensor, *_: object) -> int:
        seen.append(logits)
        return sample(logits, 0.0, 0, torch.Generator())

    monkeypatch.setattr("workers.generation.sample", likeliest)
    pieces = generate(run, "The state of the", tokens=40)
    generated = "The state of the" + "".join(pieces)

    trained = load_trained_model(run)
    tokenizer, length = trained.corpus.tokenizer, trained.job.data.sequence_length
    text = [0, *tokenizer.encode("The state of the", add_special_tokens=False).ids]
    assert len(text) < length < len(text) + 40  # the window begins to slide on the way
    for logits in seen:
        with torch.no_grad():
            expected = trained.model(torch.tensor([text[-length:]]))[0, -1]
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-6)
        text.append(int(expected.argmax()))
    assert generated == tokenizer.decode(text[1:])


def test_the_seed_decides_the_text(run: RunFolder):
    first, again, other = ("".join(generate(run, "We", tokens=20, seed=seed)) for seed in (1, 1, 2))
    assert first == again != other


def test_pieces_are_whole_characters(run: RunFolder, monkeypatch: pytest.MonkeyPatch):
    """A character of several tokens comes in one piece."""
    tokenizer = load_trained_model(run).corpus.tokenizer
    tokens = tokenizer.encode("né → 日本", add_special_tokens=False).ids
    assert len(tokens) > len("né → 日本")  # the vocabulary has no such characters
    told = iter([*tokens, 0, *tokens])
    monkeypatch.setattr("workers.generation.sample", lambda *_: next(told))
    pieces = list(generate(run, "Tokyo", tokens=100))
    assert "".join(pieces) == "né → 日本"  # and ends at the end of text
    assert "�" not in "".join(pieces)
    assert len(pieces) > 1


def test_an_empty_prompt_begins_a_document(run: RunFolder):
    assert "".join(generate(run, "", tokens=5))


@pytest.mark.parametrize(
    "settings", [{"tokens": 0}, {"temperature": -1.0}, {"temperature": float("nan")}, {"top_k": -1}]
)
def test_settings_out_of_range_are_refused(run: RunFolder, settings: dict[str, float]):
    with pytest.raises(UsageError, match="Can't generate"):
        next(generate(run, "We", **settings))  # type: ignore[arg-type]


def test_a_folder_without_a_run_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="not the folder of a run"):
        next(generate(RunFolder(tmp_path), "We"))


def test_samples_have_the_frequencies_of_the_softmax():
    logits = torch.tensor([0.0, 2.0, 1.0, -1.0])
    random = torch.Generator().manual_seed(0)
    draws = 4000
    for temperature, top_k in [(1.0, 0), (0.5, 0), (2.0, 3), (1.0, 100)]:
        allowed = logits.clone()
        if top_k == 3:
            allowed[3] = -torch.inf
        expected = (allowed / temperature).softmax(0)
        counts = Counter(sample(logits, temperature, top_k, random) for _ in range(draws))
        for token, share in enumerate(expected.tolist()):
            # Five standard deviations of a binomial share.
            assert abs(counts[token] / draws - share) <= 5 * (share * (1 - share) / draws) ** 0.5


def test_tiny_temperatures_are_as_good_as_zero():
    random = torch.Generator().manual_seed(0)
    assert {sample(torch.tensor([1.0, 3.0, 2.0]), 1e-300, 0, random) for _ in range(50)} == {1}
    assert {sample(torch.tensor([1.0, 3.0, 2.0]), 1.0, 1, random) for _ in range(50)} == {1}
