"""Python's collector in the service: it finds circles while they are young, and does not look through everything."""

from __future__ import annotations

import json
import subprocess
import sys

_PROGRAM = """
import gc, json, sys, weakref
from service.jobs.collector import collect_rarely

class Circle:
    def __init__(self):
        self.itself = self

if sys.argv[1] == "rarely":
    collect_rarely()
whole = []
gc.callbacks.append(lambda phase, told: whole.append(phase) if told["generation"] == 2 else None)
circle = weakref.ref(Circle())
kept = [[number] for number in range(500_000)]
print(json.dumps({"whole": len(whole), "circle is found": circle() is None}))
"""


def _outcome(how: str) -> dict[str, object]:
    told = subprocess.run(
        [sys.executable, "-c", _PROGRAM, how], check=True, capture_output=True, text=True, timeout=60
    )
    outcome: dict[str, object] = json.loads(told.stdout)
    return outcome


def test_many_new_objects_do_not_have_everything_looked_through() -> None:
    assert _outcome("rarely") == {"whole": 0, "circle is found": True}
    assert _outcome("as Python does")["whole"] != 0  # so that the first line can fail
