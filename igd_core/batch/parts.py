"""The answers of a chunk: one Parquet file, put in its place whole, whose footer says which run and rows it answers."""

from __future__ import annotations

import json
import os
import re
import secrets
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from igd_core.batch.inputs import Rejected
from igd_core.errors import DataError
from igd_core.whole_files import sync

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

LINES = pa.schema(
    [
        ("user_id", pa.string()),
        ("rank", pa.int32()),
        ("item_id", pa.string()),
        ("score", pa.float64()),
        ("version", pa.string()),
        ("model_fingerprint", pa.string()),
        ("source", pa.string()),
        ("file", pa.string()),
        ("row", pa.int64()),
    ]
)
"""One line an item: rank from 1; score as the server gives it; file and row are where the user's row stands."""
_KEY = b"igd_batch"
_PART = re.compile(r"part-([0-9]{6,})\.parquet")


@dataclass(frozen=True, slots=True, kw_only=True)
class PartReport:
    """What a part holds.

    Attributes:
        chunk: its number.
        rows: of the chunk.
        lines: items that were recommended, all rows together.
        popularity: rows that popularity answered, because nothing of their history could be shown.
        rejected: rows that got nothing.
        seconds: that it took to answer.
        worker: the host and process that answered.
        made_at_ms: when, milliseconds since 1970; 0 in parts of earlier releases.
    """

    chunk: int
    rows: int
    lines: int
    popularity: int
    rejected: int
    seconds: float
    worker: str
    made_at_ms: int = 0


class Parts:
    """The folder of a run's answers; anything that reads Parquet folders reads it."""

    def __init__(self, folder: Path, run: str) -> None:
        """Look at nothing yet; ``run`` is the digest of all that decides the run's answers."""
        self.folder = folder
        self._run = run

    def path(self, chunk: int) -> Path:
        """Where the answers of a chunk are."""
        return self.folder / f"part-{chunk:06d}.parquet"

    def write(self, report: PartReport, lines: pa.Table, rejected: Sequence[Rejected]) -> None:
        """Put a part in its place, durably; a reader sees none of it or all. Writing it again replaces it.

        Raises:
            OSError: the disk failed or is full.
        """
        footer = {"run": self._run, "report": asdict(report), "rejected": [asdict(each) for each in rejected]}
        table = lines.replace_schema_metadata({_KEY: json.dumps(footer)})
        path = self.path(report.chunk)
        scratch = self.folder / f".{path.name}-{secrets.token_hex(8)}"  # readers of folders pass over such names
        try:
            pq.write_table(table, scratch, compression="zstd", write_page_checksum=True)
            sync(scratch)
            os.replace(scratch, path)  # noqa: PTH105 - atomic
        finally:
            scratch.unlink(missing_ok=True)
        sync(self.folder)

    def report(self, chunk: int) -> PartReport | None:
        """What the part of a chunk holds; None if it is not there, or not whole, or another one."""
        footer = self._footer(chunk)
        return None if footer is None else PartReport(**footer["report"])

    def rejected(self, chunk: int) -> list[Rejected]:
        """The rows of a chunk that got nothing."""
        footer = self._footer(chunk)
        return [] if footer is None else [Rejected(**each) for each in footer["rejected"]]

    def done(self, chunks: int) -> Iterator[PartReport]:
        """The parts that are there."""
        return (report for chunk in range(chunks) if (report := self.report(chunk)) is not None)

    def prepare(self, chunks: int) -> None:
        """Make the folder, and remove what writers that were killed have left.

        Raises:
            DataError: a part that this run cannot have written.
        """
        self.folder.mkdir(exist_ok=True)
        for path in self.folder.iterdir():
            if path.name.startswith(".part-"):
                path.unlink(missing_ok=True)
                continue
            named = _PART.fullmatch(path.name)
            if named is None or int(named[1]) >= chunks:
                raise DataError(f"{path}: is no part of this run; move it elsewhere")

    def _footer(self, chunk: int) -> Mapping[str, Any] | None:
        try:
            found = pq.read_metadata(self.path(chunk))
            footer: dict[str, Any] = json.loads((found.metadata or {})[_KEY])
        except (OSError, pa.ArrowException, KeyError, ValueError):
            return None
        if footer.get("run") != self._run:
            return None
        report = footer["report"]  # a part that was copied over another one is not that one
        return footer if (report["chunk"], report["lines"]) == (chunk, found.num_rows) else None
