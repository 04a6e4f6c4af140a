"""Parquet, a batch of rows at a time, on this thread alone.

Arrow's reader of whole tables works on threads of its own. When a file was refused, the process ended while these still
ran, and one time in twenty it was aborted (exit code 134). Here no other thread takes part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from igd_core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from igd_core.data.faults import Faults
    from igd_core.data.sources import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class ParquetRows:
    """Rows of a Parquet file.

    Attributes:
        columns: names, in file order.
        notes: none.
        source: the file.
    """

    columns: Sequence[str]
    source: Source
    notes: Sequence[str] = ()

    def batches(
        self, positions: Sequence[int], batch_rows: int, faults: Faults
    ) -> Iterator[tuple[NDArray[np.int64], list[pa.Array]]]:
        """Row numbers from 1 on, and the columns at these places.

        Raises:
            DataError: the file is damaged.
        """
        names = [self.columns[place] for place in positions]
        done = 0
        try:
            with pq.ParquetFile(self.source.path, pre_buffer=False) as file:
                for batch in file.iter_batches(batch_rows, columns=names, use_threads=False):
                    yield np.arange(done + 1, done + 1 + len(batch)), [batch.column(name) for name in names]
                    done += len(batch)
        except (pa.ArrowException, OSError, MemoryError, ValueError, KeyError) as error:
            raise DataError(f"{faults.name}: row {done + 1}: {_told(error)}") from None


def open_parquet(source: Source) -> ParquetRows:
    """The columns of a Parquet file.

    Raises:
        DataError: it is cut short or damaged.
    """
    try:
        with pq.ParquetFile(source.path, pre_buffer=False) as file:
            return ParquetRows(columns=list(file.schema_arrow.names), source=source)
    except (pa.ArrowException, OSError, MemoryError, ValueError) as error:
        raise DataError(f"{source.name}: {_told(error)}") from None


def _told(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
