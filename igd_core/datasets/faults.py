"""Collect the faults of all rows of a file, and report them together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from igd_core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

SHOWN_ROWS = 5
_MAX_CHARS = 60


@dataclass(slots=True, kw_only=True)
class _Kind:
    rows: int = 0
    first: list[tuple[int, str]] = field(default_factory=list)


class Faults:
    """The faults of one file by kind: a count, and the first five rows with their values.

    Where a flag allows a fault, the row is skipped, counted in `skipped`, and not reported.
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

    @property
    def skipped(self) -> int:
        """Number of rows skipped for a fault."""
        return len(self._skipped)

    def among(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each of these rows, ``(n,)``, is skipped."""
        return np.isin(rows, np.fromiter(self._skipped, np.int64, len(self._skipped)))

    def places(self, rows: NDArray[np.int64]) -> frozenset[int]:
        """Positions, among these rows, of the skipped ones."""
        return frozenset(np.flatnonzero(self.among(rows)).tolist())

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
            return
        self.refused(what, reason, rows, values, hint=_joined(hint, "--on-bad-row skip leaves such rows out"))

    def refused(
        self, what: str, reason: str, rows: Sequence[int] | NDArray[np.int64], values: Sequence[str], *, hint: str = ""
    ) -> None:
        """Note a kind of fault that refuses the file even where faulty rows are skipped."""
        if not len(rows):
            return
        kind = self._kinds.setdefault((what, reason, hint), _Kind())
        kind.rows += len(rows)
        for row, value in zip(rows[: SHOWN_ROWS - len(kind.first)], values, strict=False):
            kind.first.append((int(row), _short(value)))

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
            raise DataError(f"{self.name}: row {row}: {_spaced(what, value, reason)}{self._hint(hint)}")
        lines = [f"{self.name}: {total:,} faults of {len(self._kinds)} kind{'s' * (len(self._kinds) > 1)}"]
        for (what, reason, hint), kind in self._kinds.items():
            shown = ", ".join(_spaced(f"row {row}", value) for row, value in kind.first)
            more = ", ..." if kind.rows > len(kind.first) else ""
            count = f"{kind.rows:,} row{'s' * (kind.rows > 1)}"
            lines.append(f"  {_spaced(what, reason)}: {count}: {shown}{more}{self._hint(hint)}")
        raise DataError("\n".join(lines))

    def _hint(self, hint: str) -> str:
        return f" ({hint})" if hint and self._hints else ""


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
