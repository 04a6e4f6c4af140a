"""Read Parquet, a batch of rows at a time, on this thread alone.

Arrow's reader of whole tables starts threads of its own. If a refused file ended the process while they ran, one exit
in twenty was an abort (exit code 134). No other thread takes part here.

The size of a file unpacked is known before it is unpacked: of pages by their headers (`parquet_pages`), of dictionary
texts by their lengths. Unknown are dictionary texts within lists, which Arrow reads in no other form across groups of
rows, and texts that repeat the beginning of the one before (DELTA_BYTE_ARRAY). The check takes 0.4 s of CPU for a
million rows of two ids (0.8 instead of 0.4 s).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from igd_core.datasets.parquet_pages import PageFault, check_pages
from igd_core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from igd_core.datasets.faults import Faults
    from igd_core.datasets.sources import Source

MOST_TEXT_BYTES = 1 << 30
"""The most bytes of a column's texts in one batch of at most 65,536 rows."""
_TEXTS = frozenset({"string", "large_string", "binary", "large_binary"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ParquetRows:
    """The rows of a Parquet file.

    Attributes:
        columns: names, in file order.
        notes: always empty.
        source: the file.
    """

    columns: Sequence[str]
    source: Source
    notes: Sequence[str] = ()

    def batches(
        self, positions: Sequence[int], batch_rows: int, faults: Faults
    ) -> Iterator[tuple[NDArray[np.int64], list[pa.Array]]]:
        """Row numbers, from 1, and the columns at these positions.

        Raises:
            DataError: the file is damaged, or unpacks to more than it says or than the limit.
        """
        names = [self.columns[place] for place in positions]
        done = 0
        try:
            repeated = self._checked(names)
            with pq.ParquetFile(self.source.path, pre_buffer=False, read_dictionary=repeated) as file:
                for batch in file.iter_batches(batch_rows, columns=names, use_threads=False):
                    columns = [_unpacked(name, batch.column(name)) for name in names]
                    yield np.arange(done + 1, done + 1 + len(batch)), columns
                    done += len(batch)
        except PageFault as error:
            raise DataError(f"{faults.name}: {error}") from None
        except (pa.ArrowException, OSError, MemoryError, ValueError, KeyError) as error:
            raise DataError(f"{faults.name}: row {done + 1}: {_told(error)}") from None

    def _checked(self, names: Sequence[str]) -> list[str]:
        """Check the pages of these columns; returns the columns whose texts are in a dictionary."""
        footer = pq.read_metadata(self.source.path)
        leaves = [footer.schema.column(place) for place in range(len(footer.schema))]
        within = tuple(f"{name}." for name in names)
        wanted = [at for at, leaf in enumerate(leaves) if leaf.path in names or leaf.path.startswith(within)]
        check_pages(self.source.path, footer, wanted)
        return [
            leaves[place].path
            for place in wanted
            if leaves[place].path in names
            and leaves[place].physical_type == "BYTE_ARRAY"
            and any(footer.row_group(at).column(place).has_dictionary_page for at in range(footer.num_row_groups))
        ]


def open_parquet(source: Source) -> ParquetRows:
    """Open a Parquet file and read its column names.

    Raises:
        DataError: it is cut short or damaged.
    """
    try:
        with pq.ParquetFile(source.path, pre_buffer=False) as file:
            return ParquetRows(columns=list(file.schema_arrow.names), source=source)
    except (pa.ArrowException, OSError, MemoryError, ValueError) as error:
        raise DataError(f"{source.name}: {_told(error)}") from None


def _unpacked(name: str, column: pa.Array) -> pa.Array:
    """Decode a column's dictionary after checking that the result is small enough; bytes that are not text stay bytes.

    Raises:
        PageFault: the result would be too large.
        ArrowException: the column is damaged.
    """
    if isinstance(column, pa.DictionaryArray) and str(column.type.value_type) in _TEXTS:
        lengths = pc.take(pc.binary_length(column.dictionary), column.indices)
        total = pc.sum(lengths.cast(pa.int64())).as_py() or 0
        if total > MOST_TEXT_BYTES:
            raise PageFault(f"column {name!r}: {len(column)} rows of {total} bytes; at most {MOST_TEXT_BYTES} are read")
        column = column.dictionary.take(column.indices)
    return _readable(column)


def _readable(column: pa.Array) -> pa.Array:
    """A text column, or the same as bytes where some are not text, for the rows to be judged one by one.

    Raises:
        ArrowException: the column is damaged.
    """
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        if not pa.types.is_string(column.type):
            raise
        return column.cast(pa.binary())
    return column


def _told(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
