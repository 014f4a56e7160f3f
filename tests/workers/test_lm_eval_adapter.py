"""The adapter for lm-eval: its figures are those of the trained model itself, through the interface that lm-eval documents.

Where lm-eval is not installed (its dependencies come as source, which `deploy/install` refuses), stand-ins with the few
members that the adapter inherits take its place; with it, the same tests run against the real classes.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.small_job import small_job
from workers.export import export_run
from workers.generation import generate
from workers.run_folder import RunFolder
from workers.trained_model import TrainedModel, load_trained_model
from workers.trainer_group import train

TEXT = "the people of the United States and the public service of the Government"


@pytest.fixture(scope="module")
def run(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    job = small_job(corpus, train__steps=20, train__cut_every=20)
    run = RunFolder(tmp_path_factory.mktemp("lm-eval") / "run")
    run.create(job)
    train(job, run, on_progress=lambda _: None)
    return run


@pytest.fixture(scope="module")
def trained(run: RunFolder) -> TrainedModel:
    return load_trained_model(run)


def stand_ins(registered: dict[str, Any]) -> dict[str, types.ModuleType]:
    """The modules of lm-eval that the adapter imports, with what it uses of them."""

    class TemplateLM:
        def loglikelihood(self: Any, requests: list[Any]) -> list[tuple[float, bool]]:
            pairs = []
            for context, continuation in (request.args for request in requests):
                before, whole = self.tok_encode(context), self.tok_encode(context + continuation)
                start = [self.eot_token_id] if context == "" else before
                pairs.append(((context, continuation), start, whole[len(before) :]))
            return self._loglikelihood_tokens(pairs)  # type: ignore[no-any-return]

    def register_model(name: str) -> Callable[[type], type]:
        return lambda model: registered.setdefault(name, model)

    modules = {name: types.ModuleType(name) for name in ("lm_eval", "lm_eval.api")}
    for name, members in {
        "instance": {"Instance": object},
        "model": {"TemplateLM": TemplateLM},
        "registry": {"register_model": register_model},
    }.items():
        modules[f"lm_eval.api.{name}"] = types.ModuleType(f"lm_eval.api.{name}")
        vars(modules[f"lm_eval.api.{name}"]).update(members)
    return modules


@pytest.fixture(scope="module")
def adapter(run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The model that the folder registers under the name "pkm"."""
    folder = tmp_path_factory.mktemp("exported") / "model"
    export_run(run, folder)
    registered: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patched:
        try:
            from lm_eval.api.registry import get_model  # type: ignore[import-not-found, unused-ignore]
        except ImportError:
            get_model = registered.__getitem__
            for name, module in stand_ins(registered).items():
                patched.setitem(sys.modules, name, module)
        patched.syspath_prepend(str(folder))
        importlib.import_module("lm_eval_pkm")
        yield get_model("pkm")(folder=str(folder))
        for name in ("pkm_model", "lm_eval_pkm"):
            del sys.modules[name]


def asked(*arguments: Any) -> list[Any]:
    return [types.SimpleNamespace(args=arguments)]


def log_likelihoods(trained: TrainedModel, text: str) -> list[float]:
    """Of each token of a text, computed one at a time.

    A window scores as many tokens as the model saw at once in training, the last window no more than are left; all windows
    but the first reach back as far as that allows.
    """
    tokens = [0, *trained.corpus.tokenizer.encode(text, add_special_tokens=False).ids]
    length, found = trained.job.data.sequence_length, []
    with torch.no_grad():
        for place in range(1, len(tokens)):
            end = min(len(tokens), 1 + length * -(-place // length))
            logits = trained.model(torch.tensor([tokens[max(0, end - length - 1) : place]]))[0, -1]
            found.append(float(logits.log_softmax(-1)[tokens[place]]))
    return found


def test_a_continuation_has_the_log_likelihood_of_its_tokens(adapter: Any, trained: TrainedModel):
    [(found, _)] = adapter.loglikelihood(asked("the people of", " the United States"))
    count = len(trained.corpus.tokenizer.encode("the people of", add_special_tokens=False).ids)
    expected = log_likelihoods(trained, "the people of the United States")[count:]
    assert found == pytest.approx(sum(expected), abs=1e-4)
    [(found, _)] = adapter.loglikelihood(asked("", "the people"))
    assert found == pytest.approx(sum(log_likelihoods(trained, "the people")), abs=1e-4)


def test_greedy_text_is_known_as_such_and_other_text_is_not(adapter: Any, trained: TrainedModel):
    context = adapter.tok_encode(TEXT[:20])
    text = [0, *context]
    with torch.no_grad():
        for _ in range(4):
            text.append(int(trained.model(torch.tensor([text]))[0, -1].argmax()))
    likeliest = text[-4:]
    [(_, greedy)] = adapter._loglikelihood_tokens([(("", ""), context, likeliest)])
    [(_, other)] = adapter._loglikelihood_tokens([(("", ""), context, [*likeliest[:3], likeliest[3] ^ 1])])
    assert (greedy, other) == (True, False)


def test_a_long_text_is_scored_whole_each_token_once(adapter: Any, trained: TrainedModel):
    """It takes more than two windows."""
    text = " ".join([TEXT] * 8)
    expected = log_likelihoods(trained, text)
    length = trained.job.data.sequence_length
    assert len(expected) > 2 * length
    [found] = adapter.loglikelihood_rolling(asked(text))
    assert found == pytest.approx(sum(expected), rel=1e-4)


def test_generated_text_ends_before_the_stop(adapter: Any, run: RunFolder):
    expected = "".join(generate(run, TEXT, tokens=12, temperature=0))
    assert adapter.generate_until(asked(TEXT, {"until": [], "max_gen_toks": 12})) == [expected]
    stop = expected[3:5]
    [found] = adapter.generate_until(asked(TEXT, {"until": [stop, "never said"], "max_gen_toks": 12}))
    assert found == expected[: expected.index(stop)]
