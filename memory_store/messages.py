"""Everything a client and a shard say to each other, as typed values.

The same values pass through every carrier; protos/store.proto has one message for each, with the same field
names, and wire.py turns one into the other. Array fields are NumPy arrays, annotated with their shape; `Any`
stands for the table's compute type, float32 or float64.

`step` of an update is the version it was computed at: step t moves the table from version t to t + 1.
`sender` names the writer. `seq` counts a writer's updates at one shard; a repeated `seq` is answered, not
applied.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Sender:
    """One writer of an admitted group: the group's session and epoch, and the writer's number in it."""

    session: str
    epoch: int
    writer: int


# ---- requests ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Describe:
    """What are you? Answered with ShardInfo."""


@dataclass(frozen=True)
class OpenGroup:
    """A group of `writers` trainers takes over under a new, higher epoch.

    Older groups change nothing from now on.
    """

    session: str
    epoch: int
    writers: int


@dataclass(frozen=True)
class Initialise:
    """Put every table to its first values, at version 0."""

    sender: Sender
    seq: int


@dataclass(frozen=True)
class Fetch:
    """Send the values of distinct rows.

    With `track`, count the accesses and weight sums given beside them.
    """

    table: str
    version: int
    track: bool
    addresses: Annotated[NDArray[np.uint32], "U"]
    accesses: Annotated[NDArray[np.uint32], "U"]  # empty without track
    weight_sums: Annotated[NDArray[Any], "U"]  # empty without track


@dataclass(frozen=True)
class Pool:
    """Send the weighted sum of rows of every token. With `keep`, remember the entries for PoolGradient."""

    sender: Sender
    table: str
    version: int
    lookup: int
    keep: bool
    track: bool
    offsets: Annotated[NDArray[np.int32], "T + 1"]
    addresses: Annotated[NDArray[np.uint32], "N"]
    weights: Annotated[NDArray[Any], "N"]


@dataclass(frozen=True)
class PoolGradient:
    """The gradient of a kept Pool's output: contribute to its rows, send back the gradient of its weights."""

    sender: Sender
    seq: int
    step: int
    lookup: int
    output_gradient: Annotated[NDArray[Any], "T, D"]


@dataclass(frozen=True)
class RowGradient:
    """Contribute gradients to distinct rows."""

    sender: Sender
    seq: int
    step: int
    table: str
    addresses: Annotated[NDArray[np.uint32], "U"]
    gradients: Annotated[NDArray[Any], "U, D"]


@dataclass(frozen=True)
class EntryGradient:
    """Contribute the gradient of a lookup whose rows the writer has read in place: entry e of token t adds
    weights[e] * output_gradient[t] to row addresses[e]."""

    sender: Sender
    seq: int
    step: int
    table: str
    offsets: Annotated[NDArray[np.int32], "T + 1"]
    addresses: Annotated[NDArray[np.uint32], "N"]
    weights: Annotated[NDArray[Any], "N"]
    output_gradient: Annotated[NDArray[Any], "T, D"]


@dataclass(frozen=True)
class ReplaceRows:
    """Put `values` in the place of distinct rows, once the step is applied to all; their optimizer state starts anew."""

    sender: Sender
    seq: int
    step: int
    table: str
    addresses: Annotated[NDArray[np.uint32], "U"]
    values: Annotated[NDArray[Any], "U, D"]


@dataclass(frozen=True)
class Commit:
    """This writer has sent its `contributions` to `step`; once all writers have, the step is applied once.

    With `hold`, the shard answers with the squared gradient norms and waits for Apply (gradient clipping
    needs the norm over all shards first). With `discard`, what came for the step is dropped: the tables move to the
    next version as they are. Arrays follow the order of the shard's tables.
    """

    sender: Sender
    seq: int
    step: int
    contributions: int
    hold: bool
    scale: float
    learning_rates: Annotated[NDArray[np.float64], "tables"]
    discard: bool = False


