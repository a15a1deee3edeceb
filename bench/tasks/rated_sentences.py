"""Tasks from VADER's archive of sentences (Hutto and Gilbert, ICWSM 2014).

Twenty people rated each sentence from -4 (most negative) to 4 (most positive).
"""

from __future__ import annotations

import html
import tarfile
from typing import ClassVar

from tensorbench.machine.assets import ASSETS, fetch
from tensorbench.tasks.dealing import link, near_duplicates, stable_order
from tensorbench.tasks.task import Examples, Task


def rows(member: str) -> list[tuple[str, float, str]]:
    """Returns id, mean rating and text of each row in a file of the archive.

    `member` is the beginning of the file's name, such as "tweets" for tweets_GroundTruth.txt. Raises
    UserError if the archive cannot be downloaded.
    """
    folder = fetch("vader-sentiment") / "vaderSentiment-3.3.2" / "additional_resources"
    with tarfile.open(folder / "hutto_ICWSM_2014.tar.gz") as archive:
        file = archive.extractfile(f"hutto_ICWSM_2014/{member}_GroundTruth.txt")
        assert file is not None  # a regular file in an archive with a pinned hash
        lines = file.read().decode("utf-8").split("\n")
    fields = (line.rstrip("\r").split("\t", 2) for line in lines if line)
    return [(source, float(rating), html.unescape(text).strip()) for source, rating, text in fields]


#: Sentences whose mean rating is nearer to zero than this are left out as neutral or disputed.
_LEAST_RATING = 0.5


class _RatedSentences(Task):
    """Sentences labelled by the sign of their mean rating, without those rated strictly within ±0.5."""

    modality = "text"
    paired = False
    classes = ("negative", "positive")
    data_hash = ASSETS["vader-sentiment"].sha256
    license = ASSETS["vader-sentiment"].license
    member: ClassVar[str]

    def examples(self) -> Examples:
        """Returns one example per sentence that is not left out. Its id is its row in the file, from 0."""
        texts, labels, ids, sources = [], [], [], []
        for row, (source, rating, text) in enumerate(rows(self.member)):
            if abs(rating) >= _LEAST_RATING:
                texts.append(text)
                labels.append(int(rating > 0))
                ids.append(row)
                sources.append(self._source_of(source))
        return Examples(texts, labels, ids, groups=link(near_duplicates(texts), sources))

    def _source_of(self, row_id: str) -> str:
        """Returns the source of a row, given its id in the file. Rows of one source go to the same split."""
        return row_id


class MovieSentiment(_RatedSentences):
    """Sentences from film reviews, with about as many positive as negative ones."""

    name = "movie-sentiment"
    sizes = (7052, 1510, 1510)
    description = "film review sentences, positive or negative by the mean of 20 ratings"
    member = "movieReviewSnippets"


class AmazonSentiment(_RatedSentences):
    """Sentences from customers' reviews of five products. All sentences of a review go to the same split."""

    name = "amazon-sentiment"
    metric = "matthews"
    sizes = (2089, 449, 447)
    description = "product review sentences, positive or negative by the mean of 20 ratings"
    member = "amazonReviewSnippets"

    def _source_of(self, row_id: str) -> str:
        return row_id.split("_")[0]


class TweetSentiment(_RatedSentences):
    """Tweets. About 200 of them are contrived variants of others and go to the split of their original."""

    name = "tweet-sentiment"
    metric = "matthews"
    sizes = (2400, 515, 515)
    description = "tweets, positive or negative by the mean of 20 ratings"
    member = "tweets"


MOVIE, AMAZON, TWEETS = MovieSentiment(), AmazonSentiment(), TweetSentiment()


class RatingPairs(Task):
    """Pairs of film review sentences. The target is the first's mean rating minus the second's.

    Twenty people rated each sentence from -4 to 4. The pairs are our own, made from a fixed shuffle of all
    sentences, so that every sentence is in at most one pair. Only the first of several near-duplicates is
    used.
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
        """Returns one example per pair. Its id is the row of its first sentence in the file, from 0."""
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
