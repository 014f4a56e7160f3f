"""The rate of a network link as people write it, in bytes per second."""

from __future__ import annotations

import re

from memory_store.errors import UsageError

_BYTES_PER_S = {
    "kbit": 125.0,
    "mbit": 125e3,
    "gbit": 125e6,
    "tbit": 125e9,
    "kb/s": 1e3,
    "mb/s": 1e6,
    "gb/s": 1e9,
}
_RATE = re.compile(r"(?P<number>\d+(\.\d+)?)\s*(?P<unit>[kmgt]bit(?=(/s)?$)|[kmg]b/s)(/s)?", re.IGNORECASE)
_SLOWEST, _FASTEST = 1e3, 1e13


def parse_rate(text: str) -> float:
    """Bytes per second of a rate such as 25Gbit, 100Mbit or 300MB/s (powers of ten).

    Raises UsageError for anything else.
    """
    found = _RATE.fullmatch(text.strip())
    rate = float(found["number"]) * _BYTES_PER_S[found["unit"].lower()] if found else 0.0
    if not _SLOWEST <= rate <= _FASTEST:
        raise UsageError(
            f"{text!r} is no rate of a network link; give a number and a unit, such as 25Gbit, 100Mbit or 300MB/s."
        )
    return rate


def rate_text(bytes_per_second: float) -> str:
    """A rate for people: 3125000000.0 as 25 Gbit."""
    bits = 8 * bytes_per_second
    unit, size = next(
        (unit, size) for unit, size in (("Gbit", 1e9), ("Mbit", 1e6), ("kbit", 1e3)) if bits >= size
    )
    return f"{bits / size:g} {unit}"
