"""How often Python looks through all of the service's objects for circles that nothing refers to.

Nobody is answered while it looks: half a second where a tenant holds 10 000 calls open, and by itself it would look every few
seconds then. Circles are few here (refusals.py), and most are found while they are young, which is looked for as ever.
"""

from __future__ import annotations

import gc

_FULL_EVERY = 200  # collections of the objects that are no longer young; 10 is Python's own


def collect_rarely() -> None:
    """For this process, when all that it keeps to its end has been made."""
    gc.collect()
    gc.freeze()
    young, older, _ = gc.get_threshold()
    gc.set_threshold(young, older, _FULL_EVERY)
