"""Writes the analysis of 195 published runs into a page of results: `python docs/learning_rates.py`.

The page is results/learning-rate-matters.md.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from marked import replaced, table

import tensorbench
from tensorbench.records.stored_plan import rate_text
from tensorbench.reports.answers import joined
from tensorbench.reports.units import minus

PAGE = Path(__file__).parent / "results" / "learning-rate-matters.md"
RUNS = PAGE.with_suffix(".csv")
BEGIN, END = "<!-- docs/learning_rates.py -->\n", "<!-- end -->\n"
#: The fixed rates at which methods are compared, and the numbers of trials after which they are.
FIXED, TRIALS = (2e-5, 2e-4), (1, 2, 4, 8, 13)


def differences(runs: pd.DataFrame) -> pd.DataFrame:
    """The differences from LoRA, with intervals that are simultaneous over the methods."""
    return tensorbench.load_results(runs).tables["differences"].set_index(["k", "method"])


def shown(line: pd.Series) -> str:
    """A difference in points with its interval. The text is bold if the interval excludes zero."""
    mean, *ends = (minus(f"{100 * line[name]:+.2f}") for name in ("difference", "low", "high"))
    text = f"{mean} [{', '.join(ends)}]"
    return f"**{text}**" if line["low"] > 0 or line["high"] < 0 else text


def content() -> str:
    """The part of the page between the marks: the sentences with current numbers, and the tables."""
    runs = pd.read_csv(RUNS).rename(columns={"run": "seed", "learning_rate": "lr"})
    results, tuned = tensorbench.load_results(runs), differences(runs)
    scores = results.tables["scores"].set_index(["k", "method"])["score"] * 100
    by_rate = runs.groupby(["method", "lr"])["score"]
    means = by_rate.mean()
    best = means.groupby("method").max().sort_values(ascending=False)
    rates = means.groupby("method").idxmax().map(lambda place: place[1])
    bias = best - scores[13]
    near = by_rate.var()[means >= means.groupby("method").transform("max") - 1].mean() ** 0.5
    fixed = {rate: differences(runs[runs["lr"] == rate].drop(columns="lr")).loc[1] for rate in FIXED}
    others = [method for method in best.index if method != "LoRA"]
    verdicts = tuned["verdict"].xs(13, level="k").to_dict()
    rows = [
        [
            method,
            f"{best[method]:.2f} at {rate_text(rates[method])}",
            f"{scores[13, method]:.2f}",
            minus(f"{bias[method]:+z.2f}"),
            shown(tuned.loc[(13, method)]) if method in others else "reference",
            verdicts.get(method, ""),
        ]
        for method in best.index
    ]
    first = ["method", "best mean, at rate", "run left out", "too high by", "difference from LoRA", "verdict"]
    after = [
        [str(k), f"{scores[k, 'LoRA']:.1f}", *(shown(tuned.loc[(k, m)]) for m in others)] for k in TRIALS
    ]
    at = [[rate_text(rate), *(shown(lines.loc[m]) for m in others)] for rate, lines in fixed.items()]
    ahead = [method for method in others if tuned.loc[(8, method), "low"] > 0]
    low, high = fixed.values()
    sides = joined(list(low.index[low["low"] > 0])), joined(list(high.index[high["high"] < 0]))
    return "\n\n".join(
        [
            f"**After eight trials {joined(ahead or ['no method'])} is ahead of LoRA.** At one rate for all, "
            f"the rate picks the winner: {sides[0]} came out ahead of LoRA at {rate_text(FIXED[0])}, and "
            f"{sides[1]} behind it at {rate_text(FIXED[1])}.",
            f"The five best means lie within {best.max() - best.min():.2f} points. The best mean of 13 is "
            f"too high by {bias.mean():.2f} points (mean over methods). A run near the best has a standard "
            f"deviation of {near:.2f} points.",
            table(first, rows),
            "One rate for all, difference from LoRA:",
            table(["rate", *others], at),
            "After k random rates of the 13, LoRA's score and the difference from it:",
            table(["k", "LoRA", *others], after),
            "Intervals are 95% intervals, simultaneous over the four methods of a table's line and not over "
            "lines. Bold ones exclude zero.\n",
        ]
    )


def rewritten(text: str) -> str:
    """The page with the current numbers."""
    return replaced(text, BEGIN, END, content())


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
