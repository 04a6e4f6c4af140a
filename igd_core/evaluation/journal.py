"""A journal: results row by row in a JSON-lines file that survives an interruption; its first line is a header."""

from __future__ import annotations

import fcntl
import json
import math
import os
from typing import TYPE_CHECKING, Any

from igd_core.errors import DataError
from igd_core.whole_files import naming

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from types import TracebackType

FORMAT = "igd-evaluation-rows"
_FORMAT_VERSION = 1
_COSTS = ("rounds", "tokens", "seconds")
"""In a record of a row that was decoded."""


class Journal:
    """Append-only records under one header. `append` returns when they are on disk; a half-written one is cut off."""

    def __init__(self, path: Path, header: Mapping[str, Any], *, items: int | None = None) -> None:
        """Open or create ``path`` for this process alone.

        Args:
            path: the file; its directory exists.
            header: what determines the records; the header of an existing file must be equal.
            items: of the catalogue that the lists are of; None where they are not to be compared with it.

        Raises:
            DataError: another process is writing the file, its header differs, or it is damaged.
        """
        self.path = path
        self._items = items
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
        found, *records = _parse(self.path, data[:whole], self._items)
        _require_same(self.path, found, header)
        return records

    def _write(self, *records: Mapping[str, Any]) -> None:
        data = b"".join(json.dumps(record, separators=(",", ":")).encode() + b"\n" for record in records)
        with naming(self.path):
            while data:
                data = data[os.write(self._file, data) :]
            os.fsync(self._file)


def read_journal(path: Path, *, items: int | None = None) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Header and records of a file that another process may be writing; a half-written last line is ignored.

    ``items``: of the catalogue that the lists are of; None where they are not to be compared with it.

    Raises:
        DataError: the file is not a journal, or is damaged.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    header, *records = _parse(path, data[: data.rfind(b"\n") + 1], items) or [{}]
    if header.get("format") != FORMAT or header.get("format_version") != _FORMAT_VERSION:
        raise DataError(f"{path}: no {FORMAT} file of version {_FORMAT_VERSION}")
    return header, records


def _parse(path: Path, data: bytes, items: int | None) -> list[dict[str, Any]]:
    """Header and records; a line that is none is refused by its number."""
    parsed = [_object(line) for line in data.splitlines()]
    header = parsed[0] if parsed else None
    is_sound = _check(header, items)
    for number, record in enumerate(parsed, start=1):
        if record is None or not (_has_methods(record) if number == 1 else is_sound(record)):
            raise DataError(f"{path}: line {number} is damaged; remove the file to compute its rows again")
    return [record for record in parsed if record is not None]


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _has_methods(header: Mapping[str, Any]) -> bool:
    """Whether each method has its names and the depth of its lists; a file that is no journal is refused elsewhere."""
    methods = header.get("methods")
    return header.get("format") != FORMAT or (
        isinstance(methods, list)
        and all(isinstance(method, dict) for method in methods)
        and all(isinstance(method.get(name), str) for method in methods for name in ("name", "seen", "known_as"))
        and all(type(method.get("depth")) is int and method["depth"] > 0 for method in methods)
    )


def _check(header: Mapping[str, Any] | None, items: int | None) -> Callable[[Mapping[str, Any]], bool]:
    """Whether a record is one of this header; where the header is at fault, each is."""
    if header is None or header.get("format") != FORMAT or not _has_methods(header):
        return lambda _: True
    depths = [method["depth"] for method in header["methods"]]
    costs = _COSTS if header.get("kind") == "decoding" else ()

    def is_sound(record: Mapping[str, Any]) -> bool:
        lists = record.get("lists", "none")
        if type(record.get("row")) is not int or record["row"] < 0:
            return False
        if lists is None:  # its target is unknown
            return True
        return (
            isinstance(lists, list)
            and len(lists) == len(depths)
            and all(_is_list(each, depth, items) for each, depth in zip(lists, depths, strict=True))
            and all(type(record.get(name)) in (int, float) and 0 <= record[name] < math.inf for name in costs)
            and type(record.get("left_out", 0)) is int
        )

    return is_sound


def _is_list(found: object, depth: int, items: int | None) -> bool:
    """Whether it holds at most ``depth`` items of the catalogue."""
    if not isinstance(found, list) or len(found) > depth or not {int}.issuperset(map(type, found)):
        return False
    return not found or (min(found) >= 0 and (items is None or max(found) < items))


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
