"""The methods of one budget in one picture: who is apart from whom, and how their runs are spread."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pandas as pd

from reports.analysis import Block
from reports.drawing import INK, MUTED, Drawn, Looks, panels
from reports.figures.blocks import family_of, of_block
from reports.figures.training import LINES
from reports.inference.intervals import ALPHA
from reports.study import REFERENCE, Study
from reports.words import many

#: Methods of one performance profile.
MOST_PROFILES = 12


def apart(study: Study, block: Block, number: int, looks: Looks) -> Drawn | None:
    """Mean ranks with a bar over methods that are not told apart: a critical-difference diagram (Demšar,
    2006) whose bars are those of the intervals of all pairs, and not of Nemenyi's test, which a few tasks
    cannot feed.
    """
    ranking = block.ranking
    if ranking is None or ranking.separations is None or len(ranking.paired) < 3:
        return None
    # It brings in seaborn, which takes a second.
    from scikit_posthocs import critical_difference_diagram

    names = list(ranking.paired)
    figure, (ax,) = panels(1, height=1.2 + 0.16 * len(names))
    same = pd.DataFrame(np.where(ranking.separations != 0, ALPHA / 2, 1.0), names, names)
    drawn = critical_difference_diagram(
        pd.Series(ranking.ranks.mean[: len(names)], names),
        same,
        ax=ax,
        color_palette={name: looks.colour(family_of(study, block, name)) for name in names},
        label_props={"fontsize": 7.5},
        crossbar_props={"color": INK, "linewidth": 2.2},
        marker_props={"s": 14},
        elbow_props={"linewidth": 0.9},
    )
    for bar in (line for lines in drawn["crossbars"] for line in lines):
        # It is drawn from a set, whose order differs from process to process.
        bar.set_xdata(np.sort(bar.get_xdata()))
    ax.grid(False)
    ax.tick_params(axis="x", colors=MUTED)
    caption = (
        f"Mean rank over {many(len(block.settings), 'setting')}, 1 the best; a bar joins methods that are "
        "not told apart by the intervals of all pairs."
    )
    alternative = "The groups stand as letters in the table of ranks."
    title = f"Who is apart from whom, {block.heading}"
    return Drawn(f"apart-{number}", title, caption, alternative, figure, **of_block(block))


def profile(study: Study, block: Block, number: int, looks: Looks) -> Drawn | None:
    """Share of runs that reach each normalised score (a performance profile; Agarwal et al., 2021)."""
    methods = [method for method in block.methods if method in block.aggregates]
    lora = [method for method in methods if family_of(study, block, method) == REFERENCE]
    shown = list(dict.fromkeys([*methods[:MOST_PROFILES], *lora[:1]]))
    if len(shown) < 2:
        return None
    figure, (ax,) = panels(1, height=3.4)
    drawn_of: Counter[str] = Counter()
    told: dict[str, str] = {}
    for place, method in enumerate(shown):
        family, runs = family_of(study, block, method), np.sort(block.aggregates[method].runs)
        ax.step(
            np.concatenate([runs[:1], runs]),
            100 * np.linspace(1, 0, len(runs) + 1),
            where="post",
            color=looks.colour(family),
            lw=1.8 if family == REFERENCE else 1,
            ls=LINES[drawn_of[family] % len(LINES)],
            label=method,
            gid=f"p{place}",
        )
        drawn_of[family] += 1
        told[f"p{place}"] = f"{method}: half of its runs reach {np.median(runs):.2f}"
    ax.set_xlabel("normalised score (0: head only, 1: full fine-tuning)")
    ax.set_ylabel("runs that reach it, %")
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    caption = "Share of all runs whose normalised score is at least so high: the higher line is the better."
    if len(shown) < len(methods):
        caption += f" The best {MOST_PROFILES} of {len(methods)} methods, and LoRA."
    alternative = "; ".join(told.values())
    title = f"Performance profile, {block.heading}"
    return Drawn(f"profile-{number}", title, caption, alternative, figure, told, **of_block(block))
