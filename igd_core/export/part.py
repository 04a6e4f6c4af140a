"""One part of an export: the rows of its users, written as they are read, and put in place whole."""

from __future__ import annotations

import os
import secrets
from collections import Counter
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from igd_core.datasets.export_format import SCHEMAS, sha256_of
from igd_core.whole_files import sync

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from igd_core.datasets.export_format import Table
    from igd_core.store.events import Event
    from igd_core.store.impressions import Impression

_ROWS_AT_ONCE = 50_000


class TablePart:
    """A Parquet file of one table; without a row there is no file."""

    def __init__(self, folder: Path, table: Table, part: int) -> None:
        """Write nothing yet."""
        self._name = f"{table}/part-{part:04}.parquet"
        self._path = folder / self._name
        self._scratch = self._path.with_name(f".{self._path.name}-{secrets.token_hex(8)}")
        self._schema = SCHEMAS[table]
        self._writer: pq.ParquetWriter | None = None
        self._waiting: list[tuple[Any, ...]] = []
        self._rows = 0
        self._first: int | None = None
        self._last: int | None = None

    def add(self, row: tuple[Any, ...], timestamp_ms: int) -> None:
        """Add a row, in the order of the columns."""
        self._waiting.append(row)
        self._first = timestamp_ms if self._first is None else min(self._first, timestamp_ms)
        self._last = timestamp_ms if self._last is None else max(self._last, timestamp_ms)
        if len(self._waiting) >= _ROWS_AT_ONCE:
            self._flush()

    def finish(self) -> dict[str, Any]:
        """Put the file in its place; returns what the manifest says of it.

        Raises:
            OSError: the disk failed or is full.
        """
        self._path.unlink(missing_ok=True)  # of a part that was not finished
        self._flush()
        report: dict[str, Any] = {
            "path": self._name,
            "rows": self._rows,
            "times_ms": [] if self._first is None else [self._first, self._last],
        }
        if self._writer is None:
            return report
        self._writer.close()
        sync(self._scratch)
        report |= {"bytes": self._scratch.stat().st_size, "sha256": sha256_of(self._scratch)}
        os.replace(self._scratch, self._path)  # noqa: PTH105 - atomic
        sync(self._path.parent)
        return report

    def abandon(self) -> None:
        """Remove what was not put in its place."""
        if self._writer is not None:
            self._writer.close()
        self._scratch.unlink(missing_ok=True)

    def _flush(self) -> None:
        if not self._waiting:
            return
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._scratch, self._schema, compression="zstd", write_page_checksum=True)
        columns = zip(*self._waiting, strict=True)
        arrays = [pa.array(column, field.type) for column, field in zip(columns, self._schema, strict=True)]
        self._writer.write_batch(pa.record_batch(arrays, schema=self._schema))
        self._rows += len(self._waiting)
        self._waiting = []


class PartWriter:
    """Both tables of a part, and what they hold."""

    def __init__(self, folder: Path, part: int) -> None:
        self._events = TablePart(folder, "events", part)
        self._impressions = TablePart(folder, "impressions", part)
        self._users = 0
        self._answers = 0
        self._kinds: Counter[str] = Counter()

    def add(
        self, user_id: str, history: Sequence[Event], others: Sequence[Event], impressions: Sequence[Impression]
    ) -> None:
        """Add what is stored of a user."""
        self._users += bool(history or others or impressions)
        known = set()
        for makes_history, events in ((True, history), (False, others)):
            for event in events:
                if (event.event_id, event.kind) in known:  # sent again, after another setting of what makes a history
                    continue
                known.add((event.event_id, event.kind))
                self._kinds[event.kind] += 1
                self._events.add(
                    (
                        user_id,
                        event.event_id,
                        event.item_id,
                        event.timestamp_ms,
                        event.kind,
                        event.value,
                        event.position,
                        event.request_id,
                        makes_history,
                    ),
                    event.timestamp_ms,
                )
        for shown in impressions:
            self._answers += 1
            answer = (user_id, shown.request_id, shown.timestamp_ms, shown.catalogue, shown.version)
            for rank, (item_id, score) in enumerate(zip(shown.item_ids, shown.scores, strict=True), start=1):
                row = (*answer, shown.variant or None, shown.source, rank, item_id, score)
                self._impressions.add(row, shown.timestamp_ms)

    def finish(self) -> dict[str, Any]:
        """Put both files in their places; returns what they hold."""
        return {
            "users": self._users,
            "answers": self._answers,
            "kinds": dict(self._kinds),
            "events": self._events.finish(),
            "impressions": self._impressions.finish(),
        }

    def abandon(self) -> None:
        """Remove what was not finished."""
        self._events.abandon()
        self._impressions.abandon()
