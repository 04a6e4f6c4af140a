"""Faults as exports have them, each planted into one row of a shop's two csv files, and where an editor shows it.

Files are split into records once and joined again, so that the line of a planted row is counted from the bytes before
it, by no code of the product.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

ITEMS, EVENTS = "artikel.csv", "bestellungen.csv"


class Records:
    """A csv file with semicolons as its records; ``[0]`` is the header."""

    def __init__(self, content: bytes) -> None:
        rows = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), delimiter=";", strict=True)
        self.cells = list(rows)
        self.columns = self.cells[0]
        self.written = [_written(cells) for cells in self.cells]

    def line(self, row: int) -> int:
        """Where an editor shows the first line of a record."""
        return b"".join(self.written[:row]).count(b"\n") + 1

    def content(self) -> bytes:
        return b"\xef\xbb\xbf" + b"".join(self.written)

    def set(self, row: int, column: str, value: str) -> None:
        self.cells[row][self.columns.index(column)] = value
        self.written[row] = _written(self.cells[row])

    def get(self, row: int, column: str) -> str:
        return self.cells[row][self.columns.index(column)]


def _written(cells: Iterable[str]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=";", lineterminator="\r\n").writerow(cells)
    return text.getvalue().encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A fault of one row.

    Attributes:
        name: of the fault.
        file: that it is planted in.
        plant: changes the record at a place of the file.
        says: pattern of what a message about it must hold, besides the file's name and the row.
        column: that it is planted in; empty where it is of the whole row.
        below: how many rows further down the message puts it.
    """

    name: str
    file: str
    plant: Callable[[Records, int], None]
    says: str
    column: str = ""
    below: int = 0


def _cell(column: str, value: str) -> Callable[[Records, int], None]:
    return lambda records, row: records.set(row, column, value)


def _repeat_id(records: Records, row: int) -> None:
    records.set(row, "Artikelnr", records.get(row - 1, "Artikelnr"))


def _twice(records: Records, row: int) -> None:
    records.written[row] *= 2


def _cut(records: Records, row: int) -> None:
    records.written[row] = b";".join(records.written[row].split(b";")[:3]) + b"\r\n"


def _longer(records: Records, row: int) -> None:
    records.written[row] = records.written[row].replace(b"\r\n", b";mehr\r\n")


def _open_quote(records: Records, row: int) -> None:
    place = len(records.cells[row][0].encode()) + 1
    written = records.written[row]
    records.written[row] = written[:place] + b'"' + written[place:]


def _latin(records: Records, row: int) -> None:
    records.set(row, "Bezeichnung", "Gr\u00fc\u00dfe aus K\u00f6ln")
    records.written[row] = records.written[row].replace(
        "Gr\u00fc\u00dfe aus K\u00f6ln".encode(), "Gr\u00fc\u00dfe aus K\u00f6ln".encode("latin-1")
    )


ROW_FAULTS = (
    Fault(
        name="unknown item",
        file=EVENTS,
        column="Artikel",
        plant=_cell("Artikel", "A-99999"),
        says="item_id 'A-99999' is not in",
    ),
    Fault(
        name="empty title",
        file=ITEMS,
        column="Bezeichnung",
        plant=_cell("Bezeichnung", "  "),
        says="title of item .* is empty",
    ),
    Fault(name="id twice", file=ITEMS, plant=_repeat_id, says="stands on an earlier row too, with another title"),
    Fault(
        name="no time",
        file=EVENTS,
        column="Zeitpunkt",
        plant=_cell("Zeitpunkt", "gestern"),
        says="'gestern' is no time",
    ),
    Fault(
        name="no such day",
        file=EVENTS,
        column="Zeitpunkt",
        plant=_cell("Zeitpunkt", "2017-02-30T12:00:00+01:00"),
        says="no time of any",
    ),
    Fault(
        name="year 1970",
        file=EVENTS,
        column="Zeitpunkt",
        plant=_cell("Zeitpunkt", "1970-01-01T00:00:00+01:00"),
        says="between 1990",
    ),
    Fault(
        name="year 3000",
        file=EVENTS,
        column="Zeitpunkt",
        plant=_cell("Zeitpunkt", "3000-01-01T00:00:00+01:00"),
        says="'3000-01.* ahead",
    ),
    Fault(
        name="another unit",
        file=EVENTS,
        column="Zeitpunkt",
        plant=_cell("Zeitpunkt", "1500000000000"),
        says="'1500000000000' is millisec",
    ),
    Fault(
        name="no zone",
        file=EVENTS,
        column="Zeitpunkt",
        plant=_cell("Zeitpunkt", "2017-03-01T12:00:00"),
        says="has no time zone",
    ),
    Fault(name="Latin-1", file=ITEMS, plant=_latin, says="bytes that are no text"),
    Fault(name="cut short", file=EVENTS, plant=_cut, says="has 3 cells"),
    Fault(name="a cell more", file=EVENTS, plant=_longer, says=r"has \d cells where the header has"),
    Fault(name="stray quote", file=ITEMS, plant=_open_quote, says="quote in the wrong place"),
    Fault(
        name="NUL in a title",
        file=ITEMS,
        column="Bezeichnung",
        plant=_cell("Bezeichnung", "Nord\x00see"),
        says=r"'Nord\\x00see'",
    ),
    Fault(
        name="NUL in a person's id",
        file=EVENTS,
        column="Kunde",
        plant=_cell("Kunde", "K\x0017"),
        says=r"user_id 'K\\x0017'",
    ),
    Fault(name="no person", file=EVENTS, column="Kunde", plant=_cell("Kunde", ""), says="user_id '' is empty"),
    Fault(
        name="rating of text",
        file=EVENTS,
        column="Bewertung",
        plant=_cell("Bewertung", "gut"),
        says="rating 'gut' is no number",
    ),
    Fault(
        name="NaN", file=EVENTS, column="Bewertung", plant=_cell("Bewertung", "NaN"), says="rating 'NaN' is no number"
    ),
)
"""Refuse the exports, or leave the row out and list it, where a flag says so."""
LAST_FAULT = Fault(name="open quote", file=EVENTS, plant=_open_quote, says="double quote that is never closed")
"""Of the last row but some: nothing below it can be read."""
ODDITIES = (
    Fault(
        name="control character in a title",
        file=ITEMS,
        column="Bezeichnung",
        plant=_cell("Bezeichnung", "Nord\x07see"),
        says=r"'Nord\\x07",
    ),
    Fault(
        name="rating out of range",
        file=EVENTS,
        column="Bewertung",
        plant=_cell("Bewertung", "500"),
        says="far from the others .* 500",
    ),
    Fault(
        name="event twice", file=EVENTS, plant=_twice, below=1, says="same person, item and time as on an earlier row"
    ),
    Fault(
        name="white space in a person's id", file=EVENTS, column="Kunde", plant=_cell("Kunde", "K 17 "), says="'K 17 '"
    ),
    Fault(
        name="control character in a person's id",
        file=EVENTS,
        column="Kunde",
        plant=_cell("Kunde", "K\x0717"),
        says=r"'K\\x0717'",
    ),
)
"""Are told with their rows, and leave nothing out."""


def joined_records(rows: Iterable[Iterable[str]]) -> bytes:
    """The bytes of a file of these records."""
    return b"\xef\xbb\xbf" + b"".join(map(_written, rows))
