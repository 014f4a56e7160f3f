"""The configuration of an exported model for `transformers`; config.json of the folder is read into it."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig


class PkmConfig(PretrainedConfig):
    """Sizes under the names `transformers` gives them, and the memory's settings as the job file has them."""

    model_type = "pkm"

    def __init__(
        self,
        vocab_size: int = 256,
        hidden_size: int = 128,
        num_hidden_layers: int = 4,
        num_attention_heads: int = 4,
        intermediate_size: int = 512,
        max_position_embeddings: int = 256,
        rotary_base: float = 10_000.0,
        memory: dict[str, Any] | None = None,
        memory_tables: dict[str, str] | None = None,
        table_dtype: str = "float32",
        **others: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.max_position_embeddings = max_position_embeddings
        self.rotary_base = rotary_base
        self.memory = memory
        self.memory_tables = memory_tables or {}
        self.table_dtype = table_dtype
        super().__init__(**{"tie_word_embeddings": False, **others})
