"""The verdicts of all questions together: which of them hold when many questions are asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from marked import table

from tensorbench.reports.inference.intervals import LEVEL

from .answer import Answer, Claim, with_interval


def adjusted(values: Sequence[float]) -> list[float]:
    """The p-values for a family, by Holm (1979)."""
    found, largest = list(values), 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, (len(values) - rank) * values[place]))
        found[place] = largest
    return found


def of_family(answers: Mapping[str, Answer]) -> str:
    """A table of the claims of all answers, with p-values by themselves and for the family.

    A comparison that answers several questions counts once.
    """
    every: dict[str, tuple[str, Claim]] = {}
    for title, each in answers.items():
        for name, claim in each.claims.items():
            every.setdefault(name, (title, claim))
    together = adjusted([claim.p for _, claim in every.values()])
    rows = []
    for (name, (title, claim)), p in zip(every.items(), together, strict=True):
        found, word = claim.compared, claim.compared.verdict.word
        if claim.p < 1:
            holds = word if p <= 1 - LEVEL else f"exploratory: {word} by itself only"
            interval = with_interval(found.effect.difference, found.interval)
            rows.append([title, name, interval, _shown(claim.p), _shown(p), holds])
    extent = (
        f"{len(every)} comparisons answer the questions on which studies are complete; "
        f"{sum(p <= 1 - LEVEL for p in together)} of {len(rows)} verdicts hold for all of them together."
    )
    head = [
        "question",
        "claim",
        "difference",
        "p by itself",
        "p of all together (Holm)",
        "verdict of the family",
    ]
    return f"{extent}\n\n{table(head, rows)}"


def _shown(p: float) -> str:
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}"
