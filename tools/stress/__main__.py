"""Runs the scenarios in full, each in a fresh folder: `python -m tools.stress [SCENARIO …]`."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from . import figures, scenarios

FULL_SIZES = {
    "kills": scenarios.kills,
    "first_starts": scenarios.first_starts,
    "outliving_workers": scenarios.outliving_workers,
    "ray_nodes": scenarios.ray_nodes,
    "outage": scenarios.outage,
    "faults": scenarios.faults,
    "silence": scenarios.silence,
    "containers": scenarios.containers,
    "stops": scenarios.stops,
    "two_drivers": scenarios.two_drivers,
    "many_writers": scenarios.many_writers,
    "memory": figures.memory,
    "throughput": figures.throughput,
}

if __name__ == "__main__":
    for name in sys.argv[1:] or FULL_SIZES:
        folder = Path(tempfile.mkdtemp(prefix=f"tensorbench-{name}-"))
        # PostgreSQL's user must be able to enter.
        folder.chmod(0o755)
        print(f"{name} in {folder}", flush=True)
        print(json.dumps(FULL_SIZES[name](folder), indent=1), flush=True)
