"""Where the rows of a file stand: a spreadsheet counts rows, an editor counts lines, and cells may hold line breaks."""

from __future__ import annotations

from array import array
from bisect import bisect_right


class RowPlaces:
    """Tells rows of a file by number, and by line where that is another.

    >>> places = RowPlaces()
    >>> places.moved(3, by=2)  # the row above holds two line breaks
    >>> places.told(2), places.told(3)
    ('row 2', 'row 3 (line 5)')
    """

    def __init__(self) -> None:
        self._row = array("q")
        self._by = array("q")

    def moved(self, row: int, *, by: int) -> None:
        """Note that from this row on, which is below all noted so far, rows begin so many lines further down."""
        self._row.append(row)
        self._by.append(by)

    def line(self, row: int) -> int:
        """The line that a row begins on; the row's number in a file without lines."""
        at = bisect_right(self._row, row)
        return row + (self._by[at - 1] if at else 0)

    def told(self, row: int) -> str:
        """The row in words."""
        line = self.line(row)
        return f"row {row}" if line == row else f"row {row} (line {line})"
