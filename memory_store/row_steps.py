"""One step of one row: what each optimizer makes of its numbers and state (inside kernels only).

A step is a formula of `Numbers`; the gradient is `scale * gradients[which]`. The formulas, and what the rates are, are in
optimizers.py. bfloat16 rows are rounded as value_types.py says: of `key`, a number of 32 bits, and the column random bits
are made, of which a column of the row's first half takes the lower 16, its fellow in the second half the upper ones. Of an
odd number of columns the last of the first half has no fellow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types

from memory_store.row_code import Generation, Numbers, Row, check_contiguous, constant, generated, of_count

# Of the gradient, the value, its states and the scalars: the new value, and the new states.
Formula = Callable[
    [Numbers, Numbers, Sequence[Numbers], Sequence[Numbers]], tuple[Numbers, Sequence[Numbers]]
]

_HALF_WORD, _WORD = ir.IntType(16), ir.IntType(32)


def _descend(
    gradient: Numbers, value: Numbers, states: Sequence[Numbers], scalars: Sequence[Numbers]
) -> tuple[Numbers, Sequence[Numbers]]:
    (rate,) = scalars
    return value - rate * gradient, ()


def _adagrad(
    gradient: Numbers, value: Numbers, states: Sequence[Numbers], scalars: Sequence[Numbers]
) -> tuple[Numbers, Sequence[Numbers]]:
    (squares,), (rate, eps) = states, scalars
    squares = squares + gradient * gradient
    return value - rate * gradient / (squares.sqrt() + eps), (squares,)


def _adam(
    gradient: Numbers, value: Numbers, states: Sequence[Numbers], scalars: Sequence[Numbers]
) -> tuple[Numbers, Sequence[Numbers]]:
    (mean, square), (rate, eps, one_minus_beta1, one_minus_beta2) = states, scalars
    mean = mean + one_minus_beta1 * (gradient - mean)
    square = square + one_minus_beta2 * (gradient * gradient - square)
    return value - rate * mean / (square.sqrt() + eps), (mean, square)


def _momentum(
    gradient: Numbers, value: Numbers, states: Sequence[Numbers], scalars: Sequence[Numbers]
) -> tuple[Numbers, Sequence[Numbers]]:
    (mean,), (rate, one_minus_beta1) = states, scalars
    mean = mean + one_minus_beta1 * (gradient - mean)
    return value - rate * mean, (mean,)


def _step(formula: Formula, states: int) -> Any:
    """An intrinsic that applies a formula with as many states as wide as the row, the first ones of two."""

    @generated
    def step_row(
        typing_context: Any, values: Any, first_state: Any, second_state: Any, row: Any, later_row: Any,
        gradients: Any, which: Any, later: Any, scale: Any, scalars: Any, key: Any,
    ) -> tuple[Any, Callable[..., Any]]:  # fmt: skip
        """One step of values[row] and its states; the memory of `later_row` and gradient `later` is asked for meanwhile."""
        check_contiguous(values, gradients, *(first_state, second_state)[:states])

        def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
            code = Generation(context, builder, signature, arguments)
            moved, gradient = code.row(0, code.index(3)), code.row(5, code.index(6))
            states_of_row = [code.row(place, code.index(3)) for place in range(1, 1 + states)]
            following = [code.row(place, code.index(4)) for place in range(1 + states)]
            following.append(code.row(5, code.index(7)))
            factor, constants = code.single(8, gradients.dtype), code.members(9, gradients.dtype)

            def step(column: Any, count: int) -> Numbers:
                for other in following:
                    other.prefetch(column, count)
                value, after = formula(
                    code.repeated(factor, count) * gradient.load(column, count),
                    moved.load(column, count),
                    [state.load(column, count) for state in states_of_row],
                    [code.repeated(single, count) for single in constants],
                )
                for state, numbers in zip(states_of_row, after, strict=True):
                    state.store(column, count, numbers.value)
                return value

            if values.dtype == types.uint16:
                _round_row(code, moved, step, code.columns(0), code.argument(10))
            else:
                code.over_columns(
                    code.columns(0),
                    lambda column, count: moved.store(column, count, step(column, count).value),
                )
            return context.get_dummy_value()

        given = (
            values,
            first_state,
            second_state,
            row,
            later_row,
            gradients,
            which,
            later,
            scale,
            scalars,
            key,
        )
        return types.void(*given), generate

    return step_row


descend_row = _step(_descend, states=0)
adagrad_row = _step(_adagrad, states=1)
adam_row = _step(_adam, states=2)
momentum_row = _step(_momentum, states=1)


def _round_row(
    code: Generation, row: Row, step: Callable[[Any, int], Numbers], columns: Any, key: Any
) -> None:
    """Write bfloat16 of what `step` makes of all columns of a row."""
    builder = code.builder
    one = ir.Constant(columns.type, 1)
    pairs, half = builder.lshr(columns, one), builder.lshr(builder.add(columns, one), one)

    def random_words(column: Any, count: int) -> Any:
        first = builder.add(key, builder.trunc(column, _WORD))
        places = ir.Constant(ir.VectorType(_WORD, count), list(range(count))) if count > 1 else _WORD(0)
        return _mixed(builder, builder.add(code.repeated(first, count).value, places))

    def write(column: Any, count: int, numbers: Numbers, noise: Any) -> None:
        whole = of_count(_WORD, count)
        bits = builder.add(builder.bitcast(numbers.value, whole), noise)
        upper = builder.lshr(bits, constant(whole, 16))
        row.store(column, count, builder.trunc(upper, of_count(_HALF_WORD, count)))

    def write_pairs(column: Any, count: int) -> None:
        words, fellow = random_words(column, count), builder.add(half, column)
        lower = builder.and_(words, constant(words.type, 0xFFFF))
        upper = builder.lshr(words, constant(words.type, 16))
        for place, noise in ((column, lower), (fellow, upper)):
            write(place, count, step(place, count), noise)

    code.over_columns(pairs, write_pairs)
    with builder.if_then(builder.icmp_unsigned("<", pairs, half)):
        write(pairs, 1, step(pairs, 1), builder.and_(random_words(pairs, 1), _WORD(0xFFFF)))


def _mixed(builder: Any, value: Any) -> Any:
    """`value_types.mix` of each number."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        value = builder.xor(value, builder.lshr(value, constant(value.type, shift)))
        value = builder.mul(value, constant(value.type, factor))
    return builder.xor(value, builder.lshr(value, constant(value.type, 16)))
