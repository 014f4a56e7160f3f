"""An exported model as a causal language model of `transformers`.

model = AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)

The model itself is pkm_model.py; this adds what `transformers` asks of a model: padding masks, its cache of keys and
values, a loss, `generate()`. It is made for reading: training, with sparse updates of the tables, is what `pkm train` does.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_pkm import PkmConfig
from .pkm_model import PkmModel

# What older versions call past_key_values.
CACHE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"


class PkmForCausalLM(PreTrainedModel, GenerationMixin):
    """`PkmModel` with the interface of `transformers`."""

    config_class = PkmConfig
    base_model_prefix = "model"

    def __init__(self, config: PkmConfig) -> None:
        super().__init__(config)
        self.model = PkmModel(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.model.embedding = value

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: DynamicCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        past_key_values: DynamicCache | None = None,
        **unused: Any,
    ) -> CausalLMOutputWithPast:
        """`labels` int64 `[B, L]` (-100: none) are the tokens themselves: each is compared with the logits before it."""
        cache = past_key_values if cache is None else cache
        if use_cache and cache is None:
            cache = DynamicCache()
        logits = self.model(input_ids, attention_mask, cache)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        output: CausalLMOutputWithPast = CausalLMOutputWithPast(loss=loss, logits=logits, **{CACHE: cache})
        return output
