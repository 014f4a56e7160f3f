"""A training job: the frozen models that say everything about it, and the only schema there is.

The YAML job file, the `--set` overrides, the `job.yaml` of a run folder, the JSON Schema for editors and
the wire all go through `JobSpec`. It keeps one invariant: a job that exists can be run. Shapes fit
together and the value table fits the memory that its shards may take, so that nothing starts only to
fail later. Unknown keys are refused, types are never guessed (`"600"` is not a number of steps), and
pydantic reports every mistake at once, each with its dotted path.

Letters: n sub-keys, K rows of a table (n*n), D row width (the model's dim), H heads, k rows chosen per head.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from memory_store.placement import BUCKETS, bucket_capacity
from memory_store.table_spec import OptimizerSpec, TableSpec
from workers.memory_spec import Betas, MemorySpec
from workers.spec import Spec, impossible

GIB = 1 << 30

NAME_LENGTH_MAX = 63
ROW_WIDTH_MAX = 65_536


class DataSpec(Spec):
    """The text to learn from."""

    corpus: Path = Field(strict=False)
    """Folder made by `pkm data prepare`; a relative one is looked for beside the job file."""
    sequence_length: int = Field(default=256, ge=1, le=1 << 20)
    """Tokens of a training sequence."""


class ModelSpec(Spec):
    """The dense transformer round the memory."""

    layers: int = Field(ge=1, le=1024)
    """Transformer layers."""
    dim: int = Field(ge=2, le=65_536)
    """Width of the residual stream, and of the values unless memory.value_dim says otherwise."""
    heads: int = Field(ge=1, le=1024)
    """Attention heads; dim / heads must be a whole, even number (rotary positions turn pairs)."""
    feed_forward_dim: int = Field(default_factory=lambda data: 4 * int(data["dim"]), ge=1, le=1 << 20)
    """Width of the feed-forward layers; 4 * dim unless given."""

    @field_validator("heads")
    @classmethod
    def _heads_divide_dim(cls, heads: int, info: ValidationInfo) -> int:
        dim = info.data.get("dim")
        if dim is not None and dim % (2 * heads):
            raise PydanticCustomError(
                "impossible",
                "{heads} heads don't fit dim {dim}: dim / heads must be a whole, even number",
                {"heads": heads, "dim": dim},
            )
        return heads


class TrainSpec(Spec):
    """Steps, the dense optimizer (AdamW), and how often to evaluate and to save."""

    steps: int = Field(ge=1, le=1 << 40)
    """Optimizer steps."""
    only_rows: int | None = Field(default=None, ge=1, le=1 << 40)
    """Rows of each memory layer that a step may update, all else frozen; for runs that `pkm finetune` makes. null: all."""
    batch_tokens: int = Field(ge=1, le=1 << 40)
    """Tokens of a step in all; a multiple of sequence_length * trainers * gradient_accumulation."""
    gradient_accumulation: int = Field(default=1, ge=1, le=1 << 20)
    """Micro-batches that a trainer runs one after the other in a step."""
    trainers: int = Field(default=1, ge=1, le=4096)
    """Trainer processes, each with its part of the batch."""
    lr: float = Field(default=1e-3, ge=0)
    """Highest learning rate of the dense parameters."""
    schedule: Literal["constant", "cosine", "inverse_sqrt"] = "cosine"
    """Learning rate after the warm-up."""
    warmup_steps: int = Field(default=50, ge=0)
    """Steps in which the learning rate rises from 0."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay of the dense matrices."""
    betas: Betas = (0.9, 0.98)
    clip_norm: float | None = Field(default=1.0, gt=0)
    """Largest norm of the dense gradient; null: no clipping."""
    non_finite: Literal["fail", "skip"] = "fail"
    """What a step does whose gradient holds NaN or infinity: end the job, or change nothing and be counted."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the dense part; bfloat16 is autocast and needs CUDA (on a cluster: device cuda)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the dense part runs; auto takes CUDA where there is one, and the CPU on a cluster."""
    compile: bool = False
    """Compile attention and feed-forward (torch.compile), on a GPU into CUDA graphs; needs a compiler: g++, on a GPU gcc."""
    silent_after: float = Field(default=120.0, ge=1, le=86_400)
    """Seconds without a sign of life, or of progress, after which a shard or a trainer is ended and started again."""
    evaluate_every: int = Field(default=200, ge=1)
    """Steps between two interim evaluations (validation perplexity and access metrics)."""
    evaluation_tokens: int = Field(default=65_536, ge=1)
    """Tokens of validation text that an interim evaluation reads."""
    cut_every: int = Field(default=200, ge=1)
    """Steps between two cuts (checkpoints); one more is made at the end."""
    keep_cuts: int = Field(default=2, ge=2)
    """Cuts kept; at least 2, so that a damaged one is never the only one."""
    trace_every: int = Field(default=0, ge=0)
    """Every how many steps one is traced through all processes (OpenTelemetry; needs pkm[traces]); 0: none."""

    @field_validator("device")
    @classmethod
    def _device_has_the_precision(cls, device: str, info: ValidationInfo) -> str:
        if device == "cpu" and info.data.get("precision") == "bfloat16":
            raise PydanticCustomError(
                "impossible", "precision bfloat16 needs CUDA; use device auto or cuda, or precision float32"
            )
        return device


