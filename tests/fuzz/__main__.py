"""`python -m tests.fuzz --inputs N`: feed every decoder, in processes that may crash, hang or run out of memory."""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import resource
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tests.fuzz.mutation import mutated
from tests.fuzz.targets import SHARES, feed_many

INPUTS_AT_ONCE = 10_000
SECONDS_MAX = 600  # for that many: an input that hangs is found, and dumped
MEMORY_BYTES_MAX = 1 << 30  # beyond what the process has before the first input


@dataclass(frozen=True)
class Part:
    """Some inputs of one target."""

    target: str
    seed: int
    inputs: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", choices=list(SHARES), help="only this one")
    parser.add_argument("--part", action="store_true", help="one seed of one target, in this process")
    given = parser.parse_args()
    if given.part:
        _feed(Part(given.target, given.seed, given.inputs))
        return
    begun = time.monotonic()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done = list(pool.map(_run, _parts(given.inputs, given.seed, given.target)))
    summary = {"seed": given.seed, "inputs": 0, "refused": 0, "taken": 0, "crashes": 0}
    for part, counts, crash in done:
        if crash:
            summary["crashes"] += 1
            print(f"{part} ended with {crash}", file=sys.stderr)
        else:
            summary["inputs"] += part.inputs
            summary["refused"] += counts[0]
            summary["taken"] += counts[1]
    print(json.dumps({**summary, "seconds": round(time.monotonic() - begun, 1)}, indent=2))
    sys.exit(summary["crashes"] > 0)


def _parts(inputs: int, seed: int, only: str | None) -> list[Part]:
    parts = []
    for target, share in SHARES.items():
        left = inputs if target == only else round(inputs * share) if only is None else 0
        while left > 0:
            parts.append(Part(target, seed + len(parts), min(left, INPUTS_AT_ONCE)))
            left -= INPUTS_AT_ONCE
    return parts


def _run(part: Part) -> tuple[Part, tuple[int, int], str]:
    command = [sys.executable, "-m", "tests.fuzz", "--part", "--target", part.target]
    done = subprocess.run(
        [*command, "--seed", str(part.seed), "--inputs", str(part.inputs)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return part, (0, 0), f"status {done.returncode}:\n{done.stderr[-3000:]}"
    refused, taken = json.loads(done.stdout)
    return part, (refused, taken), ""


def _feed(part: Part) -> None:
    feed_many(part.target, part.seed, 10, mutated)  # what is loaded and compiled once
    with open("/proc/self/statm") as memory:
        used = int(memory.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES_MAX,) * 2)
    faulthandler.dump_traceback_later(SECONDS_MAX, exit=True)
    print(json.dumps(feed_many(part.target, part.seed, part.inputs, mutated)))


if __name__ == "__main__":
    main()
