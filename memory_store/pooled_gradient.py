"""The backward pass of a pooled lookup at its shard: the gradient of the weights, and what it contributes to the rows."""

from __future__ import annotations

from memory_store.grouping import group_by_address
from memory_store.kernels import FloatArray, weight_gradients, weight_gradients_by_row
from memory_store.messages import Pool
from memory_store.optimizers import Contributions
from memory_store.reused_memory import empty
from memory_store.steps import Contribution, token_of_entry
from memory_store.table import TablePart

# Entries for each row of the part. With so many, rows are sure to be read several times: in the order of rows each comes
# from memory once, and the tokens' gradients, which are fewer, from the caches. With one for each that takes longer.
_ENTRIES_PER_ROW = 2


def differentiate(
    part: TablePart, kept: Pool, output_gradient: FloatArray
) -> tuple[FloatArray, Contribution]:
    """Of the gradient `[T, D]` of a lookup's sums: that of its weights `[N]`, and its contribution to the step."""
    weight_gradient = empty((kept.addresses.size,), output_gradient.dtype)
    tokens = token_of_entry(kept.offsets)
    grouped = None
    if kept.addresses.size >= _ENTRIES_PER_ROW * part.address_count:
        # The step needs them grouped as well: nothing is done twice.
        groups = group_by_address(kept.addresses)
        grouped = Contributions.grouped(groups, tokens, kept.weights, output_gradient)
        weight_gradients_by_row(
            part.values,
            part.first_address,
            groups.addresses,
            groups.starts,
            groups.order,
            grouped.vector_numbers,
            output_gradient,
            weight_gradient,
        )
    else:
        weight_gradients(
            part.values, part.first_address, kept.offsets, kept.addresses, output_gradient, weight_gradient
        )
    contribution = Contribution(
        kept.table, kept.addresses, tokens, kept.weights, output_gradient, grouped=grouped
    )
    return weight_gradient, contribution
