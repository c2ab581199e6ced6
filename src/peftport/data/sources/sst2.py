"""``sst2``: the Stanford Sentiment Treebank with two classes, from the Hub."""

from __future__ import annotations

from dataclasses import replace

from peftport.data.columns import Columns, raw_from_tables
from peftport.data.leaks import containers
from peftport.data.sources.base import Raw, Source, datasets
from peftport.data.tables import read_tables


@datasets.register("sst2")
class Sst2(Source):
    """Phrases for training, sentences for testing.

    The labels of the published test part are hidden, so its validation part is the test set. A
    training phrase is split with the longest training text that contains it (its sentence, where
    that one is labelled), or nested phrases would stand on both sides.
    """

    name = "sst2"
    summary = "67,349 phrases and 872 test sentences of film reviews, from the Hugging Face Hub"
    reference_url = "https://nlp.stanford.edu/sentiment/"
    relocatable = True
    hub = "stanfordnlp/sst2@8d51e7e4887a4caaa95b3fbebbf53c0490b58bbb"

    def read(self) -> Raw:
        tables = read_tables(self.location or self.hub)
        raw = raw_from_tables(tables, Columns(text="sentence"), names=("negative", "positive"))
        groups = containers([example.text for example in raw.pool])
        pool = [e._replace(group=group) for e, group in zip(raw.pool, groups, strict=True)]
        return replace(raw, pool=pool)
