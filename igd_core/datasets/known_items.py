"""Which items of a catalogue the ids of a file mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from igd_core.datasets.faults import SHOWN_ROWS, shown

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from igd_core.catalogue.items import Catalogue
    from igd_core.datasets.source_table import SourceTable

UNKNOWN, UNFIT = -1, -2
"""In place of an item: an id that the catalogue does not hold, and what is no id."""


class KnownItems:
    """Turns ids into `ItemIndex`: -1 for one that the catalogue does not hold, -2 for what is no id."""

    def __init__(self, catalogue: Catalogue, *, drop: bool, hint: str) -> None:
        self._catalogue = catalogue
        self._drop = drop
        self._hint = hint

    def index(self, ids: pa.Array) -> NDArray[np.int32]:
        """``(n,)`` int32 of ids; nothing is noted."""
        # Not `pc.index_in`: it would hash the whole catalogue for each batch of rows.
        encoded = ids.dictionary_encode()
        found = [self._catalogue.index_of(each) for each in encoded.dictionary.to_pylist()]
        row_of = np.array([*(UNKNOWN if row is None else row for row in found), UNKNOWN], np.int32)
        codes = pc.fill_null(encoded.indices, len(found)).to_numpy(zero_copy_only=False)
        index: NDArray[np.int32] = row_of[codes]
        return index

    def items(self, table: SourceTable, ids: pa.Array, name: str = "item_id") -> NDArray[np.int32]:
        """``(n,)`` int32 of the column ``name`` of ids, one a row; below 0 what is not in the catalogue or no id."""
        index = self.index(ids)
        index[pc.is_null(ids).to_numpy(zero_copy_only=False)] = UNFIT
        self.note(table, name, np.flatnonzero(index == UNKNOWN), ids)
        return index

    def note(
        self,
        table: SourceTable,
        what: str,
        places: NDArray[np.intp],
        ids: pa.Array,
        row_of: NDArray[np.intp] | None = None,
    ) -> None:
        """Note unknown ids, at these places of ``ids``, unless they are to be dropped."""
        if not len(places):
            return
        rows = table.row[places if row_of is None else row_of[places]]
        reason = f"is not in the catalogue of {len(self._catalogue)} items"
        if self._drop:  # an unknown entry of a history leaves its row where it is
            if row_of is None:
                table.faults.leave_out(what, reason, rows)
            return
        values = ids.take(pa.array(places)).to_pylist()
        first: dict[str, int] = {}
        for at, value in enumerate(values):
            first.setdefault(value, at)
        new = list(first.values())  # different ids before those that come again
        order = np.concatenate([new, np.setdiff1d(np.arange(len(values)), new)]).astype(np.intp)
        table.faults.refused(
            what, reason, rows[order], [shown(values[at]) for at in order[:SHOWN_ROWS]], hint=self._hint
        )
