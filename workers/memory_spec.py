"""The settings of the memory: which layers have one, how rows are chosen, what they hold, how they learn.

The defaults are the product-key memory of Lample et al. (2019). Options of its successors, each an option of the same
layer: `gate`, `shared_table`, `qk_norm` (Memory+, Berges et al. 2024), `slots: experts` (PEER, He 2024), `weights:
scores`, `value_dim`, `value_expansion` and the falling schedules of the values (UltraMem, Huang et al. 2024).
memory_layer.py, slots.py and product_keys.py define them. docs/choosing.md says when to choose which.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from workers.spec import Spec

FLAT_SUB_KEYS_MAX = 1024

_Beta = Annotated[float, Field(ge=0, lt=1)]
Betas = Annotated[
    tuple[_Beta, _Beta],
    Field(strict=False, description="Adam's decay of the first and of the second moment."),
]


class ValuesSpec(Spec):
    """The value table: number type, row optimizer, learning rate. Nothing decays: untouched rows stay."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the stored values; bfloat16 takes half the room and is updated with stochastic rounding."""
    optimizer: Literal["sgd", "adagrad", "rowwise_adagrad", "adam", "rowwise_adam"] = "adam"
    """Row optimizer; its state per row: sgd 0, adagrad D, rowwise_adagrad 1, adam 2D, rowwise_adam D+1."""
    lr: float = Field(default=1e-3, ge=0)
    """Learning rate of the values. Short runs need it far above train.lr: 0.03 for a few hundred steps."""
    schedule: Literal["constant", "linear", "cosine", "dense"] = "constant"
    """constant; linear or cosine: falls to lr_end at the last step; dense: follows train.schedule."""
    lr_end: float = Field(default=0.0, ge=0)
    """Learning rate to which a linear or cosine schedule falls (UltraMem: to a tenth of lr); at most lr."""
    betas: Betas = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    """Added to the denominator of the adaptive optimizers."""
    clip_norm: float | None = Field(default=None, gt=0)
    """Largest norm of the value gradient over all shards; null: no clipping."""

    @field_validator("lr_end")
    @classmethod
    def _lr_falls(cls, lr_end: float, info: ValidationInfo) -> float:
        lr, schedule = info.data.get("lr"), info.data.get("schedule")
        if lr_end and schedule in ("constant", "dense"):
            raise PydanticCustomError(
                "impossible",
                "schedule {schedule} has no end to fall to; use schedule linear or cosine, or leave lr_end out",
                {"schedule": schedule},
            )
        if lr is not None and lr_end > lr:
            raise PydanticCustomError(
                "impossible",
                "{lr_end} is above lr ({lr}); the rate can only fall",
                {"lr_end": lr_end, "lr": lr},
            )
        return lr_end


