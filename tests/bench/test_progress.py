"""Tests the live progress of a run on terminals of different widths."""

from __future__ import annotations

import io
import itertools

import pytest
from rich.console import Console

from tensorbench.cli import progress
from tensorbench.cli.progress import RunDisplay
from tensorbench.cli.tables import progress_bars
from tensorbench.execution.perform import Event
from tensorbench.records.record import Progress, failed

from .test_options import BOTH
from .toy_suites import plan


def shown(width: int) -> list[str]:
    """The lines that show two workers with two trials, on a terminal of this width."""
    seconds = itertools.count()
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    made = plan(BOTH)
    display = RunDisplay(console, made, 2, 2)
    display._bar.get_time = lambda: float(next(seconds))
    first, second = made.trials[1], made.trials[-1]
    display(Event(first, "started", worker="cpu:0"))
    display(Event(second, "started", worker="cpu:1"))
    for step in range(1, 6):
        progress = Progress(step, 8, 1, [(step, 0.6931)], 0.8123, 0.5)
        display(Event(second, "progress", worker="cpu:1", progress=progress))
    with console.capture() as captured:
        console.print(display._live.renderable)
    return captured.get().splitlines()


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_a_bar_and_the_time_left_fit_every_width(width: int) -> None:
    lines = shown(width)
    assert all(len(line) <= width for line in lines)
    everything, *workers = lines
    assert everything.startswith("0/2 trials")
    assert "━" in everything
    assert everything.rstrip().endswith("s left")
    assert [line[:5] for line in workers] == ["cpu:0", "cpu:1"]
    assert "62%" in workers[1]
    assert ("loss 0.693" in workers[1]) == (width >= progress.MEDIUM)
    assert ("validation 0.8123" in workers[1]) == (width >= progress.WIDE)


def test_lines_name_the_backbone_where_there_are_several() -> None:
    for backbones, tasks, named in (
        (BOTH["backbones"], BOTH["tasks"], True),
        (BOTH["backbones"][:1], BOTH["tasks"][:1], False),
    ):
        made = plan(BOTH, backbones=backbones, tasks=tasks)
        console = Console(file=io.StringIO(), width=120)
        RunDisplay(console, made, 1)(Event(made.trials[0], "failed", ending=failed("error", "why", "")))
        line = console.file.getvalue()  # type: ignore[attr-defined]
        assert ("tiny-random-vit" in line) == named
        assert line.endswith(f"seed 0: error: why {made.trials[0].id[:8]}\n")


def test_each_gpu_is_introduced_once_with_its_memory_and_slots() -> None:
    made = plan(BOTH)
    console = Console(file=io.StringIO(), width=120)
    display = RunDisplay(console, made, 2, 2)
    facts = {"gpu": "H[1]00", "card_in_use_mib": "1234", "card_memory_mib": "81559", "slots": "2"}
    for trial in made.trials[:2]:
        display(Event(trial, "started", worker="cuda:0/0", provenance=facts))
    display(Event(made.trials[2], "started", worker="cpu/0", provenance={"gpu": "", "slots": "2"}))
    line = "cuda:0/0: H[1]00, 1,234 of 81,559 MiB in use, 2 slots\n"
    assert console.file.getvalue() == line  # type: ignore[attr-defined]


def test_nothing_moves_off_a_terminal() -> None:
    console = Console(file=io.StringIO(), width=80)
    made = plan()
    with RunDisplay(console, made, 1) as display:
        display(Event(made.trials[0], "started"))
    with progress_bars(console) as bar:
        bar.add_task("checking", total=1)
    assert console.file.getvalue() == ""  # type: ignore[attr-defined]
