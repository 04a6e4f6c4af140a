"""Read a catalogue from an items file: ``item_id``, ``title``, and any other columns, which become attributes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow.compute as pc

from igd_core.catalogue.attribute_columns import ColumnValues
from igd_core.catalogue.item_rows import hash_codes, rows_of_equal_codes
from igd_core.catalogue.items import Catalogue, item_id_fault
from igd_core.catalogue.text_columns import packed_texts
from igd_core.datasets.attribute_schema import SHOWN, rules_beside, with_flags
from igd_core.datasets.cleaning import clean_title
from igd_core.datasets.faults import SHOWN_ROWS, shown, told_rows
from igd_core.datasets.sources import DEFAULT_READING, Reading, Source
from igd_core.datasets.tables import open_table
from igd_core.errors import CatalogueError, DataError
from igd_core.ids import MAX_ITEM_ID_CHARS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from igd_core.catalogue.packed_texts import PackedTexts
    from igd_core.datasets.attribute_schema import ColumnRule
    from igd_core.datasets.faults import LeftOut
    from igd_core.datasets.row_places import RowPlaces
    from igd_core.datasets.source_table import SourceTable
    from igd_core.datasets.tables import TableFile

_CONTROL = re.compile(r"[\x01-\x08\x0e-\x1f\x7f-\x9f]")
"""Characters that a title never means; white space, line ends among it, is none, and NUL is a fault."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemsFile:
    """What an items file held.

    Attributes:
        catalogue: the items, in file order, all of frequency 0.
        skipped: ids of the items left out for an empty title or path text.
        rows: ``(num_items,)`` int64; numbers of the items' rows.
        places: where these rows stand, in words.
        left_out: the rows that became no item, by reason.
        bad_rows: rows left out because they cannot be used.
        notes: what a person should know of how the file was read.
    """

    catalogue: Catalogue
    skipped: Sequence[str]
    rows: NDArray[np.int64]
    places: RowPlaces
    left_out: Sequence[LeftOut] = ()
    bad_rows: int = 0
    notes: Sequence[str] = ()


def read_items(
    path: Path | Source,
    *,
    title_column: str = "title",
    path_column: str | None = None,
    multi: Mapping[str, str] | None = None,
    on_empty: Literal["error", "skip"] = "error",
    reading: Reading = DEFAULT_READING,
) -> ItemsFile:
    """The catalogue of an items file. Items that share a title are all kept.

    Titles and path texts are cleaned by `clean_title`; every other column becomes an attribute, of the type that a rule
    gives or that its cells show (`igd_core.datasets.attribute_cells`).

    Args:
        path: csv, JSON lines or Parquet.
        title_column: what people are shown.
        path_column: what an item is spelled by for the model; None for the title.
        multi: separator by name of a text column that holds several values in a cell; changes the rules of ``reading``.
        on_empty: what happens to an item whose title or path text is empty once cleaned.
        reading: how the file is to be read.

    Raises:
        DataError: the file, or what is wrong with its rows.
        CatalogueError: what cannot stand in a catalogue; names the item.
    """
    file = open_table(path, reading, every_key=True)
    rules = rules_beside(Source.of(path).path) if reading.attributes is None else reading.attributes
    rules = with_flags(rules, separators=(multi or {}).items())
    file.require("item_id", title_column, *([path_column] if path_column else []), *rules)
    _check_attribute_names(file, rules, title_column, path_column, hints=reading.hints)
    faults = file.faults()
    table = file.read(faults)
    ids = table.ids("item_id")
    has_id = ids.is_valid().to_numpy(zero_copy_only=False)
    item_ids = packed_texts(pc.fill_null(ids, ""))
    raw = {name: table.text(name) for name in {title_column, path_column or title_column}}
    bad = _unfit_ids(table, item_ids, has_id, raw[title_column])
    spelled = {name: cells.changed(cells.odd_rows(also=b"&"), clean_title) for name, cells in raw.items()}
    titles, texts = spelled[title_column], spelled[path_column or title_column]
    empty = (titles.lengths() == 0) | (texts.lengths() == 0)
    empty &= ~bad
    for at in np.flatnonzero(empty).tolist():  # NUL is noted already
        empty[at] = not any("\x00" in cells[at] for cells in raw.values())
    column_of = {at: path_column if titles.at[at] < titles.at[at + 1] else title_column for at in _true(empty)}
    for column in dict.fromkeys(column_of.values()):
        places = [at for at, which in column_of.items() if which == column]
        if on_empty == "skip":
            faults.leave_out(f"{column} of item", "is empty", table.row[places])
        else:
            faults.refused(
                f"{column} of item",
                "is empty",
                table.row[places],
                [shown(item_ids[at]) for at in places[:5]],
                hint="--on-empty-title skip leaves such items out",
            )
    attributes = {
        name: table.attribute(name, rules.get(name, SHOWN))
        for name in table.columns
        if name not in {"item_id", title_column, path_column} and not rules.get(name, SHOWN).ignored
    }
    faults.check()
    kept = ~(empty | bad | faults.among(table.row))
    left = {name: cells if kept.all() else cells.kept(kept) for name, cells in spelled.items()}
    try:
        catalogue = Catalogue.build(
            item_ids=item_ids if kept.all() else item_ids.kept(kept),
            titles=left[title_column],
            texts=left[path_column or title_column],
            metadata={name: ColumnValues(cells.values).kept(kept) for name, cells in attributes.items()},
            types={name: cells.type for name, cells in attributes.items()},
        )
    except CatalogueError as error:
        raise CatalogueError(f"{file.name}: {error}") from None
    skipped = [item_ids[at] for at in column_of]
    rows = table.row[kept]
    odd = raw[title_column].odd_rows()
    controls = [at for at in odd[kept[odd]].tolist() if _CONTROL.search(raw[title_column][at])]
    notes = told_rows(
        f"{file.name}: title holds control characters, which are read as spaces",
        faults.places,
        table.row[controls],
        [raw[title_column][at] for at in controls[:SHOWN_ROWS]],
    )
    return ItemsFile(
        catalogue=catalogue,
        skipped=skipped,
        rows=rows,
        places=faults.places,
        left_out=faults.left_out,
        bad_rows=faults.skipped,
        notes=[*file.notes, *notes],
    )


