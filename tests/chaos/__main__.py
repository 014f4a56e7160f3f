"""Kill processes of a real job: `python -m tests.chaos --kills 50 --json FILE`."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from tests.chaos.campaign import chaos
from tests.chaos.victims import TITLES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(TITLES), help="of shard, trainer, driver")
    parser.add_argument("--durability", choices=["log", "snapshot"], default="log")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds for each of the two runs")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = chaos(
            Path(folder), given.kills, given.seed, given.kinds.split(","), given.durability, given.timeout
        )
    summary = json.dumps(found.summary(), indent=2)
    print(summary)
    if given.json is not None:
        given.json.write_text(summary + "\n")
    sys.exit(0 if found.bytes_equal and found.kills_fired == given.kills else 1)


if __name__ == "__main__":
    main()
