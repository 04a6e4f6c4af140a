"""Title search for people who look for an item: case and accents do not count, the most popular come first."""

from __future__ import annotations

import re
import time
import unicodedata
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from igd_core.ids import ItemIndex

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from igd_core.catalogue.items import Catalogue

_APOSTROPHES = str.maketrans("", "", "'’‘`´")
_ASCII_APOSTROPHES = b"'`"
# What `normalised` does to ASCII, for `bytes.translate`; other bytes, and ends of lines, stay.
_ASCII = bytes(
    code if code >= 128 or code == ord("\n") else ord(chr(code).lower() if chr(code).isalnum() else " ")
    for code in range(256)
)
_SPACES = re.compile(rb" {2,}")
_TITLES_AT_ONCE = 512
# A search through these bytes takes 0.3 ms, and holds the interpreter's lock for all of it.
_WINDOW = 512 << 10
_LET_OTHERS_RUN_S = 5e-5
_MAX_INT32 = 2**31 - 1


def normalised(text: str) -> str:
    """Words of ``text``, lower case, without accents and punctuation, one space between them.

    >>> normalised("  Amélie's CAFÉ-Bar ")
    'amelies cafe bar'
    """
    text = text.translate(_APOSTROPHES).casefold()
    if not text.isascii():
        text = "".join(char for char in unicodedata.normalize("NFKD", text) if not unicodedata.combining(char))
    if not text.replace(" ", "").isalnum():
        text = "".join(char if char.isalnum() else " " for char in text)
    return " ".join(text.split())


class TitleSearch:
    """All titles in one byte string, in order of popularity: a scan meets the most popular matches first and stops.

    1,000,000 titles of 39 characters are 48 MB: 40 MB of text, 8 MB to find lines in it. A query that is met often
    takes well under 1 ms, one that is met nowhere 30 ms, one that is met only inside words 60 ms: so not on an event
    loop. On another thread a scan keeps the interpreter from the event loop for 5 ms at most, the making of it for 20.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        """Normalise every title (1.5 us each)."""
        self._order = np.argsort(-catalogue.frequency, kind="stable").astype(np.int32)
        # Joined and put in order outside the interpreter: one long call of it would stop the event loop meanwhile.
        lines = pa.concat_arrays(list(_normalised_lines(catalogue.titles))).take(pa.array(self._order))
        _, starts, text = lines.buffers()
        start = np.frombuffer(starts, dtype=np.int64)[: len(catalogue) + 1]
        size = int(start[-1])
        self._start = start.astype(np.int32 if size <= _MAX_INT32 else np.int64)
        self._text = bytearray(size)  # one that grows takes an eighth more
        for begin in range(0, size, _WINDOW):
            end = min(begin + _WINDOW, size)
            self._text[begin:end] = memoryview(text)[begin:end]

    def find(self, query: str, *, limit: int, offset: int = 0) -> Sequence[ItemIndex]:
        """Items whose title holds ``query``: first where it begins a word, then where it stands inside one.

        An empty query is held by all titles, one of punctuation alone by none.
        """
        wanted = offset + limit
        if query.strip():
            needle = normalised(query).encode()
            rows = self._rows(needle, wanted) if needle else []
        else:
            rows = list(range(min(wanted, len(self._order))))
        return [ItemIndex(int(self._order[row])) for row in rows[offset:wanted]]

    def _rows(self, needle: bytes, wanted: int) -> list[int]:
        first = self._find(needle, 0)
        if first < 0:
            return []
        rows = self._scan(b" " + needle, wanted, start=first - 1)  # a line begins with a space, so first > 0
        if len(rows) < wanted:
            known = set(rows)
            rows += [row for row in self._scan(needle, wanted, start=first) if row not in known]
        return rows

    def _scan(self, needle: bytes, most: int, *, start: int) -> list[int]:
        """The first ``most`` lines from byte ``start`` on that hold ``needle``."""
        rows: list[int] = []
        at = self._find(needle, start)
        while at >= 0 and len(rows) < most:
            row = int(np.searchsorted(self._start, at, side="right")) - 1
            rows.append(row)
            at = self._find(needle, int(self._start[row + 1])) if len(rows) < most else -1
        return rows

    def _find(self, needle: bytes, start: int) -> int:
        """``bytes.find`` that lets other threads run every now and then."""
        while start < len(self._text):
            end = start + _WINDOW
            at = self._text.find(needle, start, end + len(needle) - 1)
            if at >= 0:
                return at
            start = end
            if start < len(self._text):
                time.sleep(_LET_OTHERS_RUN_S)
        return -1


def _normalised_lines(titles: Sequence[str]) -> Iterator[pa.LargeBinaryArray]:
    """A line per title, many lines at a time: a few long calls instead of many short ones.

    A line begins with a space, so that " war" finds the words that begin so; there may be one at its end too.
    """
    for begin in range(0, len(titles), _TITLES_AT_ONCE):
        some = titles[begin : begin + _TITLES_AT_ONCE]
        text = "\n ".join(title if title.isascii() else normalised(title) for title in some)
        if text.count("\n") != len(some) - 1:  # a title of several lines
            text = "\n ".join(map(normalised, some))
        lines = _SPACES.sub(b" ", f" {text}\n".encode().translate(_ASCII, _ASCII_APOSTROPHES))
        ends = np.flatnonzero(np.frombuffer(lines, dtype=np.uint8) == ord("\n"))
        starts = np.concatenate(([0], ends + 1), dtype=np.int64)
        yield pa.LargeBinaryArray.from_buffers(
            pa.large_binary(), len(some), [None, pa.py_buffer(starts), pa.py_buffer(lines)]
        )
