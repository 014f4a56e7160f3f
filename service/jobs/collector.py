"""How often Python looks through the service's objects for circles that nothing refers to.

Nobody is answered while it looks through all of them: half a second where a tenant holds 10 000 calls open, and by itself it
would do so every few seconds then. Circles are few here (refusals.py), and nearly all are found while they are young. The
young are looked through more often than by Python's own rule, since what has come meanwhile is less then.
"""

from __future__ import annotations

import gc

_MIDDLE_EVERY = 2  # collections of the youngest; 10 is Python's own
_ALL_EVERY = 1000  # collections of the middle; 10 is Python's own


def collect_rarely() -> None:
    """For this process, when all that it keeps to its end has been made."""
    gc.collect()
    gc.freeze()
    youngest, _, _ = gc.get_threshold()
    gc.set_threshold(youngest, _MIDDLE_EVERY, _ALL_EVERY)
