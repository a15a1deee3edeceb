"""The figures of a report. Each returns None where there is nothing to draw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Sized

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from reports.ablation import Ablation
from reports.analysis import Analysis, Block, pareto
from reports.curves import Curve
from reports.drawing import INK, MUTED, RULE, SERIES, Drawn, Looks, panels, spread, styled
from reports.reading import OWN_SIZE, Frame

#: Settings of one figure, methods of one panel, and points that can be pointed at in one figure.
MOST_PANELS, MOST_METHODS, MOST_POINTED = 12, 40, 400

#: Lines that tell the methods of one family apart.
LINES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1, 1.5)), (0, (9, 2)), (0, (3, 1, 1, 1, 1, 1)))

COSTS = {
    "parameters": ("score-vs-parameters", "Score against parameters", "adapter parameters"),
    "step_ms": ("score-vs-step-time", "Score against step time", "median training step, ms"),
    "peak_mib": ("score-vs-memory", "Score against memory", "peak memory, MiB"),
}


def draw(analysis: Analysis, curves: Sequence[Curve] = ()) -> list[Drawn]:
    """All figures that this study has something for."""
    looks = Looks(analysis.study.cells["family"])
    with styled():
        drawn = [score_against(analysis, cost, looks) for cost in COSTS]
        for number, block in enumerate(analysis.blocks):
            drawn += [
                differences(block, number, analysis.threshold, looks),
                ranks(analysis, block, number, looks),
                better(block, number),
                normalised(analysis, block, number, looks),
            ]
        drawn.append(training(curves, looks))
    return [figure for figure in drawn if figure is not None]


def score_against(analysis: Analysis, cost: str, looks: Looks) -> Drawn | None:
    """Score against a cost, a panel a setting, with the Pareto front."""
    cells = analysis.study.cells
    cells = cells[cells["mean"].notna() & cells[cost].notna()]
    if not len(cells):
        return None
    name, title, label = COSTS[cost]
    groups = list(cells.groupby(["task", "backbone"], sort=False))
    figure, axes = panels(min(len(groups), MOST_PANELS), height=3.1)
    told: dict[str, str] = {}
    families: set[str] = set()
    for ax, ((task, backbone), group) in zip(axes, groups, strict=False):
        front = pareto(group, cost)
        ax.set_title(f"{task} · {backbone}")
        if cost == "parameters":
            _floor(ax, group[group[cost] == 0])
            group = group[group[cost] > 0]
            front = [cell for cell in front if cell in group.index]
            ax.xaxis.set_major_formatter(FuncFormatter(_count))
            if len(group) and group[cost].max() > 8 * group[cost].min():
                ax.set_xscale("log")
                ax.xaxis.set_major_formatter(FuncFormatter(_count))
                ax.xaxis.set_minor_formatter(NullFormatter())
        families |= set(group["family"])
        line = group.loc[front].sort_values(cost)
        ax.plot(line[cost], 100 * line["mean"], color=MUTED, lw=0.9, drawstyle="steps-post", zorder=1)
        _whiskers(ax, group, cost, looks)
        _points(ax, group, cost, looks, told if len(cells) <= MOST_POINTED else None)
        _limits(ax, group)
        _label(ax, group.loc[front], cost)
        ax.set_xlabel(label)
        ax.set_ylabel(f"{group['evaluated'].iloc[0]} {group['metric'].iloc[0]}, %" if len(group) else "")
    _legend(axes[0], looks, families)
    caption = (
        "Each point is a row of the leaderboard: the mean over its seeds, hollow where seeds are missing. "
        "The grey line is the Pareto front of complete rows; what stands on it is named. Whiskers are 95% "
        "intervals of three seeds or more, cut at the frame."
    )
    if cost == "parameters":
        caption += " A method without adapter parameters is the dotted line."
    else:
        caption += " Times and memory are of the machine that ran the trial: see Provenance for mixtures."
    if len(groups) > MOST_PANELS:
        caption += f" The first {MOST_PANELS} of {len(groups)} settings."
    best = ", ".join(_name(cells.loc[cell]) for cell in pareto(cells, cost)[:8])
    return Drawn(name, title, caption, f"On the Pareto front: {best or 'no complete row'}.", figure, told)


def differences(block: Block, number: int, threshold: float, looks: Looks) -> Drawn | None:
    """Difference from the reference with its interval."""
    shown = sorted(block.comparisons, key=lambda c: c.effect.difference)[-MOST_METHODS:]
    if len(shown) < 2:
        return None
    figure, (ax,) = panels(1, height=0.9 + 0.23 * len(shown))
    values = [100 * c.effect.difference for c in shown]
    ax.axvspan(-100 * threshold, 100 * threshold, color=RULE, alpha=0.5, lw=0)
    ax.axvline(0, color=MUTED, lw=0.8)
    told: dict[str, str] = {}
    for y, comparison in enumerate(shown):
        colour = looks.colour(comparison.family)
        if comparison.effect.interval:
            low, high = (100 * bound for bound in comparison.effect.interval)
            ax.plot([low, high], [y, y], color=colour, lw=1.4, solid_capstyle="butt")
        gid = f"d{y}"
        ax.scatter(values[y], y, s=24, color=colour, marker=looks.shape(comparison.family), zorder=3, gid=gid)
        told[gid] = f"{comparison.method}: {values[y]:+.2f} points, {comparison.verdict}"
    reach = max(2.2 * max(map(abs, values)), 250 * threshold)
    ends = [abs(100 * b) for c in shown if c.effect.interval for b in c.effect.interval]
    reach = min(reach, 1.05 * max(ends)) if ends else reach
    ax.set_xlim(-max(reach, 150 * threshold), max(reach, 150 * threshold))
    _rows(ax, [c.method for c in shown])
    ax.set_xlabel(f"points above {block.reference}")
    caption = (
        f"Mean difference from {block.reference} over {_settings(block)}, with its 95% interval (cut at the "
        f"frame). The band is ±{100 * threshold:g} points, the smallest difference taken to matter."
    ) + _left_out(shown, block.comparisons)
    alternative = "; ".join(f"{c.method} {100 * c.effect.difference:+.2f}" for c in reversed(shown))
    return Drawn(
        f"differences-{number}",
        f"Against {block.reference}, {block.budget}",
        caption,
        alternative,
        figure,
        told,
    )


def ranks(analysis: Analysis, block: Block, number: int, looks: Looks) -> Drawn | None:
    """Mean ranks with intervals."""
    if block.ranks is None or len(block.methods) < 2:
        return None
    methods = block.methods[:MOST_METHODS]
    figure, (ax,) = panels(1, height=0.9 + 0.23 * len(methods))
    for y, method in enumerate(methods):
        family = str(analysis.study.cells.at[block.cells[method][0], "family"])
        if block.ranks.low is not None and block.ranks.high is not None:
            ax.plot(
                [block.ranks.low[y], block.ranks.high[y]],
                [-y, -y],
                color=looks.colour(family),
                lw=1.4,
                solid_capstyle="butt",
            )
        ax.scatter(
            block.ranks.mean[y], -y, s=24, color=looks.colour(family), marker=looks.shape(family), zorder=3
        )
        if block.letters and y < len(block.letters):
            ax.annotate(
                block.letters[y],
                (1.02, -y),
                xycoords=("axes fraction", "data"),
                va="center",
                color=MUTED,
                annotation_clip=False,
            )
    ax.set_yticks([-y for y in range(len(methods))], methods)
    ax.tick_params(axis="y", labelcolor=INK)
    ax.set_ylim(-len(methods) + 0.4, 0.6)
    ax.set_xlim(0.7, len(block.methods) + 0.3)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("mean rank (1 is best)")
    caption = f"Mean rank over {_settings(block)}. " + (
        ""
        if block.ranks.low is None
        else f"Intervals (95%) resample the {block.seeds} seeds within settings; they describe these runs "
        "and are no test."
    )
    if block.letters:
        caption += (
            " Methods that share a letter at the right cannot be told apart by sign-flip tests of all pairs "
            "(Holm, .05)."
        )
    caption += _left_out(methods, block.methods)
    alternative = "; ".join(f"{m} {r:.1f}" for m, r in zip(methods, block.ranks.mean, strict=False))
    return Drawn(f"ranks-{number}", f"Ranks, {block.budget}", caption, alternative, figure)


def better(block: Block, number: int) -> Drawn | None:
    """Heat map of P(row beats column)."""
    if block.better is None:
        return None
    methods = block.paired
    size = 0.36 * len(methods)
    figure, (ax,) = panels(1, height=size + 1.6)
    figure.set_size_inches(min(size + 2.6, 11), size + 1.7)
    for i in range(len(methods)):
        for j in range(len(methods)):
            if i == j:
                continue
            p = float(block.better[i, j])
            colour = SERIES[0] if p > 0.5 else SERIES[1]
            ax.add_patch(
                Rectangle((j - 0.5, -i - 0.5), 1, 1, color=colour, alpha=0.45 * abs(2 * p - 1), lw=0)
            )
            ax.text(j, -i, f"{100 * p:.0f}", ha="center", va="center", fontsize=7.5)
    ax.set_xticks(range(len(methods)), methods, rotation=40, ha="left", rotation_mode="anchor")
    ax.set_yticks([-i for i in range(len(methods))], methods)
    ax.xaxis.tick_top()
    ax.tick_params(length=0, labelcolor=INK)
    ax.set_xlim(-0.5, len(methods) - 0.5)
    ax.set_ylim(-len(methods) + 0.5, 0.5)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    caption = (
        "Chance in % that a run of the row's method scores above a run of the column's (ties count half), "
        f"the mean over {_settings(block)}. Blue above 50, orange below; methods in order of mean rank."
    )
    return Drawn(
        f"p-better-{number}",
        f"P(better), {block.budget}",
        caption,
        "Its numbers stand in the table below.",
        figure,
    )


def normalised(analysis: Analysis, block: Block, number: int, looks: Looks) -> Drawn | None:
    """Normalised aggregate by mean and by interquartile mean."""
    methods = [method for method in block.methods if method in block.aggregates][:MOST_METHODS]
    if not methods:
        return None
    figure, axes = panels(2, height=0.9 + 0.23 * len(methods))
    for ax, kind, title in zip(axes, ("mean", "iqm"), ("mean", "interquartile mean"), strict=True):
        for y, method in enumerate(methods):
            family = str(analysis.study.cells.at[block.cells[method][0], "family"])
            value = getattr(block.aggregates[method], kind)
            interval = getattr(block.aggregates[method], f"{kind}_interval")
            if interval:
                ax.plot(interval, [-y, -y], color=looks.colour(family), lw=1.4, solid_capstyle="butt")
            ax.scatter(value, -y, s=24, color=looks.colour(family), marker=looks.shape(family), zorder=3)
        ax.set_yticks([-y for y in range(len(methods))], methods if ax is axes[0] else [])
        ax.tick_params(axis="y", labelcolor=INK)
        ax.set_ylim(-len(methods) + 0.4, 0.6)
        ax.set_title(title)
        ax.set_xlabel("0: head only, 1: full fine-tuning")
    caption = (
        "Scores between head only and full fine-tuning, over all runs; 95% intervals resample seeds within "
        "settings."
    ) + _left_out(methods, block.aggregates)
    alternative = "; ".join(f"{m} {block.aggregates[m].mean:.2f}" for m in methods)
    return Drawn(f"normalised-{number}", f"Normalised score, {block.budget}", caption, alternative, figure)


def training(curves: Sequence[Curve], looks: Looks) -> Drawn | None:
    """Validation score by epoch, a panel a setting and budget."""
    settings = list(dict.fromkeys(curve.panel for curve in curves))
    if not settings:
        return None
    figure, axes = panels(len(settings), height=3.2)
    told: dict[str, str] = {}
    for ax, setting in zip(axes, settings, strict=True):
        shown = [curve for curve in curves if curve.panel == setting]
        drawn_of: Counter[str] = Counter()
        for curve in shown:
            gid = f"t{len(told)}"
            colour = looks.colour(curve.family)
            width = 1.8 if curve.family == "lora" else 1
            line = LINES[drawn_of[curve.family] % len(LINES)]
            drawn_of[curve.family] += 1
            marker = looks.shape(curve.family) if len(curve.epochs) <= 12 else None
            ax.plot(
                curve.epochs,
                100 * curve.values,
                color=colour,
                lw=width,
                ls=line,
                marker=marker,
                ms=3,
                gid=gid,
            )
            told[gid] = f"{curve.label}: {100 * curve.values[-1]:.2f} after epoch {curve.epochs[-1]:g}"
        last = max(curve.epochs[-1] for curve in shown)
        low, high = ax.get_ylim()
        ends = [100 * curve.values[-1] for curve in shown]
        for curve, end, y in zip(shown, ends, spread(ends, (high - low) / 17, high), strict=True):
            ax.annotate(
                curve.label,
                (curve.epochs[-1], end),
                (last + 0.04 * max(1, last - 1), y),
                textcoords="data",
                fontsize=7.5,
                va="center",
                color=looks.colour(curve.family),
                annotation_clip=False,
            )
        ax.set_title(setting)
        ax.set_xlabel("epoch")
        ax.set_ylabel("validation score, %")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    caption = "Validation score after each epoch, the mean over the seeds that have one."
    alternative = "; ".join(f"{c.method} on {c.panel} ends at {100 * c.values[-1]:.1f}" for c in curves[:12])
    return Drawn("training-curves", "Training curves", caption, alternative, figure, told)


def _name(cell: Frame) -> str:
    where = "" if cell["budget"] == OWN_SIZE else f" ({cell['budget']})"
    return f"{cell['method']}{where} on {cell['task']} · {cell['backbone']}"


def _settings(block: Block) -> str:
    return "1 setting" if len(block.settings) == 1 else f"{len(block.settings)} settings"


def _count(value: float, _: int) -> str:
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _points(ax: Axes, cells: Frame, cost: str, looks: Looks, told: dict[str, str] | None) -> None:
    """A point a cell; with `told` each is an element of its own, which says its name."""
    label = COSTS[cost][2]
    for (family, complete), group in cells.groupby(["family", "complete"], sort=False):
        for part in [group] if told is None else [group.loc[[cell]] for cell in group.index]:
            gid = None if told is None else f"p{part.index[0]}"
            ax.scatter(
                part[cost],
                100 * part["mean"],
                s=26,
                marker=looks.shape(family),
                edgecolor=looks.colour(family),
                facecolor=looks.colour(family) if complete else "none",
                linewidth=1,
                zorder=3,
                gid=gid,
            )
            if told is not None and gid is not None:
                line = part.iloc[0]
                told[gid] = f"{_name(line)}: {100 * line['mean']:.2f}, {label} {line[cost]:,.0f}"


def _left_out(drawn: Sized, of: Sized) -> str:
    return f" The best {len(drawn)} of {len(of)} methods." if len(drawn) < len(of) else ""


def _rows(ax: Axes, names: Sequence[str]) -> None:
    ax.set_yticks(range(len(names)), names)
    ax.tick_params(axis="y", labelcolor=INK)
    ax.set_ylim(-0.6, len(names) - 0.4)


def _floor(ax: Axes, cells: Frame) -> None:
    for _, cell in cells.iterrows():
        ax.axhline(100 * cell["mean"], color=MUTED, lw=0.9, ls=":", zorder=1)
        ax.annotate(
            cell["method"],
            (1, 100 * cell["mean"]),
            (-2, 2),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            fontsize=7.5,
            color=MUTED,
        )


def _whiskers(ax: Axes, cells: Frame, cost: str, looks: Looks) -> None:
    if len(cells) > 60:
        return
    for _, cell in cells[cells["finished"] > 2].iterrows():
        ax.plot(
            [cell[cost]] * 2,
            [100 * cell["low"], 100 * cell["high"]],
            color=looks.colour(cell["family"]),
            lw=0.7,
            alpha=0.5,
            zorder=2,
        )


def _limits(ax: Axes, cells: Frame) -> None:
    """Around the means: two seeds' intervals would leave nothing else to see."""
    known = [100 * value for value in cells["mean"]]
    known += [line.get_ydata()[0] for line in ax.get_lines() if line.get_linestyle() == ":"]  # type: ignore[index]
    if not known:
        return
    pad = max(0.35 * (max(known) - min(known)), 1.0)
    ax.set_ylim(min(known) - pad, min(max(known) + pad, max(101.0, max(known) + 1)))


