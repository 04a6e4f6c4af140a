"""Read interactions from a file: one a row, or as histories. The columns tell which.

One a row: ``user_id``, ``item_id``, ``timestamp`` and perhaps ``rating``. Histories: ``history_item_ids``, ``item_id``
and perhaps ``user_id``, ``timestamp``, ``rating``. Columns that the caller does not need are neither read nor checked.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from igd_core.datasets.interactions import Interactions
from igd_core.datasets.known_items import UNFIT, UNKNOWN, KnownItems
from igd_core.datasets.rows import HistoryRows
from igd_core.datasets.sources import DEFAULT_READING, Reading, Source
from igd_core.datasets.tables import open_table
from igd_core.datasets.times import TimeColumn
from igd_core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from igd_core.catalogue.items import Catalogue
    from igd_core.datasets.faults import Faults, LeftOut
    from igd_core.datasets.interactions import Seconds
    from igd_core.datasets.row_places import RowPlaces
    from igd_core.datasets.source_table import SourceTable
    from igd_core.datasets.tables import TableFile

T = TypeVar("T")

_MOSTLY = 9
"""Times as many steps back in time as forward, for a file to stand newest first."""

_INTERACTION_COLUMNS = ("user_id", "item_id", "timestamp")
_HISTORY_COLUMNS = ("history_item_ids", "item_id")
OPTIONAL = ("user_id", "timestamp", "rating")
"""Columns of history rows that some callers need."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InteractionsFile:
    """What an interactions file held.

    Attributes:
        data: interactions or history rows, as the header says.
        rows: ``(n,)`` int64; numbers of the rows that are left.
        places: where rows stand, in words.
        left_out: the rows that are not used, by reason; those of other kinds are not among them.
        unknown_rows: ``(m,)`` int64; numbers of the rows left out because their item is not in the catalogue.
        dropped_from_histories: entries left out of the histories of the other rows for the same reason.
        bad_rows: rows left out because they cannot be used.
        other_kinds: rows left out because they are of another kind than those asked for.
        notes: what a person should know of how the file was read.
    """

    data: Interactions | HistoryRows
    rows: NDArray[np.int64]
    places: RowPlaces
    unknown_rows: NDArray[np.int64]
    left_out: Sequence[LeftOut] = ()
    dropped_from_histories: int = 0
    bad_rows: int = 0
    other_kinds: int = 0
    notes: Sequence[str] = ()

    @property
    def dropped(self) -> int:
        """Number of rows left out because their item is not in the catalogue."""
        return len(self.unknown_rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedFile:
    """How often a file's rows chose each item.

    Attributes:
        frequency: ``(num_items,)`` int64.
        dropped: rows left out because their item is not in the catalogue.
        bad_rows: rows left out because they cannot be used.
        notes: what a person should know of how the file was read.
    """

    frequency: NDArray[np.int64]
    dropped: int
    bad_rows: int
    notes: Sequence[str]


def read_interactions(
    path: Path | Source,
    catalogue: Catalogue,
    *,
    on_unknown: Literal["error", "drop"] = "error",
    optional: Sequence[str] = OPTIONAL,
    wanted: Literal["any", "interactions", "histories"] = "any",
    reading: Reading = DEFAULT_READING,
) -> InteractionsFile:
    """Interactions or history rows, as the file's columns say, in file order.

    Interactions of one time keep that order; where each person's stand newest first, all are taken in reverse.

    With ``on_unknown="drop"``, a row whose item is not in the catalogue is left out, and so is an unknown entry of a
    history, which may leave that history empty; both are counted.

    Args:
        path: csv, JSON lines or Parquet.
        catalogue: whose items the ids are.
        on_unknown: what becomes of other items.
        optional: which columns of history rows, and whether the ratings of interactions, are needed where they exist.
        wanted: which kind of rows; the other kind is refused before it is read.
        reading: how the file is to be read.

    Raises:
        DataError: the file, a column it needs, or what is wrong with its rows.
    """
    file = open_table(path, reading)
    known = KnownItems(catalogue, drop=on_unknown == "drop", hint=reading.unknown_hint)
    if set(_HISTORY_COLUMNS) <= set(file.columns):
        if wanted == "interactions":
            raise DataError(f"{file.name}: these are history rows already; `igd build` and training read them as is")
        return _read_history_rows(file, known, [name for name in OPTIONAL if name in optional and name in file.columns])
    if set(_INTERACTION_COLUMNS) <= set(file.columns):
        if wanted == "histories":
            raise DataError(
                f"{file.name}: single interactions; history rows are needed, history_item_ids and item_id, as "
                "`igd data prepare` writes them"
            )
        return _read_interaction_rows(
            file, known, rating="rating" in optional and "rating" in file.columns, kinds=reading.kinds
        )
    raise DataError(
        f"{file.name}: neither {', '.join(_INTERACTION_COLUMNS)} nor {', '.join(_HISTORY_COLUMNS)} columns; "
        f"it has {', '.join(file.columns[:30])}" + (" (--columns OURS=THEIRS names them)" if reading.hints else "")
    )


def tells_sequences(path: Path | Source, reading: Reading = DEFAULT_READING) -> bool:
    """Whether the columns say who chose what, in which order, as `read_interactions` needs it.

    Raises:
        DataError: the file cannot be read.
    """
    columns = set(open_table(path, reading).columns)
    return set(_HISTORY_COLUMNS) <= columns or set(_INTERACTION_COLUMNS) <= columns


def count_items(
    path: Path | Source,
    catalogue: Catalogue,
    *,
    on_unknown: Literal["error", "drop"] = "error",
    reading: Reading = DEFAULT_READING,
) -> CountedFile:
    """How often each item was chosen; of the file, column item_id alone is read. Memory does not grow with the file.

    Raises:
        DataError: the file, or what is wrong with its rows.
    """
    file = open_table(path, reading)
    known = KnownItems(catalogue, drop=on_unknown == "drop", hint=reading.unknown_hint)
    faults = file.faults()
    frequency = np.zeros(len(catalogue), np.int64)
    rows = dropped = 0
    for table in file.batches(["item_id"], faults):
        item = known.items(table, table.ids("item_id"))
        frequency += np.bincount(item[item >= 0], minlength=len(catalogue))
        rows += len(item)
        dropped += int((item == UNKNOWN).sum())
    _check_rows(file, faults, rows=rows, kept=int(frequency.sum()))
    return CountedFile(frequency=frequency, dropped=dropped, bad_rows=faults.skipped, notes=file.notes)


@dataclass(slots=True, kw_only=True)
class _Users:
    """Distinct users over all batches."""

    code: dict[str, int] = field(default_factory=dict)

    def codes(self, ids: pa.Array) -> NDArray[np.int32]:
        """``(n,)`` int32, -2 for what is no id."""
        encoded = pc.dictionary_encode(ids)
        of_batch = np.array(
            [*(self.code.setdefault(each, len(self.code)) for each in encoded.dictionary.to_pylist()), UNFIT], np.int32
        )
        codes: NDArray[np.int32] = of_batch[pc.fill_null(encoded.indices, len(of_batch) - 1).to_numpy()]
        return codes

    def named(self, codes: NDArray[np.int32]) -> tuple[list[str], NDArray[np.int32]]:
        """The users that rows are left of, in order of appearance, and the rows' codes among them."""
        names = list(self.code)
        found, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
        order = np.argsort(first)
        rank = np.empty(len(order), np.int32)
        rank[order] = np.arange(len(order))
        return [names[code] for code in found[order].tolist()], rank[inverse].astype(np.int32)


@dataclass(slots=True, kw_only=True)
class _Kinds:
    """Rows of the kinds that are asked for; ``others`` and ``found`` tell what else there was."""

    wanted: Sequence[str]
    others: int = 0
    found: set[str] = field(default_factory=set)

    def of(self, table: SourceTable) -> SourceTable:
        """A batch without the rows of other kinds."""
        if not self.wanted:
            return table
        kinds = pc.fill_null(table.column("kind").cast(pa.string()), "")
        keeps = pc.is_in(kinds, value_set=pa.array(self.wanted, pa.string()))
        self.found.update(pc.unique(kinds).to_pylist())
        self.others += len(table) - int(pc.sum(keeps).as_py() or 0)
        return replace(table, row=table.row[keeps.to_numpy(zero_copy_only=False)], data=table.data.filter(keeps))

    def check(self, name: str, *, rows: int) -> None:
        """Raise if no row is left."""
        if self.wanted and self.others and not rows:
            found = ", ".join(sorted(self.found)[:10])
            raise DataError(f"{name}: no row is of kind {' or '.join(self.wanted)}; there are {found}")


def _read_interaction_rows(
    file: TableFile, known: KnownItems, *, rating: bool, kinds: Sequence[str]
) -> InteractionsFile:
    faults = file.faults()
    users, times, of_kinds = _Users(), TimeColumn(), _Kinds(wanted=kinds)
    items, codes, ratings, rows = [], [], [], []
    names = [*_INTERACTION_COLUMNS, *(["rating"] if rating else []), *(["kind"] if kinds else [])]
    for table in map(of_kinds.of, file.batches(names, faults)):
        items.append(known.items(table, table.ids("item_id")))
        codes.append(users.codes(table.ids("user_id")))
        times.add(table, "timestamp")
        if rating:
            ratings.append(table.ratings("rating"))
        rows.append(table.row)
    row, item, code = _whole(rows, np.int64), _whole(items, np.int32), _whole(codes, np.int32)
    time = times.check(faults, row, "timestamp")
    kept = np.flatnonzero((item >= 0) & ~faults.among(row))
    of_kinds.check(file.name, rows=len(row))
    _check_rows(file, faults, rows=len(row), kept=len(kept))
    notes = list(file.notes)
    if ties_stand_newest_first(code[kept], time.seconds(kept)):
        kept = kept[::-1]
        notes.append(f"{file.name}: each person's rows stand newest first; those of one time are taken in reverse too")
    user_ids, user = users.named(code[kept])
    data = Interactions(
        user_ids=user_ids,
        user=user,
        item=item[kept],
        timestamp=time.seconds(kept),
        rating=_whole(ratings, np.float64)[kept] if rating else None,
    )
    return InteractionsFile(
        data=data,
        rows=row[kept],
        places=faults.places,
        unknown_rows=row[(item == UNKNOWN) & ~faults.among(row)],
        left_out=faults.left_out,
        bad_rows=faults.skipped,
        other_kinds=of_kinds.others,
        notes=notes,
    )


def ties_stand_newest_first(user: NDArray[np.int32], seconds: Seconds) -> bool:
    """Whether a person's rows stand newest first, and some of one time: the file's order is then theirs in reverse.

    >>> ties_stand_newest_first(np.array([0, 0, 0, 1]), np.array([20, 10, 10, 30]))
    True
    >>> ties_stand_newest_first(np.array([0, 0, 0, 1]), np.array([10, 10, 20, 30]))
    False

    Args:
        user: ``(n,)``, of each row, in file order.
        seconds: ``(n,)``, likewise.
    """
    by_user = np.argsort(user, kind="stable")
    same = np.diff(user[by_user]) == 0
    steps, of = np.diff(seconds[by_user])[same], user[by_user][1:][same]
    falling, rising, tied = steps < 0, int((steps > 0).sum()), steps == 0
    if not tied.any() or falling.sum() <= _MOSTLY * rising:
        return False
    return 2 * len(np.unique(of[falling])) >= len(np.unique(of[tied]))  # many persons show it, not a row at the end


def _read_history_rows(file: TableFile, known: KnownItems, optional: Sequence[str]) -> InteractionsFile:
    faults = file.faults()
    users, times = _Users(), TimeColumn()
    items, codes, ratings, rows, entries, lengths = [], [], [], [], [], []
    unknown = 0
    for table in file.batches([*_HISTORY_COLUMNS, *optional], faults):
        item = known.items(table, table.ids("item_id"))
        history = _history_entries(table, known, item)
        unknown += history.unknown
        items.append(item)
        entries.append(history.item)
        lengths.append(history.length)
        rows.append(table.row)
        if "user_id" in optional:
            codes.append(users.codes(table.ids("user_id")))
        if "timestamp" in optional:
            times.add(table, "timestamp")
        if "rating" in optional:
            ratings.append(table.ratings("rating"))
    row, item, length = _whole(rows, np.int64), _whole(items, np.int32), _whole(lengths, np.int64)
    time = times.check(faults, row, "timestamp") if "timestamp" in optional else None
    keeps = (item >= 0) & ~faults.among(row)
    kept = np.flatnonzero(keeps)
    _check_rows(file, faults, rows=len(row), kept=len(kept))
    user_ids, user = users.named(_whole(codes, np.int32)[kept]) if codes else (None, None)
    data = HistoryRows(
        history_start=np.concatenate(([0], np.cumsum(length[kept]))).astype(np.int64),
        history_item=_whole(entries, np.int32)[np.repeat(keeps, length)],
        item=item[kept],
        user_ids=user_ids,
        user=user,
        timestamp=None if time is None else time.seconds(kept),
        rating=_whole(ratings, np.float64)[kept] if ratings else None,
    )
    return InteractionsFile(
        data=data,
        rows=row[kept],
        places=faults.places,
        left_out=faults.left_out,
        unknown_rows=row[(item == UNKNOWN) & ~faults.among(row)],
        dropped_from_histories=unknown,
        bad_rows=faults.skipped,
        notes=file.notes,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entries:
    """Known entries of the histories of a batch: ``item`` is ``(sum(length),)``, ``length`` is ``(n,)``."""

    item: NDArray[np.int32]
    length: NDArray[np.int64]
    unknown: int


def _history_entries(table: SourceTable, known: KnownItems, target: NDArray[np.int32]) -> _Entries:
    lists = table.id_lists("history_item_ids")
    ids = pc.list_flatten(lists)
    row_of = pc.list_parent_indices(lists).to_numpy()
    index = known.index(ids)
    filled = pc.fill_null(pc.not_equal(ids, ""), True).to_numpy(zero_copy_only=False)  # an empty cell splits into [""]
    unknown = np.flatnonzero(filled & (index < 0) & (target[row_of] >= 0))
    known.note(table, "history_item_ids", unknown, ids, row_of)
    kept = np.flatnonzero(index >= 0)
    return _Entries(
        item=index[kept], length=np.bincount(row_of[kept], minlength=len(target)).astype(np.int64), unknown=len(unknown)
    )


def _check_rows(file: TableFile, faults: Faults, *, rows: int, kept: int) -> None:
    """Raise what is wrong with the rows, or that none is left."""
    faults.check()
    if not rows and not faults.skipped:
        raise DataError(f"{file.name}: no rows below the header")
    if not kept and faults.skipped >= rows:
        raise DataError(
            f"{file.name}: none of its {faults.skipped} rows can be used; without --on-bad-row skip it is told why"
        )
    if not kept:
        left_out = f" ({faults.skipped} cannot be used)" if faults.skipped else ""
        raise DataError(f"{file.name}: none of its {rows} rows has an item of the catalogue{left_out}")


def _whole(parts: Sequence[NDArray[T]], dtype: type) -> NDArray[T]:  # type: ignore[type-var]
    return np.concatenate(parts) if parts else np.empty(0, dtype)
