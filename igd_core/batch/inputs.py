"""The rows to answer: a file or a folder of files, read by and by; a row that cannot be used gets its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from igd_core.datasets.faults import Faults, shown
from igd_core.datasets.known_items import KnownItems
from igd_core.datasets.sources import Source
from igd_core.datasets.tables import open_table
from igd_core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from igd_core.catalogue.items import Catalogue
    from igd_core.datasets.source_table import SourceTable
    from igd_core.datasets.sources import Reading
    from igd_core.datasets.tables import TableFile

USER, HISTORY = "user_id", "history_item_ids"
"""Columns of a file; the user's may be missing."""
ROWS = pa.schema(
    [("file", pa.string()), ("row", pa.int64()), ("user_id", pa.string()), ("history", pa.list_(pa.int32()))]
)
"""Rows that can be answered: where each stands, whose it is, and the item rows of its history, oldest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """A row that gets no recommendations.

    Attributes:
        file: its name within the input.
        row: its number as messages count: the header of a csv file is row 1.
        user_id: None where it cannot be told.
        reason: one line for a person.
    """

    file: str
    row: int
    user_id: str | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadRows:
    """Some rows of a file.

    Attributes:
        rows: those that can be answered, as `ROWS`, in file order.
        rejected: the others.
        dropped: entries left out of histories because the catalogue lacks them.
    """

    rows: pa.Table
    rejected: Sequence[Rejected]
    dropped: int


class RowFaults(Faults):
    """Faults that keep the reason of each skipped row until it is taken."""

    def __init__(self, name: str, *, skip_rows: bool) -> None:
        """``name``: the file's; ``skip_rows``: whether faulty rows are rejected one by one, or refuse the file."""
        super().__init__(name, skip_rows=skip_rows, hints=True)
        self._reasons: dict[int, str] = {}

    def add(
        self, what: str, reason: str, rows: Sequence[int] | NDArray[np.int64], values: Sequence[str], *, hint: str = ""
    ) -> None:
        """Note a kind of fault, with the value of each row for which there is one; a row keeps its first reason."""
        super().add(what, reason, rows, values, hint=hint)
        if self.skip_rows:
            for at, row in enumerate(rows):
                value = values[at] if at < len(values) else ""
                self._reasons.setdefault(int(row), " ".join(filter(None, (what, value, reason))))

    def take(self) -> dict[int, str]:
        """The reasons since the last call, by row."""
        taken, self._reasons = self._reasons, {}
        return taken


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFiles:
    """The files of an input, and what their content was when they were hashed.

    Attributes:
        sources: the files by name, in the order in which they are read.
        sha256: of each, and of how it is read, by name.
        num_bytes: of all together.
    """

    sources: Mapping[str, Source]
    sha256: Mapping[str, str]
    num_bytes: int
    _states: Mapping[str, tuple[int, int, int]]

    @staticmethod
    def of(given: Source, reading: Reading) -> InputFiles:
        """Find and hash the files: the given one, or all below a folder, by name; not those that begin with . or _.

        Raises:
            DataError: there is none, or one cannot be read, or something is neither a file nor a folder.
        """
        if given.path.is_dir():
            places = _files_below(given)
            names = [path.relative_to(given.path).as_posix() for path in places]
            sources = {
                name: Source(path=path, name=f"{given.name}/{name}") for name, path in zip(names, places, strict=True)
            }
            if not sources:
                raise DataError(f"{given.name}: the folder holds no files")
        else:
            sources = {given.path.name if given.name == str(given.path) else given.name: given}
        states = {name: _state(source) for name, source in sources.items()}
        return InputFiles(
            sources=sources,
            sha256={name: source.sha256(reading) for name, source in sources.items()},
            num_bytes=sum(size for size, _, _ in states.values()),
            _states=states,
        )

    def require_unchanged(self) -> None:
        """Refuse files that changed after they were hashed.

        Raises:
            DataError: names the first.
        """
        for name, source in self.sources.items():
            if _state(source) != self._states[name]:
                raise DataError(f"{source.name}: changed while it was being read; start again")


