"""A prepared data set as a shop would export it: `python tests/bench/shop_exports.py DATA --out DIR`.

DATA is a folder of items.csv, train.csv, valid.csv and test.csv (train_meta.csv, if there, names who and when). The
exports are two csv files of a German shop: a byte order mark, semicolons, columns of other names, lists of departments
in a cell, prices with a decimal comma, descriptions over several lines, a column that is empty and one that is the same
in each row; times in ISO 8601 with the zone's offset, which changes with daylight saving. What the data set lacks
(departments, prices, descriptions) is made up, the same for each run.

`igd start --items DIR/artikel.csv --events DIR/bestellungen.csv --out OUT` goes from there to a served verdict.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import sys
from collections import defaultdict, deque
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

BERLIN = ZoneInfo("Europe/Berlin")
DEPARTMENTS = ("Neuheiten", "Klassik", "Angebote", "Import", "Sammler", "Geschenke", "Restposten")
TRAIN_BEGINS = int(datetime(2015, 10, 1, tzinfo=UTC).timestamp())
"""Of training rows without times: they are spread evenly from here to the first validation row."""
WINDOW = 10
"""Items that a row's history holds at most."""
BEFORE_S = 86_400
"""From one item to the next, of those that a person chose before their first row."""
ITEM_COLUMNS = ("Artikelnr", "Bezeichnung", "Abteilungen", "Preis", "Beschreibung", "EAN", "Mandant")
EVENT_COLUMNS = ("Bestellung", "Kunde", "Artikel", "Zeitpunkt", "Menge", "Kanal")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row of the data set: who, what they had chosen (oldest first), what they chose then, seconds since 1970."""

    user: str
    history: tuple[str, ...]
    item: str
    time: int


def rows_of(data: Path) -> Iterator[Row]:
    """Every row, oldest first; people whom training rows do not name are told apart by their histories."""
    train, later = list(_table(data / "train.csv")), [*_table(data / "valid.csv"), *_table(data / "test.csv")]
    names = dict[str, str]()
    if (data / "train_meta.csv").exists():
        for row, meta in zip(train, _table(data / "train_meta.csv"), strict=True):
            yield _row(meta["user_id"], row, int(meta["timestamp"]))
    else:
        chains = _Chains()
        step = (int(later[0]["timestamp"]) - TRAIN_BEGINS) / len(train)
        for at, row in enumerate(train):
            yield _row(chains.person(row), row, int(TRAIN_BEGINS + at * step))
        for row in later:
            if row["user_id"] not in names:
                names[row["user_id"]] = chains.person(row)
    for row in later:
        yield _row(names.get(row["user_id"], row["user_id"]), row, int(row["timestamp"]))


class _Chains:
    """Rows of one person follow each other: a row's history ends with the choice of the one before."""

    def __init__(self) -> None:
        self._open = defaultdict[tuple[str, ...], deque[str]](deque)
        self._people = 0

    def person(self, row: dict[str, str]) -> str:
        history = tuple(row["history_item_ids"].split())
        if self._open[history]:
            person = self._open[history].popleft()
        else:
            person = f"t{self._people}"
            self._people += 1
        self._open[(*history, row["item_id"])[-WINDOW:]].append(person)
        return person


def _row(user: str, row: dict[str, str], time: int) -> Row:
    return Row(user=user, history=tuple(row["history_item_ids"].split()), item=row["item_id"], time=time)


def events_of(rows: Iterable[Row]) -> list[tuple[int, str, str]]:
    """Every choice that the rows tell of, as time, person and item, oldest first."""
    events, seen = [], set[str]()
    for row in rows:
        if row.user not in seen:  # what came before the first row has no time of its own
            seen.add(row.user)
            before = enumerate(reversed(row.history), 1)
            events += [(row.time - back * BEFORE_S, row.user, item) for back, item in before]
        events.append((row.time, row.user, row.item))
    return sorted(events, key=lambda event: event[0])


def write_exports(data: Path, out: Path) -> tuple[int, int]:
    """Write artikel.csv and bestellungen.csv into ``out``; how many items and events they hold."""
    out.mkdir(parents=True, exist_ok=True)
    items = [_item(row["item_id"], row["title"]) for row in _table(data / "items.csv")]
    events = [_event(at, *event) for at, event in enumerate(events_of(rows_of(data)))]
    _write(out / "artikel.csv", ITEM_COLUMNS, items)
    _write(out / "bestellungen.csv", EVENT_COLUMNS, events)
    return len(items), len(events)


def _item(item_id: str, title: str) -> list[str]:
    drawn = hashlib.sha256(item_id.encode()).digest()
    departments = [name for at, name in enumerate(DEPARTMENTS) if drawn[at] % 3 == 0] or [DEPARTMENTS[drawn[8] % 7]]
    price = f"{1 + drawn[9] % 40},{drawn[10] % 10}9"
    about = f'Lieferbar in {1 + drawn[11] % 9} Tagen.\n"{title}": Versand; Rückgabe\nbinnen 30 Tagen, kostenlos'
    return [_item_id(item_id), title, "|".join(departments), price, about, "", "01"]


def _event(at: int, time: int, user: str, item: str) -> list[str]:
    when = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=time)).astimezone(BERLIN)
    return [f"B{at:07}", f"K-{user}", _item_id(item), when.isoformat(), "1", ("web", "app")[at % 3 == 0]]


def _item_id(number: str) -> str:
    return f"A-{int(number):05}"


def _table(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def _write(path: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file, delimiter=";", lineterminator="\r\n")
        writer.writerow(columns)
        writer.writerows(rows)


def main() -> int:
    """Write the exports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the prepared data set")
    parser.add_argument("--out", type=Path, required=True, help="folder of the exports")
    args = parser.parse_args()
    missing = [name for name in ("items.csv", "train.csv", "valid.csv", "test.csv") if not (args.data / name).exists()]
    if missing:
        print(f"{args.data}: lacks {', '.join(missing)}; this reads a prepared data set", file=sys.stderr)  # noqa: T201
        return 2
    items, events = write_exports(args.data, args.out)
    print(f"{args.out}: artikel.csv with {items:,} items, bestellungen.csv with {events:,} events")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
