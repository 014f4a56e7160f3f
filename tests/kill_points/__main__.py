"""`python -m tests.kill_points [--stride N]`: kill at every call (or every Nth) and print what was found."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from tests.kill_points.campaign import kill_everywhere


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stride", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".kill-points-") as folder:
        findings = kill_everywhere(Path(folder), given.stride)
    print(json.dumps(vars(findings), indent=2))
    sys.exit(not findings.good)


if __name__ == "__main__":
    main()