def _check_attribute_names(
    file: TableFile, rules: Mapping[str, ColumnRule], title_column: str, path_column: str | None, *, hints: bool
) -> None:
    """See to it that no rule is for the id or the title, and that no attribute is called ``title``.

    Raises:
        DataError: one is.
    """
    for name in ("item_id", "title"):
        if name in rules and name in {"item_id", title_column}:
            raise DataError(f"{file.name}: column {name!r} is no attribute, so it has no type and no missing values")
    taken = "title" in file.columns and "title" not in {title_column, path_column}
    if taken and not rules.get("title", SHOWN).ignored:
        hint = f" (--columns title={title_column} drops it, and so does --type title=ignore)" if hints else ""
        raise DataError(f"{file.name}: column 'title' is beside the title column, {title_column!r}{hint}")


def _unfit_ids(
    table: SourceTable, item_ids: PackedTexts, has_id: NDArray[np.bool_], titles: PackedTexts
) -> NDArray[np.bool_]:
    """Where an id cannot stand in a catalogue, or stood before, ``(n,)``; all but missing ones are noted."""
    is_suspect = item_ids.lengths() > MAX_ITEM_ID_CHARS
    is_suspect[item_ids.odd_rows()] = True
    present = np.flatnonzero(has_id)
    is_suspect[present[rows_of_equal_codes(hash_codes(item_ids)[present])]] = True
    seen: dict[str, int] = {}
    reasons: dict[str, list[int]] = {}
    unfit = ~has_id  # noted when they were read
    for at in _true(is_suspect & has_id):
        item_id = item_ids[at]
        reason = item_id_fault(item_id)
        if not reason and item_id in seen:
            other = ", with another title" if titles[at] != titles[seen[item_id]] else ""
            reason = f"stands on an earlier row too{other}"
        if reason:
            reasons.setdefault(reason, []).append(at)
            unfit[at] = True
        else:
            seen[item_id] = at
    for reason, places in reasons.items():
        table.faults.add("item_id", reason, table.row[places], [shown(item_ids[at]) for at in places[:5]])
    return unfit


def _true(where: NDArray[np.bool_]) -> list[int]:
    places: list[int] = np.flatnonzero(where).tolist()
    return places
