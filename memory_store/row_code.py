"""How kernels work on a whole row at once: code that is generated as vector instructions, row pointers in hand.

Compiled from loops over columns, a kernel would spend more instructions on asking whether arrays overlap, whether an index
is negative and how many steps a short loop has than on the numbers of a row; and while it does, no further row is on its
way from memory. Here the arrays are known not to overlap, rows to be contiguous and rows to exist, and a row some places
ahead is prefetched line by line while the present one is worked on: spread like that, more lines are on their way at once.

`Numbers` are numbers side by side, `Row` is where they come from; both exist while code is generated only. Numbers are
computed in the order in which they are written here, without fusing: the same bits on every processor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic

LINE_BYTES = 64
LANES = 16  # numbers side by side: a cache line of float32
COUNTS = (LANES, 1)  # how many numbers a turn of a loop over columns has, and of the loop over those left
# Rows. Measured for rows of 64 to 1024 numbers: fewer than eight come too late for short rows, and more gain nothing.
AHEAD = 16

_BYTE, _WORD = ir.IntType(8), ir.IntType(32)


def generated(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that kernels call, whose code is generated: Numba's `intrinsic`, which passes the first argument itself."""
    return cast(Callable[..., Any], intrinsic(function))


@dataclass(frozen=True)
class Numbers:
    """Numbers side by side, or a single one; operators work on each."""

    builder: Any
    value: Any

    def __add__(self, other: Numbers) -> Numbers:
        return Numbers(self.builder, self.builder.fadd(self.value, other.value))

    def __sub__(self, other: Numbers) -> Numbers:
        return Numbers(self.builder, self.builder.fsub(self.value, other.value))

    def __mul__(self, other: Numbers) -> Numbers:
        return Numbers(self.builder, self.builder.fmul(self.value, other.value))

    def __truediv__(self, other: Numbers) -> Numbers:
        return Numbers(self.builder, self.builder.fdiv(self.value, other.value))

    def sqrt(self) -> Numbers:
        kind = self.value.type
        single = kind.element if isinstance(kind, ir.VectorType) else kind
        name = (
            f"llvm.sqrt.{f'v{kind.count}' if isinstance(kind, ir.VectorType) else ''}{single.intrinsic_name}"
        )
        function_type = ir.FunctionType(kind, [kind])
        function = cgutils.get_or_insert_function(self.builder.module, function_type, name)  # type: ignore[no-untyped-call]
        return Numbers(self.builder, self.builder.call(function, [self.value]))

    def sum(self) -> Numbers:
        """All of them, added up pair by pair."""
        return self.folded(Numbers.__add__)

    def folded(self, operation: Callable[[Numbers, Numbers], Numbers]) -> Numbers:
        """A single number: what an operation makes of the first half and the second half, until one is left."""
        whole, builder = self, self.builder
        while isinstance(whole.value.type, ir.VectorType) and whole.value.type.count > 1:
            half = whole.value.type.count // 2
            low, high = (
                builder.shuffle_vector(
                    whole.value, whole.value, ir.Constant(ir.VectorType(_WORD, half), places)
                )
                for places in (list(range(half)), list(range(half, 2 * half)))
            )
            whole = operation(Numbers(builder, low), Numbers(builder, high))
        if isinstance(whole.value.type, ir.VectorType):
            whole = Numbers(builder, builder.extract_element(whole.value, _WORD(0)))
        return whole


