"""Text from a trained model, token by token.

The model sees at most the last `sequence_length` tokens, as in training, and starts as if at the
beginning of a document. Every token reads the whole window anew: at the sizes that one process serves,
this costs less than a cache would.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from tokenizers.decoders import DecodeStream
from torch import Tensor

from memory_store.errors import UsageError
from workers.run_folder import RunFolder
from workers.tokenizer import END_OF_TEXT_ID
from workers.trained_model import load_trained_model
from workers.transformer import Transformer


def generate(
    run: RunFolder, prompt: str, tokens: int = 100, temperature: float = 0.8, top_k: int = 50, seed: int = 0
) -> Iterator[str]:
    """Yield the text that follows `prompt`, in whole characters, until `tokens` tokens or the end of text.

    See `sample` for `temperature` and `top_k`. The same seed gives the same text. Raises UsageError if there
    is no run, or for settings out of range, CutError if its newest cut is damaged.
    """
    if tokens < 1 or top_k < 0 or not 0 <= temperature < math.inf:
        raise UsageError(
            f"Can't generate {tokens} tokens at temperature {temperature} with top-k {top_k}: give at least "
            "1 token, and a temperature and a top-k of 0 or more."
        )
    trained = load_trained_model(run)
    tokenizer = trained.corpus.tokenizer
    text = [END_OF_TEXT_ID, *tokenizer.encode(prompt, add_special_tokens=False).ids]
    decoder = DecodeStream(ids=text[1:], skip_special_tokens=True)
    random = torch.Generator().manual_seed(seed)
    for _ in range(tokens):
        window = torch.tensor([text[-trained.job.data.sequence_length :]])
        token = sample(_next_logits(trained.model, window), temperature, top_k, random)
        if token == END_OF_TEXT_ID:
            return
        text.append(token)
        if piece := decoder.step(tokenizer, token):
            yield piece


def sample(logits: Tensor, temperature: float, top_k: int, random: torch.Generator) -> int:
    """One token by its logits `[V]`, drawn from the `top_k` likeliest (0: from all).

    The chances are softmax(logits / temperature); temperature 0 takes the likeliest.
    """
    if temperature == 0:
        return int(logits.argmax())
    best, tokens = logits.topk(min(top_k or logits.numel(), logits.numel()))
    # Relative to the best, so that a tiny temperature overflows to -inf, which softmax understands.
    probabilities = ((best - best[0]).double() / temperature).softmax(0)
    return int(tokens[torch.multinomial(probabilities, 1, generator=random)])


@torch.no_grad()
def _next_logits(model: Transformer, window: Tensor) -> Tensor:
    """Tokens `[1, L]` -> the logits of the token that follows, `[V]`."""
    logits: Tensor = model(window)[0, -1]
    return logits
