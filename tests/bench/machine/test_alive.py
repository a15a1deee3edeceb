"""Tests which processes count as dead. Processes of another container or another boot never do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tensorbench.machine import alive
from tensorbench.machine.alive import dead, owner

from ..services import container

#: A program that prints the name of its process. Then, for each name of a process that it reads, it prints
#: whether that process is dead.
TELLING = """
import sys
from tensorbench.machine.alive import dead, owner
print(owner(), flush=True)
for other in sys.stdin:
    print(dead(other.strip()), flush=True)
"""


def telling(*inside: str) -> subprocess.Popen[str]:
    """Starts `TELLING`, with a command that may start it inside of a container."""
    pipe = subprocess.PIPE
    return subprocess.Popen([*inside, sys.executable, "-c", TELLING], stdin=pipe, stdout=pipe, text=True)


def gone() -> int:
    """Returns the id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.skipif(not hasattr(os, "waitid"), reason="there is no way here to wait and leave it as it is")
def test_a_process_is_dead_though_nobody_has_taken_note_of_its_end() -> None:
    with telling() as process:
        assert process.stdout is not None
        name = process.stdout.readline().strip()
        assert not dead(name)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert dead(name)


def test_a_process_is_dead_only_if_it_is_known_to_be() -> None:
    me = owner()
    place, pid, started = me.split(":")
    assert dead(f"{place}:{gone()}:{started}")
    # A later process reusing the id.
    assert dead(f"{place}:{pid}:{int(started) - 100}")
    assert not dead(me)
    assert not dead(f"elsewhere:{gone()}:{started}")
    assert not dead("")


@pytest.mark.parametrize("what", ["boot", "namespace"])
def test_processes_of_another_boot_or_container_are_of_unknown_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    there = tmp_path / what
    if what == "boot":
        there.write_text("another\n")
        monkeypatch.setattr(alive, "BOOT", there)
    else:
        there.symlink_to("pid:[1]")
        # The kernel shows a dangling link here that nevertheless exists.
        monkeypatch.setattr(alive, "NAMESPACE", there)
        (tmp_path / "pid:[1]").touch()
    place, _, started = owner().split(":")
    name = f"{place}:{gone()}:{started}"
    assert dead(name)
    monkeypatch.undo()
    assert not dead(name)


def test_the_host_name_identifies_systems_without_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alive, "BOOT", tmp_path / "no")
    monkeypatch.setattr(alive, "NAMESPACE", tmp_path / "no")
    assert not dead(owner())
    assert dead(f"{owner().split(':')[0]}:{gone()}:0")


@pytest.mark.processes
@pytest.mark.skipif(container() is None, reason="processes may not have a namespace of their own here")
def test_a_driver_in_another_container_is_not_taken_for_dead_by_either() -> None:
    made = container()
    assert made is not None
    with telling(*made) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        name = other.stdout.readline().strip()
        # Inside the container it is process 1.
        assert name.split(":")[1] == "1"
        assert not dead(name)
        print(owner(), file=other.stdin, flush=True)
        assert other.stdout.readline() == "False\n"
        print(name, file=other.stdin, flush=True)
        assert other.stdout.readline() == "False\n"
        other.stdin.close()
    assert not dead(name)