def _label(ax: Axes, cells: Frame, cost: str) -> None:
    """Names of a few points, beside them and moved apart."""
    named = cells.iloc[:8]
    low, high = ax.get_ylim()
    ys = [100 * value for value in named["mean"]]
    right = ax.get_xlim()[1]
    for (_, cell), y, at in zip(named.iterrows(), ys, spread(ys, (high - low) / 16), strict=True):
        beyond = ax.transData.transform((cell[cost], y))[0] > ax.transData.transform((right, y))[0] - 90
        ax.annotate(
            cell["method"],
            (cell[cost], at),
            (-6 if beyond else 6, 3),
            textcoords="offset points",
            ha="right" if beyond else "left",
            va="bottom",
            fontsize=7.5,
        )


def _legend(ax: Axes, looks: Looks, families: set[str]) -> None:
    if len(families) < 2:
        return
    handles = [
        Line2D([], [], color=looks.colour(f), marker=looks.shape(f), ls="", ms=5, label=f.replace("_", " "))
        for f in looks.families
        if f in families
    ]
    ax.figure.legend(handles=handles, loc="outside lower left", ncols=min(8, len(handles)))


def ablation(number: int, found: Ablation) -> list[Drawn]:
    """Score against each mode's rank, importance of each mode, and singular values by mode."""
    with styled():
        drawn = [_by_rank(number, found), _importance(number, found), _spectra(number, found)]
    return [figure for figure in drawn if figure is not None]