class MemorySpec(Spec):
    """The product-key memory. Leave it out (null) for a dense model, which trains without any shard."""

    layers: tuple[Annotated[int, Field(ge=1)], ...] = Field(strict=False, min_length=1)
    """Transformer layers that get a memory, counted from 1."""
    position: Literal["replace", "beside"] = "replace"
    """Whether the memory replaces the feed-forward of its layers or stands beside it."""
    look_ahead: int = Field(default=0, ge=0)
    """Layers between a memory's query and its answer: the lookup runs while they are computed. 0: none."""
    keys: Literal["product", "flat"] = "product"
    """product: a key for each pair of sub-keys. flat: n * n whole keys, all of them scored: slow, to compare with."""
    sub_keys: int = Field(ge=1, le=65_527)
    """Sub-keys per half of a query (n); there are n * n keys."""
    heads: int = Field(default=4, ge=1, le=1024)
    """Memory heads, each with its own query and its own sub-keys (H)."""
    k: int = Field(default=32, ge=1)
    """Rows that each head selects per token; at most sub_keys."""
    query_dim: int = Field(default=128, ge=2, le=65_536, multiple_of=2)
    """Width of a head's query; even, as each half meets its own set of sub-keys."""
    query_network: Literal["linear", "mlp"] = "linear"
    """How queries are made from the residual stream."""
    query_norm: Literal["batch", "layer", "none"] = "batch"
    """Normalisation of the queries; batch norm (over all trainers) spreads the use of the table."""
    qk_norm: bool = False
    """Compare layer-normalised queries and keys: steadies large memories (Memory+)."""
    weights: Literal["softmax", "scores"] = "softmax"
    """Weights of a head's rows: softmax of their scores, or the scores themselves, divided by k (UltraMem)."""
    slots: Literal["values", "experts"] = "values"
    """What a slot holds: a value, or an expert of one neuron, in rows twice as wide (PEER)."""
    value_dim: int | None = Field(default=None, ge=1, le=65_536)
    """Width of a value, which a matrix brings to model.dim (UltraMem: half of it); null: model.dim, no matrix."""
    value_expansion: int = Field(default=1, ge=1, le=64)
    """Keys that share a row, each with a matrix of its own (UltraMem): the table has n * n / value_expansion rows."""
    gate: bool = False
    """Multiply the memory's output by a learned gate of its input (Memory+)."""
    shared_table: bool = True
    """One value table for all memory layers; false: one for each."""
    revive_dead_after: int | None = Field(default=None, ge=1, le=1 << 40)
    """Steps without any selection after which a sub-key is re-seeded from one that is used often; null: never."""
    placement: Literal["host", "gpu", "cached"] = "host"
    """host: the table lies in its shards. gpu: on the devices of the trainers, in equal parts; needs store.carrier
    in_process and store.shards 1. cached: in its shards, with exact copies of the hottest rows on the device."""
    cached_rows: int = Field(default=65_536, ge=1)
    """Rows of each table that have copies on every trainer's device with placement cached."""
    values: ValuesSpec = Field(default_factory=ValuesSpec)

    @field_validator("layers")
    @classmethod
    def _layers_are_distinct(cls, layers: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(layers)) < len(layers):
            raise PydanticCustomError("impossible", "a layer is named twice; name each layer once")
        return layers

    @field_validator("look_ahead")
    @classmethod
    def _query_layers_exist(cls, look_ahead: int, info: ValidationInfo) -> int:
        layers = info.data.get("layers")
        if layers is not None and look_ahead >= min(layers):
            raise PydanticCustomError(
                "impossible",
                "{look_ahead} layers before the memory in layer {first} there is no layer to take its query from; "
                "use 0 to {most}, or move the memory to layer {next} or later",
                {
                    "look_ahead": look_ahead,
                    "first": min(layers),
                    "most": min(layers) - 1,
                    "next": look_ahead + 1,
                },
            )
        return look_ahead

    @field_validator("k")
    @classmethod
    def _k_is_within_sub_keys(cls, k: int, info: ValidationInfo) -> int:
        sub_keys = info.data.get("sub_keys")
        if sub_keys is not None and k > sub_keys:
            raise PydanticCustomError(
                "impossible",
                "{k} is more than sub_keys ({sub_keys}); a head can select 1 to {sub_keys} rows",
                {"k": k, "sub_keys": sub_keys},
            )
        return k

    @field_validator("sub_keys")
    @classmethod
    def _flat_keys_are_few(cls, sub_keys: int, info: ValidationInfo) -> int:
        if info.data.get("keys") == "flat" and sub_keys > FLAT_SUB_KEYS_MAX:
            raise PydanticCustomError(
                "impossible",
                "{sub_keys} * {sub_keys} flat keys would all be scored for every token; use product keys, "
                "or at most {most}",
                {"sub_keys": sub_keys, "most": FLAT_SUB_KEYS_MAX},
            )
        return sub_keys

    @field_validator("qk_norm")
    @classmethod
    def _queries_are_normalised_once(cls, qk_norm: bool, info: ValidationInfo) -> bool:
        if qk_norm and info.data.get("query_norm") == "layer":
            raise PydanticCustomError(
                "impossible",
                "query_norm layer would be normalised again; use query_norm none or batch with it",
            )
        return qk_norm

    @field_validator("value_dim")
    @classmethod
    def _experts_are_as_wide_as_the_model(cls, value_dim: int | None, info: ValidationInfo) -> int | None:
        if value_dim is not None and info.data.get("slots") == "experts":
            raise PydanticCustomError(
                "impossible",
                "an expert reads and writes the model's stream, so it has its width; leave it out",
            )
        return value_dim

    @field_validator("value_expansion")
    @classmethod
    def _keys_divide_among_rows(cls, expansion: int, info: ValidationInfo) -> int:
        if expansion > 1 and info.data.get("slots") == "experts":
            raise PydanticCustomError("impossible", "only values are expanded; use 1 with slots experts")
        keys = info.data.get("sub_keys", 0) ** 2
        if keys % expansion:
            raise PydanticCustomError(
                "impossible",
                "{keys} keys (sub_keys squared) don't divide by {expansion}; use a divisor of that number",
                {"keys": keys, "expansion": expansion},
            )
        return expansion

    @field_validator("placement")
    @classmethod
    def _revived_rows_are_in_shards(cls, placement: str, info: ValidationInfo) -> str:
        if placement != "host" and info.data.get("revive_dead_after") is not None:
            raise PydanticCustomError(
                "impossible",
                "rows are re-seeded in shards alone; use placement host, or leave revive_dead_after out",
            )
        return placement

    @field_validator("revive_dead_after")
    @classmethod
    def _sub_keys_can_be_revived(cls, steps: int | None, info: ValidationInfo) -> int | None:
        if steps is not None and (info.data.get("keys") == "flat" or info.data.get("value_expansion", 1) > 1):
            raise PydanticCustomError(
                "impossible",
                "only the sub-keys of product keys with a row for each pair are revived; "
                "use keys product and value_expansion 1, or leave it out",
            )
        return steps

    def table_rows(self) -> int:
        """Rows of a value table (K)."""
        return self.sub_keys**2 // self.value_expansion

    @property
    def reads_each_row(self) -> bool:
        """Whether the layer needs the rows themselves, not their weighted sums (slots.py)."""
        return self.slots == "experts" or self.value_expansion > 1

    def row_width(self, dim: int) -> int:
        """Numbers in a row of a value table (D) of a model of width `dim`."""
        if self.slots == "experts":
            return 2 * dim
        return self.value_dim or dim

    def table_name(self, layer: int) -> str:
        """Name of the value table that the memory in `layer` (counted from 1) reads."""
        return "memory" if self.shared_table else f"memory-{layer}"
