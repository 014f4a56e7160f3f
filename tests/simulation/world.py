"""Virtual time, chance, and the faults: everything that happens in a run follows from its seed."""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Callable
from itertools import count
from random import Random

FAULTS = (
    "killed shard",
    "power loss",
    "torn write",
    "full disk",
    "failed sync",
    "paused shard",
    "woken shard",
    "killed writers",
    "lost message",
    "doubled message",
    "late message",
    "broken connection",
    "partition",
    "clock jump",
    "stale writer",
)
# What the faults must have led to, that they prove something.
CONSEQUENCES = ("buckets written beside steps", "failed cut")


class World:
    """The clock, the queue of what is to happen, and the chance of every fault, drawn anew for every seed."""

    def __init__(self, seed: int, faults_until: float) -> None:
        self.random = Random(seed)
        self.now = 0.0
        self.faults_until = faults_until
        self.fired: Counter[str] = Counter()
        self.chances = {
            fault: 0.0 if self.random.random() < 0.2 else 0.4 * self.random.random() ** 2 for fault in FAULTS
        }
        self.events = 0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._trace = hashlib.sha256()
        self.print_trace = False

    def after(self, delay: float, action: Callable[[], None]) -> None:
        """Let `action` happen `delay` seconds from now."""
        heapq.heappush(self._queue, (self.now + delay, next(self._order), action))

    def soon(self, action: Callable[[], None]) -> None:
        """Let `action` happen after a short time, different each time: so that messages overtake each other."""
        self.after(self.random.expovariate(100), action)

    def happens(self, fault: str, factor: float = 1.0) -> bool:
        """Whether a fault happens now. It counts as fired."""
        if self.now > self.faults_until or self.random.random() >= self.chances[fault] * factor:
            return False
        self.count(fault)
        return True

    def count(self, fault: str) -> None:
        self.fired[fault] += 1
        self.note(f"!! {fault}")

    def note(self, what: str) -> None:
        """A line of the trace, by which two runs are compared."""
        line = f"{self.now:9.4f} {what}"
        self._trace.update(line.encode())
        if self.print_trace:
            print(line)

    @property
    def trace_digest(self) -> str:
        return self._trace.hexdigest()[:16]

    def run(self, until: Callable[[], bool], deadline: float) -> bool:
        """Let things happen until `until()` holds; False if it does not before virtual time `deadline`."""
        while not until():
            if not self._queue or self.now > deadline:
                return False
            self.now, _, action = heapq.heappop(self._queue)
            self.events += 1
            action()
        return True
