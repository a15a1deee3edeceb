"""Tests that reading a pack never takes more memory than its rows need."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ...packs import packed
from ...reports.made_up import store
from ..programs import Program
from . import measured_reading
from .hostile_packs import IN_FILES, UNDERSTATED, hostile

#: The MiB by which the memory of a process may grow while it reads a pack. Imports do not count.
MOST = 300

#: What the refusal of some packs says, lest another check refuses them first.
SAID = {"points with a long key": " points", "runs that share a long configuration": "configurations have"}

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux says what it took"),
]


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory, new_store: Callable[[Path], str]) -> Path:
    folder = tmp_path_factory.mktemp("pack")
    return packed(store(folder, new_store), "small", folder)


def reading(sound: Path, pack: Path, folder: Path) -> tuple[str, float]:
    """Reads a pack in a process of its own. Returns why it was refused and the growth of memory in MiB."""
    program = Program(Path(measured_reading.__file__), (sound, pack), folder, folder / "reading.log")
    refusal, taken = json.loads(program.output().splitlines()[-1])
    return refusal, taken


def test_a_sound_pack_is_read_in_little_memory(pack: Path, tmp_path: Path) -> None:
    refusal, taken = reading(pack, pack, tmp_path)
    assert not refusal
    assert taken < MOST


@pytest.mark.parametrize("way", [*IN_FILES, UNDERSTATED])
def test_a_small_pack_that_would_take_gigabytes(pack: Path, tmp_path: Path, way: str) -> None:
    bomb = hostile(pack, tmp_path / "bomb.tensorbench.zip", way)
    assert bomb.stat().st_size < 2**24
    refusal, taken = reading(pack, bomb, tmp_path)
    assert taken < MOST, f"{taken:,.0f} MiB"
    assert refusal or way == UNDERSTATED
    assert SAID.get(way, "") in refusal
