"""What all metrics of a process have in common: their registry, the sizes of their histograms, and their bounds.

Every process has one registry, never the global one of prometheus_client: several jobs may run in a process, one after the
other. Names begin with `pkm_` and end with their base unit. Labels take few values, so that a shard has at most
`SERIES_MAX` series however many tables a job has.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, ProcessCollector, disable_created_metrics

SERIES_MAX = 500
TABLES_NAMED_MAX = 12
OTHER_TABLES = "other"

# Of requests, whose time is from tens of microseconds (shared memory) to the deadline of a lookup that waits.
REQUEST_SECONDS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 60)
# Of writes to a disk.
DISK_SECONDS = (0.0003, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)
# Of what is done once in many steps.
LONG_SECONDS = (0.1, 0.3, 1, 3, 10, 30, 60, 180, 600, 1800, 3600)


def new_registry() -> CollectorRegistry:
    """A registry that knows what the process itself uses: processor time, memory, open files, when it was started."""
    disable_created_metrics()  # type: ignore[no-untyped-call]  # a series more for each counter, which nobody asks for
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    return registry


class TableLabels:
    """Values of the label `table`: the names of the first tables that come; further ones share `OTHER_TABLES`."""

    def __init__(self) -> None:
        self._named: set[str] = set()

    def of(self, table: str) -> str:
        if table not in self._named and len(self._named) < TABLES_NAMED_MAX:
            self._named.add(table)
        return table if table in self._named else OTHER_TABLES


@contextmanager
def added_to(seconds: Counter) -> Iterator[None]:
    """Add the time that the block takes."""
    begun = time.perf_counter()
    try:
        yield
    finally:
        seconds.inc(time.perf_counter() - begun)