def _by_rank(number: int, found: Ablation) -> Drawn | None:
    # Neither the mean nor the best is of what lost a seed.
    tried = [entry for entry in found.tried if entry.value is not None and entry.state == "complete"]
    if found.kind == "allocation":
        # The same ranks stand there under several labels. In a search they may differ in learning rate.
        tried = list({tuple(entry.ranks): entry for entry in tried}.values())
    if not tried:
        return None
    figure, axes = panels(len(found.modes), columns=3, height=2.4)
    best = max(tried, key=lambda entry: entry.value or 0)
    for mode, ax in enumerate(axes):
        ranks_of = [entry.ranks[mode] for entry in tried]
        values = [100 * (entry.value or 0) for entry in tried]
        ax.scatter(ranks_of, values, s=20, facecolor="none", edgecolor=SERIES[0], linewidth=1)
        by_rank = pd.Series(values).groupby(pd.Series(ranks_of)).mean()
        ax.plot(by_rank.index.to_numpy(), by_rank.to_numpy(), color=MUTED, lw=0.9, zorder=1)
        ax.scatter(best.ranks[mode], 100 * (best.value or 0), s=26, color=SERIES[1], marker="D", zorder=3)
        ax.set_title(found.modes[mode])
        ax.set_xlabel("rank")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        if mode % 3 == 0:
            ax.set_ylabel("validation score, %")
    caption = (
        "Each circle is one allocation whose every seed finished; the other modes' ranks differ too. The "
        "line is the mean at each rank, the diamond the best."
    )
    text = ", ".join(f"{mode} {rank}" for mode, rank in zip(found.modes, best.ranks, strict=True))
    return Drawn(
        f"ablation-{number}-ranks", f"{found.name}: score by rank", caption, f"Best: {text}.", figure
    )


