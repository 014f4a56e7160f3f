"""An exported model for `lm-eval` (EleutherAI's harness), without `transformers`: the model "pkm".

    python FOLDER/lm_eval_pkm.py run --model pkm --model_args folder=FOLDER --tasks lambada_openai

Run like this, it is the command `lm_eval` with one more model. Every text starts as in training, after the token that
begins a document, and the model sees at most the `max_position_embeddings` tokens before the one that it predicts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from pkm_model import load
from torch import Tensor

BEGIN = 0
Scored = tuple[float, bool]


@register_model("pkm")
class PkmLM(TemplateLM):
    """Scores and continues texts with the model in `folder`."""

    def __init__(self, folder: str, device: str = "cpu", max_gen_toks: int = 256, **_: Any) -> None:
        super().__init__()
        self.model, self._tokenizer = load(folder)
        self.model.to(device)
        self._device = device
        self.max_gen_toks = int(max_gen_toks)
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        self.max_length = int(config["max_position_embeddings"])

    @property
    def eot_token_id(self) -> int:
        return BEGIN

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Tokens of a text alone: the beginning of the document is put before it where it is read."""
        tokens: list[int] = self._tokenizer.encode(string, add_special_tokens=False).ids
        return tokens

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts: every token is scored once."""
        return [self._score([], self.tok_encode(request.args[0]))[0] for request in requests]

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """The likeliest text, up to a stopping sequence, the end of the document or `max_gen_toks` tokens."""
        return [self._generate(*request.args) for request in requests]

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[Scored]:
        return [self._score(context, continuation) for _, context, continuation in requests]

    def _score(self, context: list[int], continuation: list[int]) -> Scored:
        """Log-likelihood of a continuation, and whether it is what greedy decoding would say."""
        text = [BEGIN, *context[context[:1] == [BEGIN] :], *continuation]
        total, greedy = 0.0, True
        for window, count in self._windows(text, len(continuation)):
            logits = self._logits(window[:-1])[-count:]
            expected = torch.tensor(window[-count:], device=logits.device)
            total += float(logits.log_softmax(-1).gather(1, expected[:, None]).double().sum())
            greedy &= bool((logits.argmax(-1) == expected).all())
        return total, greedy

    def _windows(self, text: list[int], scored: int) -> Iterator[tuple[list[int], int]]:
        """Windows of at most max_length + 1 tokens, each with how many of its last tokens it scores.

        Together they score the last `scored` tokens of `text`, each once; the last window is as long as it can be.
        """
        begin = len(text) - scored
        while begin < len(text):
            end = min(len(text), begin + self.max_length)
            yield text[max(0, end - self.max_length - 1) : end], end - begin
            begin = end

    def _generate(self, context: str, settings: dict[str, Any]) -> str:
        stops = settings.get("until") or []
        stops = [stops] if isinstance(stops, str) else stops
        text = [BEGIN, *self.tok_encode(context)]
        begin, generated = len(text), ""
        for _ in range(int(settings.get("max_gen_toks", self.max_gen_toks))):
            token = int(self._logits(text[-self.max_length :])[-1].argmax())
            if token == BEGIN:
                break
            text.append(token)
            generated = self._tokenizer.decode(text[begin:])
            if any(stop in generated for stop in stops):
                break
        return generated[: min([generated.find(stop) for stop in stops if stop in generated], default=None)]

    @torch.no_grad()
    def _logits(self, tokens: list[int]) -> Tensor:
        """Tokens -> logits `[L, V]`."""
        logits: Tensor = self.model(torch.tensor([tokens], device=self._device))[0]
        return logits


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