class StoreSpec(Spec):
    """The shards that hold the value table, and how trainers reach them."""

    shards: int = Field(default=2, ge=1, le=BUCKETS)
    """Processes over which the rows are spread."""
    carrier: Literal["auto", "grpc", "in_process"] = "auto"
    """auto: shards are Ray actors; trainers on whose host all shards are read their rows in place, others use gRPC.

    grpc: Ray actors, reached by gRPC alone. in_process: all shards live inside the only trainer, without Ray; or, with
    memory.placement gpu, in the trainers.
    """
    lookup: Literal["auto", "fetch", "pool"] = "auto"
    """fetch: distinct rows travel; pool: shards return partial sums; auto: the cheaper one, call by call."""
    wire: Literal["float32", "bfloat16"] = "float32"
    """Type in which rows, sums of rows and their gradients travel. bfloat16: half the bytes, each element off by
    up to 2**-8 (0.4 %) of itself. Rows that are read in place don't travel and stay exact."""
    durability: Literal["snapshot", "log"] = "snapshot"
    """snapshot: after a crash of a shard the job goes on from its last cut. log: every shard also keeps a log of its steps;
    it recovers alone what it has acknowledged, and the trainers wait for it and go on."""
    shard_memory_gib: float = Field(default=4.0, gt=0)
    """Memory that each shard may take; a table that doesn't fit is refused before anything starts."""


