"""A file's column of times, joined from batches: all rows have one form, and none lies in the future."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from igd_core.datasets.faults import SHOWN_ROWS, shown
from igd_core.timestamps import Form, latest_us

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from igd_core.datasets.faults import Faults
    from igd_core.datasets.interactions import Seconds
    from igd_core.datasets.source_table import SourceTable


class TimeColumn:
    """The times of all rows."""

    def __init__(self) -> None:
        self._us: list[NDArray[np.int64]] = []
        self._form: list[NDArray[np.int8]] = []
        self._first: dict[Form | None, list[str]] = {}  # as written; None: those that lie ahead

    def add(self, table: SourceTable, name: str) -> None:
        """Read the column of one batch."""
        read = table.instants(name)
        late = read.us > latest_us()
        for form in (None, *Form):
            first = self._first.setdefault(form, [])
            if len(first) < SHOWN_ROWS:
                at = np.flatnonzero(late if form is None else read.form == form)[: SHOWN_ROWS - len(first)]
                first += [_shown(table.column(name)[place].as_py()) for place in at.tolist()]
        self._us.append(read.us)
        self._form.append(read.form)

    def check(self, faults: Faults, row: NDArray[np.int64], name: str) -> TimeColumn:
        """Note times in another form than most rows, and times more than a day ahead; returns itself.

        Args:
            faults: of the file.
            row: ``(n,)`` numbers of all rows.
            name: of the column.
        """
        us = self._us = [np.concatenate(self._us)] if self._us else [np.empty(0, np.int64)]
        form = np.concatenate(self._form) if self._form else np.empty(0, np.int8)
        read = form != Form.NONE
        count = np.bincount(form[read], minlength=len(Form))
        most = Form(int(count.argmax()))
        for other in Form:
            places = np.flatnonzero(form == other)
            if other in {Form.NONE, most} or not len(places):
                continue
            reason = f"is {other.told}, where {count[most]:,} rows are {most.told}"
            faults.add(name, reason, row[places], self._first[other])
        late = np.flatnonzero(us[0] > latest_us())
        faults.add(name, "is more than a day ahead of this machine's clock", row[late], self._first.get(None, []))
        return self

    def seconds(self, kept: NDArray[np.intp]) -> Seconds:
        """Seconds since 1970 of some rows, ``(n,)``; int64 where all are whole."""
        us = self._us[0][kept]
        return us / 1e6 if (us % 1_000_000).any() else us // 1_000_000


def _shown(value: object) -> str:
    """A cell as it stands in the file; times of Parquet in ISO 8601."""
    return shown(value if isinstance(value, str | int | float) else str(value))
