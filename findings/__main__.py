"""`python -m findings run NAME|all` and `python -m findings report`."""

from __future__ import annotations

import os

# Read when numba and torch are imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from findings.command import main

if __name__ == "__main__":
    main()
