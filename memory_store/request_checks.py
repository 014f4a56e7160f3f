"""What a request must satisfy before a shard acts on it.

Every check comes before the first change, so a refused request (StoreError) has changed nothing. The kernels
trust their arguments: an address or an offset that got past these checks would read foreign memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memory_store.errors import LogError, NonFiniteGradientError, StoreError
from memory_store.kernels import all_finite
from memory_store.log_records import LoggedStep, Replacement
from memory_store.messages import Commit, EntryGradient, Fetch, ReplaceRows, RowGradient
from memory_store.steps import Contribution, token_of_entry
from memory_store.table import TablePart

MAP_SIDE_MAX = 1024


def check_owned(part: TablePart, addresses: NDArray[np.uint32]) -> None:
    """All addresses are of rows that exist, in this part."""
    if not part.owns(addresses):
        raise StoreError(
            f"This shard owns buckets {part.buckets.start} to {part.buckets.stop - 1} of table "
            f"{part.spec.name!r}, not all of the rows that were asked for; "
            "the client's placement is not this shard's."
        )


def check_fetch(part: TablePart, request: Fetch) -> None:
    """The rows are owned; counts, where there are any, come one for each row."""
    check_owned(part, request.addresses)
    if request.track:
        _check_one_each("access counts", request.accesses, request.addresses)
        _check_one_each("weight sums", request.weight_sums, request.addresses)


def check_entries(
    part: TablePart, offsets: NDArray[np.int32], addresses: NDArray[np.uint32], weights: NDArray[Any]
) -> None:
    """The rows are owned, with one weight each, and the offsets cut them into tokens."""
    check_owned(part, addresses)
    _check_one_each("weights", weights, addresses)
    if weights.dtype != part.spec.compute_dtype:
        raise StoreError(
            f"Weights of type {weights.dtype} came for table {part.spec.name!r}; "
            f"{part.spec.compute_dtype} is expected."
        )
    entries = addresses.size
    if offsets.size == 0 or offsets[0] != 0 or offsets[-1] != entries or (np.diff(offsets) < 0).any():
        raise StoreError(f"The offsets of the tokens must rise from 0 to its {entries} entries.")


def check_gradient(part: TablePart, vectors: NDArray[Any], count: int) -> None:
    """The gradient is `[count, D]`, of the compute type, and finite (else NonFiniteGradientError)."""
    if vectors.shape != (count, part.spec.dim) or vectors.dtype != part.spec.compute_dtype:
        raise StoreError(
            f"A gradient of shape {vectors.shape} and type {vectors.dtype} came for table "
            f"{part.spec.name!r}; ({count}, {part.spec.dim}) and {part.spec.compute_dtype} are expected."
        )
    check_finite(part, vectors)


def check_finite(part: TablePart, numbers: NDArray[Any]) -> None:
    if not all_finite(numbers.reshape(-1)):
        raise NonFiniteGradientError(
            f"A gradient for table {part.spec.name!r} holds NaN or infinity; no row was touched. "
            "Lower the learning rate, or look for the layer that overflows."
        )


def checked_contribution(
    part: TablePart, request: RowGradient | EntryGradient | ReplaceRows
) -> Contribution | Replacement:
    """What a request contributes to the rows of `part`, after it was found right."""
    addresses = request.addresses
    if isinstance(request, ReplaceRows):
        check_owned(part, addresses)
        check_gradient(part, request.values, addresses.size)
        if np.unique(addresses).size < addresses.size:
            raise StoreError(f"A row of table {part.spec.name!r} is replaced twice; name each row once.")
        return Replacement(request.table, addresses, request.values)
    if isinstance(request, RowGradient):
        check_owned(part, addresses)
        check_gradient(part, request.gradients, addresses.size)
        ones = np.ones(addresses.size, request.gradients.dtype)
        vector_of_entry = np.arange(addresses.size, dtype=np.int32)
        return Contribution(request.table, addresses, vector_of_entry, ones, request.gradients)
    check_entries(part, request.offsets, addresses, request.weights)
    check_gradient(part, request.output_gradient, request.offsets.size - 1)
    check_finite(part, request.weights)
    tokens = token_of_entry(request.offsets)
    return Contribution(request.table, addresses, tokens, request.weights, request.output_gradient)


def check_replayed(tables: Mapping[str, TablePart], step: LoggedStep) -> None:
    """A step out of the log is one of rows that these tables have. Raises LogError."""
    for update in step.updates:
        _check_owned_vectors(
            tables, step, update.table, update.contributions.addresses, update.contributions.vectors
        )
    for replaced in step.replacements:
        _check_owned_vectors(tables, step, replaced.table, replaced.addresses, replaced.values)


def _check_owned_vectors(
    tables: Mapping[str, TablePart],
    step: LoggedStep,
    table: str,
    addresses: NDArray[np.uint32],
    vectors: NDArray[Any],
) -> None:
    part = tables.get(table)
    if (
        part is None
        or vectors.shape[1] != part.spec.dim
        or vectors.dtype != part.spec.compute_dtype
        or not part.owns(addresses)
    ):
        raise LogError(
            f"Step {step.step} of the log updates rows of table {table!r} that this shard doesn't have."
        )


def check_commit(commit: Commit, tables: int) -> None:
    """There is one finite learning rate per table, the scale is finite, and what is dropped is not held."""
    check_factors("learning rates", commit.learning_rates, tables)
    if not np.isfinite(commit.scale):
        raise StoreError(f"A step can't be scaled by {commit.scale}.")
    if commit.discard and commit.hold:
        raise StoreError("A step can't be held and discarded; a discarded one needs no clipping.")


def check_factors(what: str, factors: NDArray[np.float64], tables: int) -> None:
    """There is one finite factor per table."""
    if factors.shape != (tables,) or not np.isfinite(factors).all():
        raise StoreError(
            f"The {what} {factors.tolist()} are not {tables} finite numbers, one for each table."
        )


def check_map(part: TablePart, sub_keys: int, side: int) -> None:
    """The pairs of sub-keys share the rows evenly, and the picture is bounded."""
    if sub_keys**2 % part.spec.rows or not 0 < side <= MAP_SIDE_MAX:
        raise StoreError(
            f"No map of {sub_keys} sub-keys and side {side} can be drawn of {part.spec.rows} rows; "
            f"sub-keys squared must be a multiple of the rows, and the side may be 1 to {MAP_SIDE_MAX}."
        )


def _check_one_each(what: str, array: NDArray[Any], addresses: NDArray[np.uint32]) -> None:
    if array.shape != addresses.shape:
        raise StoreError(f"{addresses.size} rows came with {array.size} {what}; there must be one for each.")
