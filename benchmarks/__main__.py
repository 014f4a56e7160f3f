"""`python -m benchmarks NAME [--quick] [--json FILE]`: run a benchmark, or write the report of those that ran."""

from __future__ import annotations

import os

# Read when numba and torch are imported: threads that wait for work sleep, as they do in shards and trainers.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from benchmarks.command import main

if __name__ == "__main__":
    main()
