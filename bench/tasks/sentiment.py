"""Sentences that people rated from -4 to 4, published with VADER (Hutto and Gilbert, ICWSM 2014)."""

from __future__ import annotations

from typing import ClassVar

from bench.sources.assets import ASSETS
from bench.tasks.base import Examples, Task
from bench.tasks.dealing import link, near_duplicates
from bench.tasks.vader import rows

#: Nearer to zero than this, the raters' mean (20 people) says neutral or that they disagree.
_LEAST_RATING = 0.5


class _RatedSentences(Task):
    """Positive or negative by the sign of the mean rating; sentences rated within ±0.5 are left out."""

    modality = "text"
    paired = False
    classes = ("negative", "positive")
    data_hash = ASSETS["vader-sentiment"].sha256
    license = ASSETS["vader-sentiment"].license
    member: ClassVar[str]

    def examples(self) -> Examples:
        """One example a rated sentence; its id is its row in the file, from 0."""
        texts, labels, ids, sources = [], [], [], []
        for row, (source, rating, text) in enumerate(rows(self.member)):
            if abs(rating) >= _LEAST_RATING:
                texts.append(text)
                labels.append(int(rating > 0))
                ids.append(row)
                sources.append(self._source_of(source))
        return Examples(texts, labels, ids, groups=link(near_duplicates(texts), sources))

    def _source_of(self, row_id: str) -> str:
        """What a row was taken from; rows of one source share a split."""
        return row_id


class MovieSentiment(_RatedSentences):
    """Sentences from film reviews; evenly balanced."""

    name = "movie-sentiment"
    sizes = (7052, 1510, 1510)
    description = "film review sentences, positive or negative by the mean of 20 ratings"
    member = "movieReviewSnippets"


class AmazonSentiment(_RatedSentences):
    """Sentences from customers' reviews of five products; a review is never parted by the split."""

    name = "amazon-sentiment"
    metric = "matthews"
    sizes = (2089, 449, 447)
    description = "product review sentences, positive or negative by the mean of 20 ratings"
    member = "amazonReviewSnippets"

    def _source_of(self, row_id: str) -> str:
        return row_id.split("_")[0]


class TweetSentiment(_RatedSentences):
    """Tweets, about 200 of them contrived variants of others, which share a split with their original."""

    name = "tweet-sentiment"
    metric = "matthews"
    sizes = (2400, 515, 515)
    description = "tweets, positive or negative by the mean of 20 ratings"
    member = "tweets"


MOVIE, AMAZON, TWEETS = MovieSentiment(), AmazonSentiment(), TweetSentiment()
