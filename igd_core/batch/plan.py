"""Rows to chunks: rows whose prompts begin alike stand together, so that one actor answers them and computes less.

A prompt is the instruction and then the items that it shows, oldest first. Rows are scattered over buckets by the first
shown item, and each bucket is sorted by what prompts show; so what is in memory does not grow with the input. The same
input makes the same chunks, however often it is planned.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from igd_core.batch.inputs import ROWS
from igd_core.errors import DataError
from igd_core.whole_files import sync, sync_file, write_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from igd_core.batch.inputs import ReadRows
    from igd_core.catalogue.prompts import PromptTemplate

RUN_ROWS = 262_144
RUN_BYTES = 128 << 20
"""Rows that are sorted together, at most, and their bytes."""
_BUCKET_BYTES = 32 << 20
_MOST_BUCKETS = 256
_SORTED_ITEMS = 16
"""Rows are told apart by so many of the items that a prompt shows first."""
_PLAN, _REJECTED = "plan.json", "rejected.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """An input as chunks.

    Attributes:
        rows: of the input, bad ones included.
        answerable: rows in chunks.
        rejected: the other rows.
        dropped: entries left out of histories because the catalogue lacks them.
        chunk_rows: rows of each chunk but the last.
    """

    rows: int
    answerable: int
    rejected: int
    dropped: int
    chunk_rows: int

    @property
    def chunks(self) -> int:
        """How many there are."""
        return -(-self.answerable // self.chunk_rows)

    def to_json(self) -> dict[str, int]:
        """Plain values, inverse of the constructor."""
        return dataclasses.asdict(self)


class Staging:
    """The folder of an input's chunks, which exists until every chunk is answered."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def rejected(self) -> Path:
        """Rows that were rejected before anything was answered, as JSON lines."""
        return self.folder / _REJECTED

    def read_plan(self, run: str) -> Plan | None:
        """The plan, if the folder is whole and was made for this run."""
        try:
            found = json.loads((self.folder / _PLAN).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return Plan(**found["plan"]) if found.get("run") == run else None

    def make(self, batches: Iterable[ReadRows], sorting: Sorting, *, run: str, chunk_rows: int) -> Plan:
        """Write all chunks, and then the plan; what a run that was cut off has left is written anew.

        Raises:
            DataError: as the batches raise it, or there are no rows.
        """
        self.remove()
        (self.folder / "chunks").mkdir(parents=True)
        (self.folder / "buckets").mkdir()
        rejected = dropped = 0
        with contextlib.ExitStack() as stack:
            side = stack.enter_context(self.rejected.open("w", encoding="utf-8"))
            buckets = _Buckets(self.folder / "buckets", stack)
            for batch in batches:
                for each in batch.rejected:
                    side.write(json.dumps(dataclasses.asdict(each), ensure_ascii=False) + "\n")
                rejected += len(batch.rejected)
                dropped += batch.dropped
                buckets.add(batch.rows, sorting)
            sync_file(side)
        answerable = self._write_chunks(buckets.sorted_runs(sorting), chunk_rows)
        shutil.rmtree(self.folder / "buckets")
        if not answerable and not rejected:
            raise DataError("rows: the input holds no rows")
        plan = Plan(
            rows=answerable + rejected, answerable=answerable, rejected=rejected, dropped=dropped, chunk_rows=chunk_rows
        )
        write_json(self.folder / _PLAN, {"run": run, "plan": plan.to_json()})
        return plan

    def chunk(self, number: int) -> pa.Table:
        """The rows of a chunk, as `ROWS`, in the order in which they are best answered.

        Raises:
            DataError: it cannot be read.
        """
        path = self._chunk_path(number)
        try:
            with pa.OSFile(str(path)) as file:
                return pa.ipc.open_file(file).read_all()
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from None

    def count_try(self, number: int) -> int:
        """Count one more attempt to answer a chunk; returns how many there have been since `forget_tries`."""
        with (self.folder / "tries" / f"{number:06d}").open("ab") as file:
            file.write(b".")
            return file.tell()

    def forget_tries(self) -> None:
        """Count from 0 again."""
        shutil.rmtree(self.folder / "tries", ignore_errors=True)
        (self.folder / "tries").mkdir()

    def remove(self) -> None:
        """Remove the folder."""
        if self.folder.exists():
            shutil.rmtree(self.folder)

    def _chunk_path(self, number: int) -> Path:
        return self.folder / "chunks" / f"{number:06d}.arrow"

    def _write_chunks(self, runs: Iterator[pa.Table], chunk_rows: int) -> int:
        waiting, number, total = ROWS.empty_table(), 0, 0
        for run in runs:
            total += len(run)
            waiting = pa.concat_tables([waiting, run])
            while len(waiting) >= chunk_rows:
                self._write_chunk(number, waiting.slice(0, chunk_rows))
                waiting, number = waiting.slice(chunk_rows), number + 1
        if len(waiting):
            self._write_chunk(number, waiting)
        return total

    def _write_chunk(self, number: int, rows: pa.Table) -> None:
        path = self._chunk_path(number)
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, ROWS) as writer:
            writer.write_table(rows.combine_chunks())
        sync(path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sorting:
    """By what rows are sorted.

    Attributes:
        template: decides which items of a history a prompt shows.
        buckets: that rows are scattered over before they are sorted.
    """

    template: PromptTemplate
    buckets: int = 1

    @staticmethod
    def of(template: PromptTemplate, num_bytes: int) -> Sorting:
        """With as many buckets as an input of so many bytes needs."""
        return Sorting(template=template, buckets=min(_MOST_BUCKETS, 1 + num_bytes // _BUCKET_BYTES))

    def bucket(self, rows: pa.Table) -> NDArray[np.int64]:
        """The bucket of each row, ``(n,)``: rows whose prompts show the same first item have the same."""
        first = self.shown(rows, 1)[:, 0].astype(np.uint64) + np.uint64(1)
        mixed = first * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(32)
        return (mixed % np.uint64(self.buckets)).astype(np.int64)

    def sorted(self, rows: pa.Table) -> pa.Table:
        """The rows by what their prompts show; equal ones in file order."""
        shown = self.shown(rows, _SORTED_ITEMS)
        number = rows.column("row").to_numpy()
        _, file = np.unique(rows.column("file").to_numpy(zero_copy_only=False), return_inverse=True)
        order = np.lexsort((number, file, *shown.T[::-1]))
        return rows.take(pa.array(order))

    def shown(self, rows: pa.Table, depth: int) -> NDArray[np.int64]:
        """The first items that each prompt shows, ``(n, depth)`` int64, -1 where there are fewer."""
        histories = rows.column("history").combine_chunks()
        offsets = histories.offsets.to_numpy().astype(np.int64)
        lengths = np.diff(offsets)
        distinct, of_row = np.unique(lengths, return_inverse=True)
        windows = np.array([len(self.template.window(range(length))) for length in distinct.tolist()], np.int64)  # type: ignore[arg-type]
        width = windows[of_row] if len(lengths) else lengths
        place = (offsets[1:] - width)[:, None] + np.arange(depth)
        items = np.append(histories.values.to_numpy().astype(np.int64), -1)
        return np.where(np.arange(depth) < width[:, None], items[np.minimum(place, len(items) - 1)], -1)


class _Buckets:
    """Rows on disk, apart by the item that their prompts show first."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self._folder = folder
        self._stack = stack
        self._writers: dict[int, Any] = {}

    def add(self, rows: pa.Table, sorting: Sorting) -> None:
        """Write each row to its bucket."""
        if not len(rows):
            return
        bucket = sorting.bucket(rows)
        for number in np.unique(bucket).tolist():
            if number not in self._writers:
                file = self._stack.enter_context(pa.OSFile(str(self._path(number)), "wb"))
                self._writers[number] = self._stack.enter_context(pa.ipc.new_stream(file, ROWS))
            self._writers[number].write_table(rows.filter(pa.array(bucket == number)))

    def sorted_runs(self, sorting: Sorting) -> Iterator[pa.Table]:
        """Bucket by bucket; one that is too large for memory in several runs, each sorted."""
        for number in sorted(self._writers):
            for run in self._runs(number):
                yield sorting.sorted(run)
            self._path(number).unlink()

    def _runs(self, number: int) -> Iterator[pa.Table]:
        held: list[pa.RecordBatch] = []
        rows = size = 0
        with pa.OSFile(str(self._path(number))) as file, pa.ipc.open_stream(file) as reader:
            for batch in reader:
                if held and (rows + len(batch) > RUN_ROWS or size + batch.nbytes > RUN_BYTES):
                    yield _table(held)
                    held, rows, size = [], 0, 0
                held.append(batch)
                rows, size = rows + len(batch), size + batch.nbytes
        if held:
            yield _table(held)

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:03d}.arrow"


def _table(batches: Sequence[pa.RecordBatch]) -> pa.Table:
    return pa.Table.from_batches(batches).combine_chunks()
