"""Collect the faults of all rows of a file, and report them together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from igd_core.datasets.row_places import RowPlaces
from igd_core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

SHOWN_ROWS = 5
_MAX_CHARS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """Rows that were left out for one reason: ``reason`` ends a sentence that begins with the column ``what``."""

    what: str
    reason: str
    rows: NDArray[np.int64]


@dataclass(slots=True, kw_only=True)
class _Kind:
    rows: int = 0
    first: list[tuple[int, str]] = field(default_factory=list)

    def show(self, row: int, value: str) -> None:
        """Add a row to the first ones; if there are enough, in place of one that repeats a value, if this is new."""
        if len(self.first) < SHOWN_ROWS:
            self.first.append((row, value))
            return
        values = [shown for _, shown in self.first]
        if value not in values:
            twice = [at for at in range(1, SHOWN_ROWS) if values[at] in values[:at]]
            if twice:
                self.first[twice[-1]] = row, value


class Faults:
    """The faults of one file by kind: a count, and the first five rows with their values, different ones if there are.

    Where a flag allows a fault, the row is skipped, counted in `skipped`, and not reported.

    Attributes:
        name: of the file.
        skip_rows: whether faulty rows are skipped.
        places: where the rows stand.
        left_out: the rows that are skipped, or left out for another reason, by kind.
    """

    def __init__(self, name: str, *, skip_rows: bool = False, hints: bool = False) -> None:
        """``name``: the file's; ``skip_rows``: skip faulty rows instead of refusing the file.

        With ``hints`` a report names the flags of the command line.
        """
        self.name = name
        self.skip_rows = skip_rows
        self._hints = hints
        self._kinds: dict[tuple[str, str, str], _Kind] = {}
        self._skipped: set[int] = set()
        self.places = RowPlaces()
        self.left_out: list[LeftOut] = []

    @property
    def skipped(self) -> int:
        """Number of rows skipped for a fault."""
        return len(self._skipped)

    def among(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each of these rows, ``(n,)``, is skipped."""
        return np.isin(rows, np.fromiter(self._skipped, np.int64, len(self._skipped)))

    def add(
        self, what: str, reason: str, rows: Sequence[int] | NDArray[np.int64], values: Sequence[str], *, hint: str = ""
    ) -> None:
        """Note a kind of fault in some rows.

        Args:
            what: the column, ``timestamp``.
            reason: the end of a sentence that begins with the value: ``is empty``.
            rows: row numbers, as messages give them.
            values: the values of the first of these rows, as messages show them.
            hint: a flag that allows this kind of fault, besides ``--on-bad-row``.
        """
        if not len(rows):
            return
        if self.skip_rows:
            self._skipped.update(int(row) for row in rows)
            self.leave_out(what, reason, rows)
            return
        self.refused(what, reason, rows, values, hint=_joined(hint, "--on-bad-row skip leaves such rows out"))

    def leave_out(self, what: str, reason: str, rows: Sequence[int] | NDArray[np.int64]) -> None:
        """Note rows that are left out, for `left_out`; whether they count as `skipped` is another matter."""
        if len(rows):
            self.left_out.append(LeftOut(what=what, reason=reason, rows=np.asarray(rows, np.int64)))

    def refused(
        self, what: str, reason: str, rows: Sequence[int] | NDArray[np.int64], values: Sequence[str], *, hint: str = ""
    ) -> None:
        """Note a kind of fault that refuses the file even where faulty rows are skipped."""
        if not len(rows):
            return
        kind = self._kinds.setdefault((what, reason, hint), _Kind())
        kind.rows += len(rows)
        for row, value in zip(rows, values, strict=False):
            kind.show(int(row), _short(value))

    def check(self) -> None:
        """Raise if any fault has been noted.

        Raises:
            DataError: a line for a single fault; else a line for each kind.
        """
        if not self._kinds:
            return
        total = sum(kind.rows for kind in self._kinds.values())
        if total == 1:
            ((what, reason, hint), kind), *_ = self._kinds.items()
            row, value = kind.first[0]
            raise DataError(f"{self.name}: {self.places.told(row)}: {_spaced(what, value, reason)}{self._hint(hint)}")
        lines = [f"{self.name}: {total:,} faults of {len(self._kinds)} kind{'s' * (len(self._kinds) > 1)}"]
        for (what, reason, hint), kind in self._kinds.items():
            shown = ", ".join(_spaced(self.places.told(row), value) for row, value in sorted(kind.first))
            more = ", ..." if kind.rows > len(kind.first) else ""
            count = f"{kind.rows:,} row{'s' * (kind.rows > 1)}"
            lines.append(f"  {_spaced(what, reason)}: {count}: {shown}{more}{self._hint(hint)}")
        raise DataError("\n".join(lines))

    def _hint(self, hint: str) -> str:
        return f" ({hint})" if hint and self._hints else ""


def told_rows(
    what: str, places: RowPlaces, rows: Sequence[int] | NDArray[np.int64], values: Sequence[object]
) -> list[str]:
    """A line that says what is so in some rows, with the first of them and their values; no line for no rows."""
    if not len(rows):
        return []
    first = ", ".join(f"{places.told(int(row))} {shown(value)}" for row, value in zip(rows, values, strict=False))
    more = ", ..." if len(rows) > len(values) else ""
    return [f"{what}: {len(rows):,} row{'s' * (len(rows) > 1)}: {first}{more}"]


def shown(value: object) -> str:
    """A value as messages show it: quoted, on one line, short."""
    if isinstance(value, str):
        return _short(repr(value[: 2 * _MAX_CHARS]))
    return _short(repr(value))


def _short(text: str) -> str:
    return text if len(text) <= _MAX_CHARS else text[:_MAX_CHARS] + "..."


def _joined(*hints: str) -> str:
    return "; ".join(filter(None, hints))


def _spaced(*words: str) -> str:
    return " ".join(filter(None, words))