def _importance(number: int, found: Ablation) -> Drawn | None:
    evaluators = [name for name, values in found.importance.items() if values]
    if not evaluators:
        return None
    figure, axes = panels(len(evaluators), columns=2, height=0.8 + 0.26 * len(found.modes))
    for ax, evaluator in zip(axes, evaluators, strict=True):
        values = found.importance[evaluator]
        modes = list(values)[::-1]
        ax.barh(modes, [values[mode] for mode in modes], color=SERIES[0], height=0.55)
        ax.tick_params(axis="y", labelcolor=INK)
        ax.set_title(evaluator)
        ax.grid(False, axis="y")
    caption = (
        "Importance of each mode's rank for the score, by Optuna's evaluators; it describes these trials."
    )
    text = "; ".join(
        f"{e}: " + ", ".join(f"{m} {v:.2f}" for m, v in found.importance[e].items()) for e in evaluators
    )
    return Drawn(f"ablation-{number}-importance", f"{found.name}: importance of modes", caption, text, figure)


def _spectra(number: int, found: Ablation) -> Drawn | None:
    modes = [mode for mode, values in found.spectra.items() if values]
    if not modes:
        return None
    figure, axes = panels(len(modes), columns=3, height=2.4)
    for ax, mode in zip(axes, modes, strict=True):
        values = found.spectra[mode]
        top = max(values) or 1
        ax.plot(range(1, len(values) + 1), [v / top for v in values], color=SERIES[0], lw=1, marker="o", ms=3)
        ax.axvline(found.effective_ranks[mode], color=SERIES[1], lw=1, ls="--")
        ax.set_title(f"{mode} · effective rank {found.effective_ranks[mode]:.1f} of {len(values)}")
        ax.set_ylim(0, 1.05)
        ax.set_xlabel("component")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    caption = "Singular values of each mode, the largest being 1; the dashed line is the effective rank."
    text = "; ".join(f"{mode}: effective rank {found.effective_ranks[mode]:.1f}" for mode in modes)
    return Drawn(f"ablation-{number}-spectra", f"{found.name}: spectra", caption, text, figure)