@dataclass(frozen=True)
class Apply:
    """Apply the held step, gradients of table i multiplied by `scales[i]` (besides the scale of Commit)."""

    sender: Sender
    step: int
    scales: Annotated[NDArray[np.float64], "tables"]


@dataclass(frozen=True)
class CountAccesses:
    """Send the access sums of a table (see access.py for `histogram_prefix`)."""

    table: str
    histogram_prefix: int


@dataclass(frozen=True)
class DrawAccesses:
    """Send this shard's part of the access map, `side x side`, of a table with `sub_keys` squared rows."""

    table: str
    sub_keys: int
    side: int


@dataclass(frozen=True)
class ClearAccesses:
    """Forget all counted accesses of a table."""

    table: str


@dataclass(frozen=True)
class CountTouched:
    """How many rows has an update touched after version `since`?"""

    table: str
    since: int


@dataclass(frozen=True)
class BeginCut:
    """Begin to write the tables as they are, at version `step`, into `folder`, which this shard's host can reach.

    Steps may go on once this is answered. `number` counts the cuts of a group.
    """

    sender: Sender
    folder: str
    step: int
    number: int


@dataclass(frozen=True)
class WriteCut:
    """Answered when cut `number` is written; it begins now unless BeginCut came before."""

    sender: Sender
    folder: str
    step: int
    number: int


@dataclass(frozen=True)
class LoadCut:
    """Replace all tables by those of the cut in `folder`."""

    sender: Sender
    seq: int
    folder: str


# ---- replies -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Done:
    """It is done; `duplicate` if it had been done before."""

    duplicate: bool


@dataclass(frozen=True)
class ShardInfo:
    """A shard's place and state.

    `tables` is the list of its TableSpecs as JSON, `incarnation` its own life's number. `arena` says, as JSON,
    where processes on the same host can open its block, and where in it the values of each table begin. `logged`: what
    it acknowledges outlives a crash of the shard.
    """

    shard: int
    shards: int
    placement: str
    incarnation: str
    version: int
    epoch: int
    writers: int
    tables: str
    arena: str
    logged: bool


@dataclass(frozen=True)
class Rows:
    """The values of U distinct rows, or the weighted sums of T tokens."""

    values: Annotated[NDArray[Any], "U or T, D"]


@dataclass(frozen=True)
class WeightGradient:
    gradient: Annotated[NDArray[Any], "N"]


@dataclass(frozen=True)
class Committed:
    """The step is complete at this shard.

    `applied`: the table is at `version`; otherwise it holds, and waits for Apply.
    """

    version: int
    applied: bool
    squared_norms: Annotated[NDArray[np.float64], "tables, 1024"]  # by bucket; empty unless held


@dataclass(frozen=True)
class AccessCounted:
    rows_used: int
    accesses: int
    weight: float
    weight_log_weight: float
    histogram_counts: Annotated[NDArray[np.int64], "65536"]
    histogram_weights: Annotated[NDArray[np.float64], "65536"]


@dataclass(frozen=True)
class AccessDrawn:
    pixels: Annotated[NDArray[np.float64], "side, side"]


@dataclass(frozen=True)
class Touched:
    rows: int


@dataclass(frozen=True)
class CutWritten:
    """The files a shard wrote, as the JSON list of CutFile (cuts.py) that goes into the manifest."""

    files: str


@dataclass(frozen=True)
class Failure:
    """The request was refused; `kind` is the name of the error class in errors.py."""

    kind: str
    message: str


Contributing = PoolGradient | RowGradient | EntryGradient | ReplaceRows
Request = (
    Describe
    | OpenGroup
    | Initialise
    | Fetch
    | Pool
    | PoolGradient
    | RowGradient
    | EntryGradient
    | ReplaceRows
    | Commit
    | Apply
    | CountAccesses
    | DrawAccesses
    | ClearAccesses
    | CountTouched
    | BeginCut
    | WriteCut
    | LoadCut
)
Reply = (
    Done
    | ShardInfo
    | Rows
    | WeightGradient
    | Committed
    | AccessCounted
    | AccessDrawn
    | Touched
    | CutWritten
    | Failure
)
