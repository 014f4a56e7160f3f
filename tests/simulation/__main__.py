"""Many runs under faults, `--seeds 10000`; or one with its trace, `--from-seed 17 --seeds 1 --trace`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tests.simulation.campaign import campaign


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=500)
    parser.add_argument("--from-seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--trace", action="store_true")
    given = parser.parse_args()
    seeds = range(given.from_seed, given.from_seed + given.seeds)
    found = campaign(seeds, trace=given.trace)
    print(json.dumps(found.summary(), indent=2))
    for failed in found.failures:
        print(f"seed {failed.seed} failed: {failed}")
        print(f"  again: python -m tests.simulation --from-seed {failed.seed} --seeds 1 --trace")
    if given.json is not None:
        given.json.write_text(json.dumps(found.summary(), indent=2) + "\n")
    sys.exit(1 if found.failures or (len(seeds) >= 100 and found.never_fired) else 0)


if __name__ == "__main__":
    main()
