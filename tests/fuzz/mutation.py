"""Inputs near valid ones: a few bytes changed, numbers at the edges, pieces left out, doubled, or taken from another."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from random import Random

_EDGES = [
    0,
    1,
    2,
    127,
    128,
    255,
    256,
    2**15,
    2**16 - 1,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63 - 1,
    2**63,
    2**64 - 1,
]
_WORDS = [
    b"null",
    b"true",
    b"-1",
    b"1e999",
    b"NaN",
    b"[]",
    b"{}",
    b'""',
    b"\xff\xfe",
    b"\0" * 16,
    b"../../x",
    b"&a [*a]",
]


def mutated(random: Random, corpus: Sequence[bytes]) -> bytes:
    """An input made of one of `corpus`, or (seldom) of nothing but chance."""
    if random.random() < 0.02:
        return random.randbytes(random.choice([0, 1, 7, 64, 500, 5000]))
    data = bytearray(random.choice(corpus))
    for _ in range(random.choice([1, 1, 1, 2, 3, 8])):
        _mutate(random, data, corpus)
    return bytes(data)


def _mutate(random: Random, data: bytearray, corpus: Sequence[bytes]) -> None:
    place = random.randrange(len(data) + 1)
    length = min(random.choice([1, 2, 4, 8, 16, 64, 1000]), len(data) - place)
    match random.randrange(9):
        case 0 if place < len(data):
            data[place] ^= 1 << random.randrange(8)
        case 1 if place < len(data):
            data[place] = random.choice([0, 255, 0x7F, 0x80, random.randrange(256)])
        case 2:
            del data[place:]
        case 3:
            del data[place : place + length]
        case 4:
            data[place:place] = data[place : place + length]
        case 5:
            other = random.choice(corpus)
            begin = random.randrange(len(other) + 1)
            data[place : place + length] = other[begin : begin + length]
        case 6:
            number = struct.pack("<Q", (random.choice(_EDGES) + random.choice([-1, 0, 0, 1])) % 2**64)
            size = random.choice([1, 2, 4, 8])
            data[place : place + size] = number[:size]
        case 7:
            data[place : place + random.choice([0, length])] = random.choice(_WORDS)
        case _:
            data[place:place] = random.randbytes(length)
