"""The scores of a study's trials against their learning rates."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from bench.metrics import direction
from reports.drawing import MUTED, SERIES, Drawn, panels
from reports.inference.studies import FAILED, smoothed, window
from reports.studies import Entrant, StudyAnalysis, StudyBlock
from reports.study import Seed, TaskAndBackbone
from reports.study_words import heading, setting_name, trials_of_tuning

#: How trials are linked: the anchor of a row of the table of trials.
ANCHOR = "trial-"
#: The most points below zero that the panels reach down to.
DEPTH = 15


def rates(analysis: StudyAnalysis, block: StudyBlock, number: int) -> Drawn:
    """A panel a method, a dot a trial of its complete studies; failed ones are crosses."""
    figure, axes = panels(len(block.entrants), columns=3, height=2.1)
    zeros = _zeros(block)
    texts: dict[str, str] = {}
    bottom = min(_lowest(entrant, zeros) for entrant in block.entrants)
    for ax, entrant in zip(axes, block.entrants, strict=True):
        ax.axhline(0, color=MUTED, lw=0.7)
        for place in range(len(block.settings)):
            texts |= _trials(ax, analysis, block, entrant, place, zeros[place], bottom)
        _rate_axis(ax)
        ax.set_title(entrant.method)
    limits = [ax.get_ylim() for ax in axes]
    for ax in axes:
        ax.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    for ax in axes[::3]:
        ax.set_ylabel(f"{block.unit.points} from {block.against or 'the best'}")
    handles = [
        Line2D(
            [],
            [],
            color=SERIES[i % len(SERIES)],
            marker="o",
            lw=0.9,
            ms=4,
            label=setting_name(block, setting),
        )
        for i, setting in enumerate(block.settings)
    ]
    handles.append(Line2D([], [], color=MUTED, marker="x", ls="none", ms=5, label="failed"))
    figure.legend(handles=handles, loc="outside lower center", ncols=5)
    zero = f"{block.against}'s score" if block.reference else "the best score"
    return Drawn(
        f"rates-{number}",
        f"Score against learning rate, {heading(block)}",
        f"A dot is a trial. Zero is {zero} after {trials_of_tuning(block.k)} on its task. Lines are smoothed "
        f"scores (LOESS). Crosses are failed trials: diverged, or {FAILED} points or more below the trial "
        "that validation chooses. Those further down are at the bottom. On the page each dot leads to "
        "its run.",
        "; ".join(
            f"{e.method}: {e.sensitivity.failures} of {e.sensitivity.trials} trials failed"
            for e in block.entrants
        ),
        figure,
        links=texts,
    )


def _trials(
    ax: Axes,
    analysis: StudyAnalysis,
    block: StudyBlock,
    entrant: Entrant,
    place: int,
    zero: float,
    bottom: float,
) -> dict[str, str]:
    """Draws a method's trials on a setting; returns the text of each link."""
    colour, factor = SERIES[place % len(SERIES)], block.unit.factor
    cell, studies = analysis.study.all_cells[entrant.cells[place]], entrant.studies[place]
    sign = direction(cell.metric)
    texts: dict[str, str] = {}
    for failed in (False, True):
        trials = [seed for seed in _complete(analysis, entrant, place) if analysis.failed(seed) is failed]
        gains = [bottom if seed.score is None else max(bottom, sign * seed.score - zero) for seed in trials]
        dots = ax.scatter(
            [seed.lr or 0.0 for seed in trials],
            [factor * gain for gain in gains],
            s=18 if failed else 9,
            marker="x" if failed else "o",
            color=colour,
            alpha=1.0 if failed else 0.75,
            linewidths=1.2 if failed else 0,
            clip_on=False,
        )
        links = [f"#{ANCHOR}{seed.trial_id}" for seed in trials]
        dots.set_urls(links)
        said = [_text(block, block.settings[place], seed, failed=failed) for seed in trials]
        texts |= dict(zip(links, said, strict=True))
    assert cell.studies is not None
    offsets = window(studies)
    curve = np.maximum(smoothed(studies, offsets) - zero, bottom)
    ax.plot(cell.studies.centre * 10**offsets, factor * curve, color=colour, lw=0.9, alpha=0.7)
    return texts


def _rate_axis(ax: Axes) -> None:
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel("learning rate")


def _zeros(block: StudyBlock) -> list[float]:
    """On each setting the reference's score after `k` trials, or else the best method's; more is better."""
    sign, places = direction(block.metric), range(len(block.settings))
    own = [e for e in block.entrants if block.reference and e.cells == block.reference.cells]
    return [max(sign * e.scores[block.k][place].value for e in own or block.entrants) for place in places]


def _lowest(entrant: Entrant, zeros: list[float]) -> float:
    """The lowest score among trials that did not fail, from zero, but for those below `DEPTH`."""
    each = [
        max(float(studies.scores[~studies.failed].min()) - zero, -DEPTH * studies.point)
        for studies, zero in zip(entrant.studies, zeros, strict=True)
    ]
    return min(each)


def _complete(analysis: StudyAnalysis, entrant: Entrant, place: int) -> Iterator[Seed]:
    """The trials of a method's complete studies on a setting."""
    numbers = set(entrant.studies[place].numbers)
    return (seed for seed in analysis.study.of_cell(entrant.cells[place]) if seed.study in numbers)


def _text(block: StudyBlock, setting: TaskAndBackbone, seed: Seed, *, failed: bool) -> str:
    """What appears when a dot is pointed at."""
    score = seed.failure if seed.score is None else block.unit.score(seed.score)
    place = f"study {seed.study:.0f}, point {seed.point:.0f}, rate {seed.lr:.3g}"
    return f"{seed.method} on {setting.task}: {score}{' (failed)' * failed}; {place}; trial {seed.trial_id}"
