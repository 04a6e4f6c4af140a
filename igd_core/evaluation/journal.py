"""A journal: results row by row in a JSON-lines file that survives an interruption; its first line is a header."""

from __future__ import annotations

import fcntl
import json
import os
from typing import TYPE_CHECKING, Any

from igd_core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from types import TracebackType

FORMAT = "igd-evaluation-rows"
_FORMAT_VERSION = 1


class Journal:
    """Append-only records under one header. `append` returns when they are on disk; a half-written one is cut off."""

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        """Open or create ``path`` for this process alone.

        Args:
            path: the file; its directory exists.
            header: what determines the records; the header of an existing file must be equal.

        Raises:
            DataError: another process is writing the file, its header differs, or it is damaged.
        """
        self.path = path
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}") from None
        try:
            self._lock()
            self.records = self._recover({"format": FORMAT, "format_version": _FORMAT_VERSION, **header})
        except BaseException:
            os.close(self._file)
            raise

    def append(self, *records: Mapping[str, Any]) -> None:
        """Write records with one wait for the disk."""
        self._write(*records)
        self.records += map(dict, records)

    def close(self) -> None:
        """Close the file and release its lock."""
        os.close(self._file)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{self.path}: another process is writing it") from None

    def _recover(self, header: Mapping[str, Any]) -> list[dict[str, Any]]:
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):  # the process ended within a write: decode that row again
            os.ftruncate(self._file, whole)
        if not whole:
            self._write(header)
            return []
        found, *records = _parse(self.path, data[:whole])
        _require_same(self.path, found, header)
        return records

    def _write(self, *records: Mapping[str, Any]) -> None:
        data = b"".join(json.dumps(record, separators=(",", ":")).encode() + b"\n" for record in records)
        while data:
            data = data[os.write(self._file, data) :]
        os.fsync(self._file)


def read_journal(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Header and records of a file that another process may be writing; a half-written last line is ignored.

    Raises:
        DataError: the file is not a journal, or is damaged.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    header, *records = _parse(path, data[: data.rfind(b"\n") + 1]) or [{}]
    if header.get("format") != FORMAT or header.get("format_version") != _FORMAT_VERSION:
        raise DataError(f"{path}: no {FORMAT} file of version {_FORMAT_VERSION}")
    return header, records


def _parse(path: Path, data: bytes) -> list[dict[str, Any]]:
    return list(_lines(path, data))


def _lines(path: Path, data: bytes) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(data.splitlines(), start=1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise DataError(f"{path}: line {number} is damaged; remove the file to compute its rows again")
        yield record


def _require_same(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for name in wanted.keys() | found.keys():
        if found.get(name) != wanted.get(name):
            raise DataError(
                f"{path}: results of other settings: {name} was {_short(found.get(name))}, "
                f"now it is {_short(wanted.get(name))}; choose another --out"
            )


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
