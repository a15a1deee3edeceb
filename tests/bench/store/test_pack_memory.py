"""No pack takes more memory than its rows need, however it is made."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ...packs import packed
from ...reports.made_up import store
from .hostile import IN_FILES, UNDERSTATED, hostile

#: What a process that reads a pack may take beyond what its imports take, in MiB.
MOST = 300

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux says what it took")

#: Reads all of a pack, and says why it is refused, and by how many MiB its resident memory grew at most.
READING = """
import io, json, re, sys
from pathlib import Path
import pyarrow.parquet, pandas
from bench.store.results import open_results
from bench.wire.words import Artifact
from methods import UserError
import reports.results

def mib(key):
    return int(re.search(key + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 2**10

# What imports took for a moment is forgotten.
Path("/proc/self/clear_refs").write_text("5")
before, why = mib("VmRSS"), ""
try:
    for source in open_results("", sys.argv[1:]):
        source.plan()
        source.curves()
        for record in source.records():
            content = source.read(record, Artifact.PREDICTIONS)
            if content is not None:
                pandas.read_parquet(io.BytesIO(content))
except UserError as error:
    why = str(error)
print(json.dumps([why, mib("VmHWM") - before]))
"""


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory, new_store: Callable[[Path], str]) -> Path:
    folder = tmp_path_factory.mktemp("pack")
    return packed(store(folder, new_store), "small", folder)


def reading(pack: Path) -> tuple[str, float]:
    """Why a pack is refused, and how many MiB a process took to see it."""
    ended = subprocess.run(
        [sys.executable, "-c", READING, str(pack)], capture_output=True, text=True, check=True
    )
    why, taken = json.loads(ended.stdout)
    return why, taken


@pytest.mark.processes
def test_a_pack_as_it_should_be(pack: Path) -> None:
    why, taken = reading(pack)
    assert not why
    assert taken < MOST


@pytest.mark.processes
@pytest.mark.parametrize("way", [*IN_FILES, UNDERSTATED])
def test_a_small_pack_that_would_take_gigabytes(pack: Path, tmp_path: Path, way: str) -> None:
    bomb = hostile(pack, tmp_path / "bomb.tensorbench.zip", way)
    assert bomb.stat().st_size < 2**24
    why, taken = reading(bomb)
    assert taken < MOST, f"{taken:,.0f} MiB"
    if way != UNDERSTATED:
        assert "is refused" in why
