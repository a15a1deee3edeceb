"""How the runs of the methods of one budget are spread."""

from __future__ import annotations

from collections import Counter

import numpy as np

from reports.analysis import Block
from reports.drawing import Drawn, Looks, panels
from reports.figures.blocks import family_of, of_block
from reports.figures.training import LINES
from reports.study import REFERENCE, Study

#: Methods of one performance profile.
MOST_PROFILES = 12


def profile(study: Study, block: Block, number: int, looks: Looks) -> Drawn | None:
    """Share of runs that reach each normalised score (a performance profile; Agarwal et al., 2021)."""
    methods = block.methods if block.normalised else ()
    lora = [method for method in methods if family_of(study, block, method) == REFERENCE]
    shown = list(dict.fromkeys([*methods[:MOST_PROFILES], *lora[:1]]))
    if len(shown) < 2:
        return None
    figure, (ax,) = panels(1, height=3.4)
    drawn_of: Counter[str] = Counter()
    told: dict[str, str] = {}
    for place, method in enumerate(shown):
        family, runs = family_of(study, block, method), np.sort(block.normalised[method])
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
