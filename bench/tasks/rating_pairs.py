"""Pairs of rated sentences: a regression with the form of STS-B, from data that need no hub."""

from __future__ import annotations

from bench.sources.assets import ASSETS
from bench.tasks.base import Examples, Task
from bench.tasks.dealing import near_duplicates, stable_order
from bench.tasks.vader import rows


class RatingPairs(Task):
    """By how much the first of two film review sentences was rated higher than the second.

    Twenty people rated each sentence from -4 to 4; the target is the difference of the means. The pairs are
    ours: a fixed shuffle of all sentences, two by two, so that every sentence is in one pair only. Of
    sentences that are near-duplicates the first one alone is taken.
    """

    name = "rating-pairs"
    modality = "text"
    paired = True
    target = "regression"
    metric = "pearson"
    unit = "rating points"
    sizes = (3711, 798, 792)
    data_hash = ASSETS["vader-sentiment"].sha256
    license = ASSETS["vader-sentiment"].license
    description = "pairs of film review sentences, by how much the first is rated higher"

    def examples(self) -> Examples:
        """One example a pair; its id is the row of its first sentence in the file, from 0."""
        rated = rows("movieReviewSnippets")
        first = near_duplicates([text for _, _, text in rated])
        alone = [row for row, number in enumerate(first) if row == number]
        order = [alone[place] for place in stable_order(f"{self.name}/pairs", alone)]
        pairs = list(zip(order[::2], order[1::2], strict=False))
        return Examples(
            [(rated[a][2], rated[b][2]) for a, b in pairs],
            [rated[a][1] - rated[b][1] for a, b in pairs],
            [a for a, _ in pairs],
        )


RATING_PAIRS = RatingPairs()
