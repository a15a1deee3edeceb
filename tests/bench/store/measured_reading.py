"""A script that reads a pack. It prints the refusal, if any, and the peak growth of memory in MiB.

`measured_reading.py SOUND PACK` first reads the valid pack SOUND, so that the code for reading is loaded
before the measurement begins.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from tensorbench.methods import UserError
from tensorbench.records.predictions import read_predictions
from tensorbench.records.words import Artifact
from tensorbench.store.opening import open_results


def mib(key: str) -> float:
    match = re.search(key + r":\s+(\d+)", Path("/proc/self/status").read_text())
    assert match
    return int(match[1]) / 2**10


def read(pack: str) -> None:
    for source in open_results("", [pack]):
        source.plan()
        source.curves()
        for record in source.records():
            source.read(record, Artifact.CONFIG)
            if (content := source.read(record, Artifact.PREDICTIONS)) is not None:
                read_predictions(content)


def main(sound: str, pack: str) -> None:
    read(sound)
    # Resets the peak.
    Path("/proc/self/clear_refs").write_text("5")
    before, refusal = mib("VmRSS"), ""
    try:
        read(pack)
    except (UserError, ValueError) as error:
        refusal = str(error)
    print(json.dumps([refusal, mib("VmHWM") - before]))


if __name__ == "__main__":
    main(*sys.argv[1:])