class JobSpec(Spec):
    """One training job."""

    schema_version: Literal[1] = 1
    """Version of this schema."""
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=NAME_LENGTH_MAX)
    """Name of the job and of its run folder: a-z, 0-9, '-' and '_'."""
    seed: int = Field(default=0, ge=0, lt=1 << 31)
    """Decides the first weights, the first values and the order of the text."""
    data: DataSpec
    model: ModelSpec
    memory: MemorySpec | None = None
    train: TrainSpec
    store: StoreSpec = Field(default_factory=StoreSpec)

    # A check of one group against another runs as soon as both are sound by themselves, whatever else is not.

    @field_validator("memory")
    @classmethod
    def _memory_layers_exist(cls, memory: MemorySpec | None, info: ValidationInfo) -> MemorySpec | None:
        model = info.data.get("model")
        if memory and model and max(memory.layers) > model.layers:
            sentence = f"layer {max(memory.layers)} does not exist; model.layers allows 1 to {model.layers}"
            impossible("layers", memory.layers, sentence)
        if memory and model and memory.row_width(model.dim) > ROW_WIDTH_MAX:
            sentence = (
                f"experts of model.dim {model.dim} need rows twice as wide; {ROW_WIDTH_MAX} is the widest"
            )
            impossible("slots", memory.slots, sentence)
        return memory

    @field_validator("train")
    @classmethod
    def _batch_divides(cls, train: TrainSpec, info: ValidationInfo) -> TrainSpec:
        data = info.data.get("data")
        if data is None:
            return train
        unit = data.sequence_length * train.trainers * train.gradient_accumulation
        if train.batch_tokens % unit:
            below = train.batch_tokens // unit * unit
            nearest = " or ".join(str(tokens) for tokens in (below, below + unit) if tokens)
            sentence = (
                f"{train.batch_tokens} is no multiple of sequence_length * trainers * gradient_accumulation, "
                f"{data.sequence_length} * {train.trainers} * {train.gradient_accumulation} = {unit}; "
                f"use {nearest}"
            )
            impossible("batch_tokens", train.batch_tokens, sentence)
        return train

    @field_validator("train")
    @classmethod
    def _rows_are_chosen_of_a_whole_batch(cls, train: TrainSpec, info: ValidationInfo) -> TrainSpec:
        if train.only_rows is None:
            return train
        memory = info.data.get("memory")
        if memory is None:
            impossible("only_rows", train.only_rows, "a dense model has no rows to update; leave it out")
        if memory.placement != "host":
            sentence = (
                f"only rows in shards are updated alone; use memory.placement host, not {memory.placement}"
            )
            impossible("only_rows", train.only_rows, sentence)
        if train.trainers * train.gradient_accumulation > 1:
            sentence = (
                "the rows most specific to a batch are found by one trainer that has all of it; "
                "use trainers 1 and gradient_accumulation 1"
            )
            impossible("only_rows", train.only_rows, sentence)
        return train

    @field_validator("store")
    @classmethod
    def _one_trainer_in_process(cls, store: StoreSpec, info: ValidationInfo) -> StoreSpec:
        train, memory = info.data.get("train"), info.data.get("memory")
        on_devices = memory is not None and memory.placement == "gpu"
        if train and store.carrier == "in_process" and train.trainers > 1 and not on_devices:
            sentence = f"in_process serves one trainer, not {train.trainers}; use auto, or train.trainers 1"
            impossible("carrier", store.carrier, sentence)
        return store

    @field_validator("store")
    @classmethod
    def _table_on_device_is_in_process(cls, store: StoreSpec, info: ValidationInfo) -> StoreSpec:
        memory = info.data.get("memory")
        if memory and memory.placement == "gpu" and (store.carrier, store.shards) != ("in_process", 1):
            sentence = (
                f"memory.placement gpu keeps the table in the trainers, so carrier {store.carrier} with "
                f"{store.shards} shards can't serve it; use carrier in_process and shards 1, or placement cached"
            )
            impossible("carrier", store.carrier, sentence)
        return store

    @field_validator("store")
    @classmethod
    def _copies_are_of_rows(cls, store: StoreSpec, info: ValidationInfo) -> StoreSpec:
        memory = info.data.get("memory")
        if memory and memory.placement == "cached" and store.lookup == "pool":
            sentence = (
                "memory.placement cached fetches rows, and pool returns sums of them; use fetch or auto"
            )
            impossible("lookup", store.lookup, sentence)
        return store

    @field_validator("store")
    @classmethod
    def _log_needs_processes(cls, store: StoreSpec) -> StoreSpec:
        if store.durability == "log" and store.carrier == "in_process":
            sentence = (
                "shards inside the trainer die with it, so that a log would be of no use; use snapshot, "
                "or another carrier (which memory.placement gpu does not have)"
            )
            impossible("durability", store.durability, sentence)
        return store

    @field_validator("store")
    @classmethod
    def _table_fits_its_shards(cls, store: StoreSpec, info: ValidationInfo) -> StoreSpec:
        memory, model = info.data.get("memory"), info.data.get("model")
        if memory is None or model is None:
            return store
        train = info.data.get("train")
        parts = train.trainers if train and memory.placement == "gpu" else store.shards
        needed = sum(_shard_bytes(table, parts) for table in _tables(memory, model, seed=0))
        if needed > store.shard_memory_gib * GIB:
            part, more = ("trainer", "trainers") if memory.placement == "gpu" else ("shard", "shards")
            sentence = (
                f"a {part} needs {needed / GIB:.3g} GiB and may take {store.shard_memory_gib:.3g} GiB: "
                f"{memory.table_rows()} rows of {memory.row_width(model.dim)} {memory.values.dtype} values "
                f"with the state of {memory.values.optimizer}, over {parts} {more}; use more {more}, "
                "fewer sub_keys or an optimizer with less state, or allow more memory"
            )
            impossible("shard_memory_gib", store.shard_memory_gib, sentence)
        return store

    def tables(self) -> tuple[TableSpec, ...]:
        """The value tables of the job, in the order of their layers; none for a dense model."""
        return () if self.memory is None else _tables(self.memory, self.model, self.seed)

    def shard_processes(self) -> int:
        """How many processes there are for shards alone: none for a dense model, or where trainers hold the shards."""
        return self.store.shards if self.memory is not None and self.store.carrier != "in_process" else 0

    def in_one_process(self) -> bool:
        """Whether the driver is the only trainer, and has the shards too."""
        return self.store.carrier == "in_process" and self.train.trainers == 1

    def table_rows(self) -> int:
        """Rows of all value tables together: K = n*n when the table is shared, 0 for a dense model."""
        return sum(table.rows for table in self.tables())

    def table_bytes(self) -> int:
        """Bytes of all rows over all shards: values, optimizer state and access statistics."""
        return sum(table.rows * table.bytes_per_row for table in self.tables())

    def device_bytes(self) -> int:
        """Bytes of the tables, or of copies of their rows, on a trainer's device; see memory.placement."""
        if self.memory is None or self.memory.placement == "host":
            return 0
        if self.memory.placement == "gpu":
            return self.table_bytes() // self.train.trainers
        return sum(4 * table.dim * min(self.memory.cached_rows, table.rows) for table in self.tables())

    def twin(self, kind: Literal["dense", "deep"]) -> JobSpec:
        """The same job without memory, to compare with: equal layers ("dense") or twice as many ("deep")."""
        suffix = f"-{kind}"
        settings: dict[str, Any] = self.model_dump()
        settings["name"] = self.name[: NAME_LENGTH_MAX - len(suffix)] + suffix
        settings["memory"] = None
        if kind == "deep":
            settings["model"]["layers"] *= 2
        return JobSpec.model_validate(settings)


def _tables(memory: MemorySpec, model: ModelSpec, seed: int) -> tuple[TableSpec, ...]:
    values = memory.values
    names = dict.fromkeys(memory.table_name(layer) for layer in sorted(memory.layers))
    return tuple(
        TableSpec(
            name=name,
            rows=memory.table_rows(),
            dim=memory.row_width(model.dim),
            dtype=values.dtype,
            seed=seed + position,  # the tables of one job must not start equal
            optimizer=OptimizerSpec(kind=values.optimizer, betas=values.betas, eps=values.eps),
        )
        for position, name in enumerate(names)
    )


def _shard_bytes(table: TableSpec, shards: int) -> int:
    """Bytes of the fullest shard: it owns whole buckets, each as large as the largest."""
    return -(-BUCKETS // shards) * bucket_capacity(table.rows) * table.bytes_per_row
