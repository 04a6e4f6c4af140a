"""What the cells of an export's columns show, whatever the columns are called: ids, times, numbers, lists, texts."""

from __future__ import annotations

import functools
import re
from collections import Counter
from dataclasses import dataclass, replace
from datetime import UTC
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from igd_core.datasets.decimals import NAMES, PLAIN, read_by
from igd_core.timestamps import Form, NotAnInstant, dotted_as_iso, instant_of, latest_us

if TYPE_CHECKING:
    from igd_core.datasets.source_table import SourceTable

_SAMPLED = 2_000
_WRITTEN = (Form.ISO, Form.LOCAL, Form.DAY)
_MONTH = "(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*"
_DATE_LIKE = (
    r"(?i)^(0?[1-9]|[12][0-9]|3[01])[./-](0?[1-9]|[12][0-9]|3[01])[./-]([0-9]{4}|[0-9]{2})(,? [0-9]|$)"  # 12/31/24
    r"|^(19|20)[0-9]{2}[./-][0-9]{1,2}[./-][0-9]{1,2}( [0-9]|$)"  # 2024/12/31
    r"|^(19|20)[0-9]{2}(0[1-9]|1[0-2])(0[1-9]|[12][0-9]|3[01])$"  # 20241231
    rf"|^([a-z]{{3,9}},? )?{_MONTH}\.? [0-9]{{1,2}}(,? [0-9]|$)"  # Thu Dec 31 2024
    rf"|^[0-9]{{1,2}}[ -]{_MONTH}[ -][0-9]"  # 31 Dec 2024
    r"|^[0-9]{2} [0-9]{1,2}, [0-9]{4}$"  # 12 31, 2024
)
_LIST_SEPARATORS = ("|", ";", "/", ",")
_SURE_SEPARATORS = frozenset({"|", ";"})
_MOST_PART_CHARS = 40
_LONG_TEXT = 300
"""Characters of a mean cell from which a text describes, and is nothing that a filter would name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnProfile:
    """A column, by a sample of its cells.

    Attributes:
        name: as the file has it.
        cells: ``(rows,)`` text of every row, trimmed; null where a cell is empty. None for lists, and for cells of
            several parts.
        filled: share of cells that are not empty.
        distinct: distinct filled cells over filled cells.
        sample: some filled cells, evenly drawn.
    """

    name: str
    cells: pa.Array | None
    filled: float
    distinct: float
    sample: tuple[str, ...]

    @staticmethod
    def of(table: SourceTable, name: str) -> ColumnProfile:
        """The profile of one column of ``table``."""
        column = table.column(name)
        try:
            cells = pc.utf8_trim_whitespace(column.cast(pa.string()))
        except pa.ArrowException:  # lists, and what has parts
            return ColumnProfile(name=name, cells=None, filled=1.0, distinct=0.0, sample=())
        cells = pc.if_else(pc.equal(cells, ""), pa.scalar(None, pa.string()), cells)
        filled = pc.drop_null(cells)
        step = max(1, len(filled) // _SAMPLED)
        return ColumnProfile(
            name=name,
            cells=cells,
            filled=len(filled) / max(1, len(cells)),
            distinct=len(pc.unique(filled)) / max(1, len(filled)),
            sample=tuple(filled.take(pa.array(np.arange(0, len(filled), step)))[:_SAMPLED].to_pylist()),
        )

    @property
    def is_list(self) -> bool:
        """Whether its cells are lists or have parts already, as Parquet and JSON have them."""
        return self.cells is None

    @property
    def times(self) -> Counter[Form]:
        """How the sample's cells are written as times; `Form.NONE` counts those that are none."""
        return _times_of(self.sample)

    @property
    def is_time(self) -> bool:
        """Whether most cells are times. Numbers that are may as well be ids: 9 to 21 digits are times of some unit."""
        return bool(self.sample) and self.times[Form.NONE] < len(self.sample) / 2

    @property
    def is_written_time(self) -> bool:
        """Whether most cells are times as texts, which are nothing else."""
        return bool(self.sample) and 2 * sum(self.times[form] for form in _WRITTEN) > len(self.sample)

    @property
    def is_date_like(self) -> bool:
        """Whether most cells look like days or times that are written in another way than `is_time` knows."""
        return not self.is_list and self._share_of(_DATE_LIKE) > 0.5

    @property
    def is_number(self) -> bool:
        """Whether most cells are numbers as programs write them."""
        return self._share_of(PLAIN) > 0.5

    @property
    def is_fraction(self) -> bool:
        """Whether cells are numbers with a fraction, which no id is."""
        return self.is_number and self._share_of(r"^-?[0-9]+\.[0-9]+$") > 0.5

    @property
    def is_whole_number(self) -> bool:
        """Whether most cells are whole numbers, as counts and places in a list are too."""
        return self._share_of(r"^[0-9]+$") > 0.5

    @property
    def without_zeros(self) -> ColumnProfile:
        """The column with leading zeros taken off."""
        cells = None if self.cells is None else pc.replace_substring_regex(self.cells, r"^0+([0-9])", r"\1")
        return replace(self, cells=cells)

    @property
    def is_words(self) -> bool:
        """Whether most cells hold letters, and many of them more than a code does."""
        return self._share_of(r"\p{L}{2}") > 0.5 and self._share_of(r"\p{L}.*[ \p{Ll}]{2}") > 0.3

    @property
    def is_id(self) -> bool:
        """Whether cells may be ids: filled, no lists, no fractions."""
        return not self.is_list and self.filled > 0.5 and not self.is_fraction

    @property
    def is_description(self) -> bool:
        """Whether it holds long texts, texts of several lines, or pages with markup."""
        if not self.sample:
            return False
        if self._share_of(r"</[A-Za-z]|<[A-Za-z]+ ?/?>") > 0.5 and self._mean_chars > _MOST_PART_CHARS:
            return True
        several = sum("\n" in cell.strip() for cell in self.sample)
        return 2 * several > len(self.sample) or self._mean_chars > _LONG_TEXT

    @property
    def _mean_chars(self) -> float:
        return sum(map(len, self.sample)) / max(1, len(self.sample))

    @property
    def decimal(self) -> str | None:
        """``comma`` or ``point`` where cells are numbers by that convention and by no other; None where none is needed.

        ``12,99`` is a number by the comma alone; ``1,299`` is one by both, and decides nothing.
        """
        if not self.sample or self.is_time:
            return None
        cells = pa.array(self.sample, pa.string())
        found = {NAMES[sign]: int(reads.sum()) for sign, reads in read_by(cells, None).items()}
        alone = {name: count - min(found.values()) if len(found) > 1 else count for name, count in found.items()}
        plain = self._share_of(PLAIN) * len(self.sample)
        fitting = [name for name, count in found.items() if alone[name] and count + plain > len(self.sample) / 2]
        return fitting[0] if len(fitting) == 1 else None

    @property
    def separator(self) -> str | None:
        """What stands between the values of a list in one cell; None where cells hold one value.

        A separator counts where a tenth of the cells have it, and its parts are short and come again in other cells.
        """
        if self.is_list or self.is_number or self.is_time or self.is_date_like or not self.sample:
            return None
        for separator in _LIST_SEPARATORS:
            several = [cell for cell in self.sample if separator in cell.strip(separator)]
            if len(several) < max(2, len(self.sample) / 10):
                continue
            parts = [part.strip() for cell in self.sample for part in cell.split(separator)]
            most = 1.0 if separator in _SURE_SEPARATORS else 0.5
            short = sum(map(len, parts)) / len(parts) <= _MOST_PART_CHARS
            if all(parts) and short and len(set(parts)) / len(parts) < most:
                return separator
        return None

    def _share_of(self, pattern: str) -> float:
        if not self.sample:
            return 0.0
        found = pc.match_substring_regex(pa.array(self.sample, pa.string()), pattern)
        return float(pc.mean(found.cast(pa.int8())).as_py())

    def among(self, others: pa.Array) -> float:
        """Share of its filled cells that are among ``others``."""
        filled = pc.drop_null(self.cells) if self.cells is not None else pa.array([], pa.string())
        return float(pc.mean(pc.is_in(filled, value_set=others).cast(pa.int8())).as_py()) if len(filled) else 0.0


@functools.lru_cache(maxsize=256)
def _times_of(sample: tuple[str, ...]) -> Counter[Form]:
    return Counter(map(_form_of, sample))


def _form_of(cell: str) -> Form:
    try:
        found = instant_of(dotted_as_iso(cell), zone=UTC)
    except NotAnInstant:
        return Form.NONE
    # No event lies ahead, and no time begins with a zero: such numbers are ids.
    if found.form not in _WRITTEN and (found.us > latest_us() or cell.startswith("0")):
        return Form.NONE
    return found.form


def is_like_a_time(text: str) -> bool:
    """Whether a text is a time, as files have them in any way of writing."""
    return _form_of(text) != Form.NONE or re.search(_DATE_LIKE, text) is not None