class Generation:
    """The code of one call of an intrinsic: what its arguments are, and loops over columns."""

    def __init__(self, context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> None:
        self.context, self.builder = context, builder
        self._kinds, self._arguments = signature.args, arguments

    def begin(self, array: int, number: Any) -> Any:
        """Where array[number] begins, as a pointer to a byte; `array` is the place of an argument."""
        stride, *_ = self._sizes(array, "strides")
        return self.builder.gep(
            self.builder.bitcast(self._pieces(array).data, _BYTE.as_pointer()),
            [self.builder.mul(number, stride)],
        )

    def row(self, array: int, number: Any) -> Row:
        """Row `number` of an argument `[R, D]`."""
        kind = self._kinds[array].dtype
        return Row(self.builder, self.begin(array, number), kind, self.context.get_value_type(kind))

    def columns(self, array: int) -> Any:
        """How many numbers a row of an argument `[R, D]` has."""
        return self._sizes(array, "shape")[1]

    def _pieces(self, array: int) -> Any:
        return self.context.make_array(self._kinds[array])(self.context, self.builder, self._arguments[array])

    def _sizes(self, array: int, of: str) -> list[Any]:
        pieces, dimensions = self._pieces(array), self._kinds[array].ndim
        return list(cgutils.unpack_tuple(self.builder, getattr(pieces, of), dimensions))  # type: ignore[no-untyped-call]

    def index(self, place: int) -> Any:
        """An integer argument."""
        return self.single(place, types.intp)

    def members(self, place: int, kind: Any = types.intp) -> list[Any]:
        """The numbers of an argument that is a tuple, as of type `kind`."""
        of_tuple = self._kinds[place]
        values = cgutils.unpack_tuple(self.builder, self._arguments[place], of_tuple.count)  # type: ignore[no-untyped-call]
        return [
            self.context.cast(self.builder, value, of, kind)
            for value, of in zip(values, of_tuple, strict=True)
        ]

    def single(self, place: int, kind: Any) -> Any:
        """A number, as of type `kind`."""
        return self.context.cast(self.builder, self._arguments[place], self._kinds[place], kind)

    def element(self, array: int, place: Any) -> Any:
        """Element `place`, which exists, of an argument `[N]`."""
        return self.builder.load(self.builder.gep(self._pieces(array).data, [place]))

    def named_rows(self, values: int, first: int, addresses: int, entries: Sequence[Any]) -> list[Row]:
        """The rows of argument `values` whose addresses are addresses[e], where row 0 has the address `first`."""
        found = []
        for entry in entries:
            address = self.element(addresses, entry)
            wide = self.context.cast(self.builder, address, self._kinds[addresses].dtype, types.intp)
            found.append(self.row(values, self.builder.sub(wide, self.index(first))))
        return found

    def later(self, addresses: int, entries: Sequence[Any]) -> list[Any]:
        """The entries AHEAD of these; the last one where there are no more."""
        (size,) = self._sizes(addresses, "shape")
        number = self.context.get_value_type(types.intp)
        last = self.builder.sub(size, number(1))
        ahead = [self.builder.add(entry, number(AHEAD)) for entry in entries]
        return [
            self.builder.select(self.builder.icmp_signed("<", entry, last), entry, last) for entry in ahead
        ]

    def argument(self, place: int) -> Any:
        return self._arguments[place]

    def repeated(self, single: Any, count: int) -> Numbers:
        """A number, `count` times side by side."""
        if count == 1:
            return Numbers(self.builder, single)
        kind = ir.VectorType(single.type, count)
        first = self.builder.insert_element(ir.Constant(kind, ir.Undefined), single, _WORD(0))
        places = ir.Constant(ir.VectorType(_WORD, count), [0] * count)
        return Numbers(self.builder, self.builder.shuffle_vector(first, first, places))

    def over_columns(
        self, columns: Any, body: Callable[[Any, int], None], counts: Sequence[int] = COUNTS
    ) -> None:
        """Call `body(column, count)` for `count` columns from `column` on: the first of `counts` as often as it fits, then
        the next, each of which divides the one before it; the last is 1.
        """
        builder, intp = self.builder, self.context.get_value_type(types.intp)
        begin = intp(0)
        for count in counts:
            end = builder.and_(columns, intp(-count))
            with cgutils.for_range_slice(builder, begin, end, intp(count), intp) as (column, _):
                body(column, count)
            begin = end


@dataclass(frozen=True)
class Row:
    """A row in memory: where it begins, and its numbers' type, of Numba and of LLVM. uint16 holds bfloat16."""

    builder: Any
    begin: Any
    kind: Any
    stored: Any

    def load(self, column: Any, count: int) -> Numbers:
        """The numbers from `column` on; bfloat16 as float32."""
        builder = self.builder
        found = builder.load(self._place(column, count), align=self.kind.bitwidth // 8)
        if self.kind == types.uint16:
            whole = of_count(_WORD, count)
            upper = builder.shl(builder.zext(found, whole), constant(whole, 16))
            found = builder.bitcast(upper, of_count(ir.FloatType(), count))
        return Numbers(builder, found)

    def store(self, column: Any, count: int, numbers: Any, *, past_caches: bool = False) -> None:
        """Write what is stored of numbers from `column` on."""
        align = LINE_BYTES if past_caches else self.kind.bitwidth // 8
        store = self.builder.store(numbers, self._place(column, count), align=align)
        if past_caches:
            store.set_metadata("nontemporal", self.builder.module.add_metadata([ir.Constant(_WORD, 1)]))

    def prefetch(self, column: Any, count: int) -> None:
        """Ask for the lines of `count` numbers from `column` on, to read them; nothing for a single number."""
        if count == 1:
            return
        place = self.builder.bitcast(self._place(column, count), _BYTE.as_pointer())
        for offset in range(0, count * self.kind.bitwidth // 8, LINE_BYTES):
            _prefetch_line(self.builder, self.builder.gep(place, [ir.IntType(64)(offset)]))

    def _place(self, column: Any, count: int) -> Any:
        of_number = self.builder.bitcast(self.begin, self.stored.as_pointer())
        place = self.builder.gep(of_number, [column])
        return self.builder.bitcast(place, of_count(self.stored, count).as_pointer())


def _prefetch_line(builder: Any, place: Any) -> None:
    function = builder.module.declare_intrinsic(
        "llvm.prefetch", [place.type], ir.FunctionType(ir.VoidType(), [place.type, _WORD, _WORD, _WORD])
    )
    to_read, nearest, data = _WORD(0), _WORD(3), _WORD(1)
    builder.call(function, [place, to_read, nearest, data])


@generated
def prefetch(typing_context: Any, array: Any, row: Any) -> tuple[Any, Callable[..., Any]]:
    """Ask for the line in which array[row] begins (inside kernels only). A hint: no result changes."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        code = Generation(context, builder, signature, arguments)
        _prefetch_line(builder, code.begin(0, code.index(1)))
        return context.get_dummy_value()

    return types.void(array, row), generate


def constant(kind: Any, number: int) -> Any:
    """An integer in every place of `kind`, a vector or a single."""
    return ir.Constant(kind, [number] * kind.count if isinstance(kind, ir.VectorType) else number)


def of_count(single: Any, count: int) -> Any:
    """The type of `count` of a type side by side."""
    return single if count == 1 else ir.VectorType(single, count)


def check_contiguous(*arrays: Any) -> None:
    """Raises TypingError, when a kernel is compiled, for an array that does not lie in one piece."""
    for array in arrays:
        if not isinstance(array, types.Array) or array.layout != "C":
            raise TypingError(f"Rows of {array} can't be worked on; it must be a C-contiguous array.")
