"""Title search for people: ignores case and accents, and lists the most popular items first."""

from __future__ import annotations

import re
import time
import unicodedata
from typing import TYPE_CHECKING

import numpy as np

from igd_core.ids import ItemIndex

if TYPE_CHECKING:
    from collections.abc import Sequence

    from igd_core.catalogue.items import Catalogue

_APOSTROPHES = str.maketrans("", "", "'’‘`´")
_BETWEEN_WORDS = re.compile(r"[\W_]+")
_APOSTROPHE_BYTES = b"'`"
_LOWER = bytes(
    code if code >= 0x80 or chr(code) == "\n" else ord(chr(code).lower()) if chr(code).isalnum() else ord(" ")
    for code in range(256)
)
"""ASCII letters in lower case, line ends and all beyond ASCII as they are, the rest as spaces."""
_SPACES = re.compile(rb"  +")
_BETWEEN_LINES = re.compile(rb" ?\n ?")
# Of one page. A search through it takes 0.3 ms, and holds the interpreter's lock for all of it.
_PAGE_TITLES = 16384
_LET_OTHERS_RUN_S = 5e-5
_SIGN_TITLES = 256  # read one by one, in 0.3 ms
_AS_PICTURE = "\ufe0f"  # behind a sign: draw it in colours. Keyboards add it, titles may not have it


def normalised(text: str) -> str:
    """Words of ``text``, lower case, without accents and punctuation, one space between them.

    >>> normalised("  Amélie's CAFÉ-Bar ")
    'amelies cafe bar'
    """
    text = text.translate(_APOSTROPHES).casefold()
    if not text.isascii():
        text = "".join(char for char in unicodedata.normalize("NFKD", text) if not unicodedata.combining(char))
    return _BETWEEN_WORDS.sub(" ", text).strip()


def _page(titles: Sequence[str]) -> bytes:
    """The normalised titles, each behind a line end and a space, so that " war" finds words that begin with it.

    ASCII titles are normalised together; `normalised` takes five times as long for one.
    """
    others = [row for row, title in enumerate(titles) if not title.isascii() or "\n" in title]
    plain = list(titles)
    for row in others:
        plain[row] = ""
    text = "\n".join(["", *plain, ""]).encode().translate(_LOWER, _APOSTROPHE_BYTES)
    lines = _BETWEEN_LINES.sub(b"\n", _SPACES.sub(b" ", text)).split(b"\n")[1:-1]
    for row in others:
        lines[row] = normalised(titles[row]).encode()
    return b"".join([b"\n " + line for line in lines])


class TitleSearch:
    """All titles as text, in order of popularity: a scan finds the most popular matches first, and stops.

    docs/explanation/libraries.md compares it with SQLite's FTS5 and tantivy. A query without a match reads all of the
    text, 20 ms for 200,000 titles: so not on an event loop.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        """Normalise every title: 1 us each in ASCII, 5 us others."""
        self._order = np.argsort(-catalogue.frequency, kind="stable").astype(np.int32)
        pages = range(0, len(self._order), _PAGE_TITLES)
        self._titles = titles = catalogue.titles
        self._pages = [_page([titles[item] for item in self._order[at : at + _PAGE_TITLES].tolist()]) for at in pages]

    def find(self, query: str, *, limit: int, offset: int = 0) -> Sequence[ItemIndex]:
        """Items whose title contains ``query``: first those with a word that begins with it, then the others.

        Every title contains the empty query; none contains a query of punctuation alone. Signs such as emoji are looked
        for where there is no word beside them.
        """
        wanted = offset + limit
        if query.strip():
            needle = normalised(query).encode()
            rows = self._rows(needle, wanted) if needle else self._rows_with_signs(query, wanted)
        else:
            rows = list(range(min(wanted, len(self._order))))
        return [ItemIndex(int(self._order[row])) for row in rows[offset:wanted]]

    def _rows(self, needle: bytes, wanted: int) -> list[int]:
        holding = []
        for number, page in enumerate(self._pages):
            if needle in page:
                holding.append(number)
            time.sleep(_LET_OTHERS_RUN_S)  # else the event loop waits 5 ms for the interpreter
        rows = self._scan(holding, b" " + needle, wanted)
        if len(rows) < wanted:
            known = set(rows)
            rows += [row for row in self._scan(holding, needle, wanted) if row not in known]
        return rows

    def _rows_with_signs(self, query: str, wanted: int) -> list[int]:
        """Rows whose titles hold the query as it is: the pages hold no signs, so that none stands between words."""
        signs = query.strip().strip(_AS_PICTURE)
        rows: list[int] = []
        if not any(unicodedata.category(char) == "So" for char in signs):
            return rows
        for row, item in enumerate(self._order.tolist()):
            if row % _SIGN_TITLES == 0:
                time.sleep(_LET_OTHERS_RUN_S)
            if signs in self._titles[item]:
                rows.append(row)
                if len(rows) == wanted:
                    break
        return rows

    def _scan(self, numbers: Sequence[int], needle: bytes, most: int) -> list[int]:
        """The first ``most`` rows, by popularity, of lines in these pages that contain ``needle``."""
        rows: list[int] = []
        for number in numbers:
            page = self._pages[number]
            row, line, at = number * _PAGE_TITLES - 1, 0, page.find(needle)
            while at >= 0:
                row, line = row + page.count(b"\n", line, at), at
                rows.append(row)
                if len(rows) == most:
                    return rows
                end = page.find(b"\n", at)
                at = page.find(needle, end) if end >= 0 else -1
        return rows
