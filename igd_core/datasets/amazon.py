"""Amazon reviews (2018 release, McAuley lab) from the raw files: one JSON object a line, gzipped or not.

Reviews: ``reviewerID``, ``asin``, ``overall``, ``unixReviewTime``. Metadata: ``asin``, ``title``. The data must not be
redistributed, so it is read where the user has put it.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from igd_core.catalogue.items import Catalogue
from igd_core.datasets.cleaning import clean_title
from igd_core.datasets.interactions import Interactions
from igd_core.errors import DataError
from igd_core.regular_files import require_regular
from igd_core.timestamps import EARLIEST_S, NotAnInstant, instant_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from igd_core.datasets.options import AmazonOptions

_GZIP_MAGIC = b"\x1f\x8b"
_MAX_TITLE_CHARS = 400
_MARKUP = ("<span", "<a ", "<div", "function(", "getTime(")


@dataclass(frozen=True, slots=True, kw_only=True)
class AmazonData:
    """The reviews and items that stay.

    Attributes:
        catalogue: the items, in order of their first review.
        interactions: the reviews, in time order, then file order.
        reviews: lines of the reviews file.
        untitled: reviews left out because their item has no usable title.
    """

    catalogue: Catalogue
    interactions: Interactions
    reviews: int
    untitled: int


def read_amazon(reviews: Path, metadata: Path, options: AmazonOptions) -> AmazonData:
    """Read the reviews inside the window, of items with a title, and cut them down to the core.

    A title that is web-page debris (markup, script) or longer than 400 characters counts as none. A user who reviews an
    item again is counted once, the first time.

    Raises:
        DataError: a file that cannot be read, a line that is not as expected, or nothing left.
    """
    titles = _read_titles(metadata)
    first, last = options.window()
    users: list[str] = []
    items: list[str] = []
    times: list[int] = []
    ratings: list[float] = []
    count = untitled = 0
    for number, line in _lines(reviews):
        count += 1
        user, item, time, rating = _review(reviews, number, line)
        if not first <= time < last:
            continue
        if time < EARLIEST_S:
            raise DataError(f"{reviews}: line {number}: unixReviewTime {time} is before 1990; a window leaves it out")
        if item not in titles:
            untitled += 1
            continue
        users.append(user)
        items.append(item)
        times.append(time)
        ratings.append(rating)
    order = np.argsort(np.array(times, dtype=np.int64), kind="stable").tolist()
    kept = _core(_first_of_pairs(order, users, items), users, items, options.core)
    if not kept:
        raise DataError(
            f"{reviews}: none of {count} reviews is left: window {options.begin} to {options.end}, "
            f"core {options.core}, {untitled} without a title"
        )
    item_ids = list(dict.fromkeys(items[i] for i in kept))
    user_ids = list(dict.fromkeys(users[i] for i in kept))
    item_row = {item: row for row, item in enumerate(item_ids)}
    user_row = {user: row for row, user in enumerate(user_ids)}
    return AmazonData(
        catalogue=Catalogue.build(item_ids=item_ids, titles=[titles[item] for item in item_ids]),
        interactions=Interactions(
            user_ids=user_ids,
            user=np.array([user_row[users[i]] for i in kept], np.int32),
            item=np.array([item_row[items[i]] for i in kept], np.int32),
            timestamp=np.array([times[i] for i in kept], np.int64),
            rating=np.array([ratings[i] for i in kept], np.float64),
        ),
        reviews=count,
        untitled=untitled,
    )


def usable_title(raw: object) -> str:
    """The cleaned title, or "" where it is not usable as one."""
    if not isinstance(raw, str) or any(mark in raw for mark in _MARKUP):
        return ""
    title = clean_title(raw)
    return title if len(title) <= _MAX_TITLE_CHARS else ""


def _first_of_pairs(order: list[int], users: list[str], items: list[str]) -> list[int]:
    seen: set[tuple[str, str]] = set()
    first = []
    for index in order:
        pair = (users[index], items[index])
        if pair not in seen:
            seen.add(pair)
            first.append(index)
    return first


def _core(kept: list[int], users: list[str], items: list[str], core: int) -> list[int]:
    """Drop users and items below ``core`` reviews until none is left to drop."""
    while True:
        by_user = Counter(users[i] for i in kept)
        by_item = Counter(items[i] for i in kept)
        still = [i for i in kept if by_user[users[i]] >= core and by_item[items[i]] >= core]
        if len(still) == len(kept):
            return kept
        kept = still


def _read_titles(path: Path) -> dict[str, str]:
    titles: dict[str, str] = {}
    for number, line in _lines(path):
        entry = _object(path, number, line)
        item = entry.get("asin")
        if not isinstance(item, str) or not item.strip():
            raise DataError(f"{path}: line {number}: asin is {item!r}")
        title = usable_title(entry.get("title"))
        if title:
            titles.setdefault(item, title)
    return titles


def _review(path: Path, number: int, line: bytes) -> tuple[str, str, int, float]:
    entry = _object(path, number, line)
    for name in ("reviewerID", "asin"):
        if not isinstance(entry.get(name), str) or not entry[name].strip():
            raise DataError(f"{path}: line {number}: {name} is {entry.get(name)!r}")
    rating = entry.get("overall", np.nan)
    written = entry.get("unixReviewTime")
    if isinstance(written, int) and not isinstance(written, bool) and written < EARLIEST_S:
        time = written  # outside any window
    else:
        try:
            time = instant_of(written).us // 1_000_000
        except NotAnInstant as error:
            raise DataError(f"{path}: line {number}: unixReviewTime {written!r} {error}") from None
    if not isinstance(rating, (int, float)):
        raise DataError(f"{path}: line {number}: overall is {rating!r}")
    return entry["reviewerID"], entry["asin"], time, float(rating)


def _object(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise DataError(f"{path}: line {number}: not JSON ({error})") from None
    if not isinstance(entry, dict):
        raise DataError(f"{path}: line {number}: holds a {type(entry).__name__}, not an object")
    return entry


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, numbered from 1."""
    try:
        require_regular(path)
        with path.open("rb") as raw:
            zipped = raw.read(2) == _GZIP_MAGIC
        with gzip.open(path, "rb") if zipped else path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