class InputReader:
    """Reads the rows of files for one catalogue."""

    def __init__(
        self, files: InputFiles, catalogue: Catalogue, reading: Reading, *, on_unknown: Literal["error", "drop"]
    ) -> None:
        """Read nothing yet.

        Args:
            files: whose rows to read.
            catalogue: whose items the ids of histories are.
            reading: how to read them; ``on_bad_row`` says whether a bad row refuses its file or is rejected.
            on_unknown: an entry that the catalogue lacks makes its row a bad one, or is left out of its history.
        """
        self._files = files
        self._reading = reading
        self._known = KnownItems(catalogue, drop=True, hint="")
        self._num_items = len(catalogue)
        self._drop = on_unknown == "drop"
        self.notes: list[str] = []

    def batches(self) -> Iterator[ReadRows]:
        """All rows, file by file. What a person should know of how files were read goes into ``notes``.

        Raises:
            DataError: a file, its columns, or (where bad rows refuse it) what is wrong with its rows.
        """
        for name, source in self._files.sources.items():
            file = open_table(source, self._reading)
            self.notes += file.notes
            if USER not in file.columns:
                self.notes.append(f"{file.name}: no column {USER!r}; its rows are told by their numbers alone")
            yield from self._file(name, file)

    def _file(self, name: str, file: TableFile) -> Iterator[ReadRows]:
        faults = RowFaults(file.name, skip_rows=self._reading.on_bad_row == "skip")
        names = [USER, HISTORY] if USER in file.columns else [HISTORY]
        for table in file.batches(names, faults):
            yield self._batch(name, table, faults)
        faults.check()
        if left := faults.take():  # rows without cells, below the last that has some
            yield ReadRows(rows=ROWS.empty_table(), rejected=_rejected(name, left, {}), dropped=0)

    def _batch(self, name: str, table: SourceTable, faults: RowFaults) -> ReadRows:
        has_user = USER in table.columns
        users = table.ids(USER) if has_user else pa.nulls(len(table), pa.string())
        lists = table.id_lists(HISTORY)
        ids, row_of = pc.list_flatten(lists), pc.list_parent_indices(lists).to_numpy()
        index = self._known.index(ids)
        filled = pc.fill_null(pc.not_equal(ids, ""), True).to_numpy(zero_copy_only=False)  # an empty cell is [""]
        unknown = np.flatnonzero(filled & (index < 0))
        if not self._drop:
            rows, first = np.unique(row_of[unknown], return_index=True)
            values = [shown(ids[int(at)].as_py()) for at in unknown[first]]
            hint = "--on-unknown-item drop leaves such items out"
            faults.add(
                HISTORY, f"is not in the catalogue of {self._num_items} items", table.row[rows], values, hint=hint
            )
        kept = np.flatnonzero(index >= 0)
        lengths = np.bincount(row_of[kept], minlength=len(table))
        offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
        histories = pa.ListArray.from_arrays(pa.array(offsets), pa.array(index[kept], pa.int32()))
        rows_table = pa.table(
            [pa.repeat(pa.scalar(name), len(table)), pa.array(table.row, pa.int64()), users, histories], schema=ROWS
        )
        reasons = faults.take()
        bad = np.isin(table.row, np.fromiter(reasons, np.int64, len(reasons)))
        named = {
            int(table.row[at]): users[int(at)].as_py()
            for at in np.flatnonzero(bad)
            if users[int(at)].as_py() is not None
        }
        return ReadRows(
            rows=rows_table.filter(pa.array(~bad)),
            rejected=_rejected(name, reasons, named),
            dropped=int((~bad)[row_of[unknown]].sum()) if self._drop else 0,
        )


def _rejected(name: str, reasons: Mapping[int, str], users: Mapping[int, str]) -> list[Rejected]:
    return [
        Rejected(file=name, row=row, user_id=users.get(row), reason=reason) for row, reason in sorted(reasons.items())
    ]


def _files_below(given: Source) -> list[Path]:
    """By name; what would be passed over although it may stand for rows is refused."""
    files = []
    for path in sorted(given.path.rglob("*")):
        if _hidden(path, given.path):
            continue
        if path.is_file():
            files.append(path)
        elif path.is_symlink() or not path.is_dir():
            what = "a link to a folder" if path.is_dir() else "neither a file nor a folder"
            raise DataError(f"{given.name}/{path.relative_to(given.path).as_posix()}: {what}; it cannot be read")
    return files


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.relative_to(folder).parts)


def _state(source: Source) -> tuple[int, int, int]:
    try:
        state = source.path.stat()
    except OSError as error:
        raise DataError(f"{source.name}: cannot be read: {error.strerror}") from None
    return state.st_size, state.st_mtime_ns, state.st_ino
