"""Items and interactions from csv or Parquet files.

Items: ``item_id``, ``title``, and any other columns. Interactions, told apart by their header: one per row
(``user_id``, ``item_id``, ``timestamp`` and perhaps ``rating``), or histories (``history_item_ids``, ``item_id`` and
perhaps ``user_id``, ``timestamp``, ``rating``). Other columns of an interactions file are ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from igd_core.catalogue import Catalogue
from igd_core.data.interactions import Interactions
from igd_core.data.rows import HistoryRows
from igd_core.data.tables import read_table
from igd_core.data.text import clean_title
from igd_core.errors import CatalogueError, DataError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from igd_core.data.tables import SourceTable

T = TypeVar("T")

_INTERACTION_COLUMNS = ("user_id", "item_id", "timestamp")
_HISTORY_COLUMNS = ("history_item_ids", "item_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemsFile:
    """What an items file held.

    Attributes:
        catalogue: the items, in file order, all of frequency 0.
        skipped: ids of the items left out for an empty title or path text.
    """

    catalogue: Catalogue
    skipped: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class InteractionsFile:
    """What an interactions file held.

    Attributes:
        data: interactions or history rows, as the header says.
        dropped: rows left out because their item is not in the catalogue.
        dropped_from_histories: entries left out of the histories of the other rows for the same reason.
    """

    data: Interactions | HistoryRows
    dropped: int
    dropped_from_histories: int = 0


def read_items(
    path: Path,
    *,
    title_column: str = "title",
    path_column: str | None = None,
    multi: Mapping[str, str] | None = None,
    on_empty: Literal["error", "skip"] = "error",
) -> ItemsFile:
    """The catalogue of an items file. Items that share a title are all kept.

    Titles and path texts are cleaned by `clean_title`; every other column becomes metadata, as it is.

    Args:
        path: csv or Parquet.
        title_column: what people are shown.
        path_column: what an item is spelled by for the model; None for the title.
        multi: separator by name of a text column that holds several values in a cell.
        on_empty: what happens to an item whose title or path text is empty once cleaned.

    Raises:
        DataError: the file, or a column it needs.
        CatalogueError: an id or a title that cannot stand in a catalogue; names the item.
    """
    table = read_table(path)
    separators = dict(multi or {})
    for name in separators:
        table.column(name)  # refuses a name that the file does not have
    item_ids: list[str] = table.ids("item_id").to_pylist()
    titles = [clean_title(raw) for raw in table.text(title_column)]
    texts = titles if path_column is None else [clean_title(raw) for raw in table.text(path_column)]
    skipped = [i for i, title in enumerate(titles) if not (title and texts[i])]
    if skipped and on_empty == "error":
        first = skipped[0]
        column = title_column if not titles[first] else path_column
        raise CatalogueError(f"{path}: row {table.first_row + first}: item {item_ids[first]!r}: empty {column}")
    left_out = frozenset(skipped)
    metadata = {
        name: _without(left_out, table.metadata(name, separators.get(name)))
        for name in table.columns
        if name not in {"item_id", title_column, path_column}
    }
    try:
        catalogue = Catalogue.build(
            item_ids=_without(left_out, item_ids),
            titles=_without(left_out, titles),
            texts=_without(left_out, texts),
            metadata=metadata,
        )
    except CatalogueError as error:
        raise CatalogueError(f"{path}: {error}") from None
    return ItemsFile(catalogue=catalogue, skipped=[item_ids[i] for i in skipped])


def read_interactions(
    path: Path, catalogue: Catalogue, *, on_unknown: Literal["error", "drop"] = "error"
) -> InteractionsFile:
    """Interactions or history rows, as the file's header says, in file order.

    With ``on_unknown="drop"``, a row whose item is not in the catalogue is left out, and so is an unknown entry of a
    history, which may leave that history empty; both are counted.

    Raises:
        DataError: the file, a column it needs, a value in it, or an item that is not in the catalogue.
    """
    table = read_table(path)
    known = pa.array(catalogue.item_ids, pa.string())
    if set(_HISTORY_COLUMNS) <= set(table.columns):
        read = _read_history_rows(table, known, drop=on_unknown == "drop")
    elif set(_INTERACTION_COLUMNS) <= set(table.columns):
        read = _read_interaction_rows(table, known, drop=on_unknown == "drop")
    else:
        raise DataError(
            f"{path}: neither {', '.join(_INTERACTION_COLUMNS)} nor {', '.join(_HISTORY_COLUMNS)} columns; "
            f"it has {', '.join(table.columns)}"
        )
    if not len(read.data):
        raise DataError(f"{path}: none of its {read.dropped} rows has an item of the catalogue")
    return read


def _read_interaction_rows(table: SourceTable, known: pa.Array, *, drop: bool) -> InteractionsFile:
    item = _item_index(table, known, drop=drop)
    users = table.ids("user_id").dictionary_encode()
    everything = Interactions(
        user_ids=users.dictionary.to_pylist(),
        user=users.indices.to_numpy(),
        item=item,
        timestamp=table.seconds("timestamp"),
        rating=table.ratings("rating") if "rating" in table.columns else None,
    )
    kept = np.flatnonzero(item >= 0)
    return InteractionsFile(data=everything.take(kept), dropped=len(item) - len(kept))


def _read_history_rows(table: SourceTable, known: pa.Array, *, drop: bool) -> InteractionsFile:
    item = _item_index(table, known, drop=drop)
    lists = table.id_lists("history_item_ids")
    ids = pc.list_flatten(lists)
    row_of = pc.list_parent_indices(lists).to_numpy()
    filled = pc.fill_null(pc.not_equal(ids, ""), True).to_numpy(zero_copy_only=False)  # an empty cell splits into [""]
    history_item = pc.fill_null(pc.index_in(ids, value_set=known), -1).to_numpy()
    unknown = np.flatnonzero(filled & (history_item < 0) & (item[row_of] >= 0))
    if len(unknown) and not drop:
        first = unknown[0]
        raise table.row_error(
            row_of[first], f"history_item_ids: {ids[first].as_py()!r} is not in the catalogue of {len(known)} items"
        )
    kept = np.flatnonzero(item >= 0)
    entries = np.flatnonzero((history_item >= 0) & (item[row_of] >= 0))
    length = np.bincount(row_of[entries], minlength=len(item))[kept]
    users = table.ids("user_id").dictionary_encode() if "user_id" in table.columns else None
    data = HistoryRows(
        history_start=np.concatenate(([0], np.cumsum(length))).astype(np.int64),
        history_item=history_item[entries],
        item=item[kept],
        user_ids=None if users is None else users.dictionary.to_pylist(),
        user=None if users is None else users.indices.to_numpy()[kept],
        timestamp=table.seconds("timestamp")[kept] if "timestamp" in table.columns else None,
        rating=table.ratings("rating")[kept] if "rating" in table.columns else None,
    )
    return InteractionsFile(data=data, dropped=len(item) - len(kept), dropped_from_histories=len(unknown))


def _item_index(table: SourceTable, known: pa.Array, *, drop: bool) -> NDArray[np.int32]:
    """``(n,)`` int32 `ItemIndex` of column item_id, -1 for an unknown item (only with `drop`)."""
    ids = table.ids("item_id")
    index: NDArray[np.int32] = pc.fill_null(pc.index_in(ids, value_set=known), -1).to_numpy()
    unknown = np.flatnonzero(index < 0)
    if len(unknown) and not drop:
        first = unknown[0]
        raise table.row_error(first, f"item_id {ids[first].as_py()!r} is not in the catalogue of {len(known)} items")
    return index


def _without(left_out: frozenset[int], values: Sequence[T]) -> Sequence[T]:
    return [value for i, value in enumerate(values) if i not in left_out] if left_out else values
