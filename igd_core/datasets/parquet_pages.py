"""Read from a Parquet file's page headers what each page unpacks to, before any is unpacked.

Arrow allocates the size that a page header names, up to 2 GiB, without checking it; ``pyarrow`` has no setting for
that. The footer gives the same sizes by column, so a page larger than its column shows in advance. Headers are Thrift
structures in its compact protocol; only a few of their fields are read.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    import pyarrow.parquet as pq

MOST_PAGE_BYTES = 256 << 20
"""The most bytes of one page; writers cut pages at 1 MiB, some at 100 MB."""
_SLACK_BYTES = 1 << 20
_MOST_HEADER_BYTES = 16 << 20
_MOST_DEPTH = 8
_DATA_PAGES = {0: 5, 3: 8}
"""The field of each page type's header, by type."""
_BOOLEANS, _BYTE, _VARINTS, _DOUBLE, _BINARY, _STRUCT = (1, 2), 3, (4, 5, 6), 7, 8, 12
"""Types of the compact protocol."""


class PageFault(ValueError):  # noqa: N818 - the name says what it is
    """A page contradicts the footer, or its header cannot be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Page:
    """A page header: its own length, and the bytes and values that follow it."""

    header: int
    packed: int
    unpacked: int
    values: int


def check_pages(path: Path, footer: pq.FileMetaData, columns: Iterable[int]) -> None:
    """Check that no page of these leaf columns unpacks to more than the footer says of its column.

    Writers count differently (with headers or without), so up to twice as much and a mebibyte are allowed.

    Raises:
        PageFault: a page is too large for its column, or larger than `MOST_PAGE_BYTES`, or no page is where the footer
            says.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        for group in range(footer.num_row_groups):
            rows = footer.row_group(group)
            for place in columns:
                _check_column(file, rows.column(place), size)


def _check_column(file: BinaryIO, column: pq.ColumnChunkMetaData, size: int) -> None:
    name, begin = column.path_in_schema, column.data_page_offset
    if column.has_dictionary_page and 0 < (column.dictionary_page_offset or 0) < begin:
        begin = column.dictionary_page_offset
    end = min(begin + column.total_compressed_size, size)
    unpacked, said = 0, max(column.total_uncompressed_size, 0)
    for page in _pages(file, begin, end, column.num_values):
        unpacked += page.unpacked
        if page.unpacked > MOST_PAGE_BYTES:
            raise PageFault(f"column {name!r}: a page of {page.unpacked} bytes; at most {MOST_PAGE_BYTES} are read")
        if unpacked > 2 * said + _SLACK_BYTES:
            raise PageFault(f"column {name!r}: pages that unpack to {unpacked} bytes, and the footer counts {said}")


def _pages(file: BinaryIO, begin: int, end: int, values: int) -> Iterator[_Page]:
    """Page headers from ``begin`` on, until they account for ``values``, as Arrow reads them."""
    at, seen = begin, 0
    while at < end and seen < values:
        file.seek(at)
        page = _Header(file).page()
        if min(page.packed, page.unpacked) < 0:
            raise PageFault(f"byte {at}: a page of {page.packed} bytes that unpack to {page.unpacked}")
        yield page
        at += page.header + page.packed
        seen += page.values


class _Header:
    """Reads one page header from a file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._begin = file.tell()

    def page(self) -> _Page:
        fields: dict[tuple[int, ...], int] = {}
        self._struct((), fields)
        header = _DATA_PAGES.get(fields.get((1,), -1), 0)
        return _Page(
            header=self._file.tell() - self._begin,
            packed=fields.get((3,), -1),
            unpacked=fields.get((2,), -1),
            values=max(fields.get((header, 1), 0), 0),
        )

    def _struct(self, above: tuple[int, ...], fields: dict[tuple[int, ...], int]) -> None:
        if len(above) > _MOST_DEPTH:
            raise self._none()
        number = 0
        while kind := self._byte():
            number = number + (kind >> 4) if kind >> 4 else _signed(self._varint())
            self._value(kind & 15, (*above, number), fields)

    def _value(self, kind: int, where: tuple[int, ...], fields: dict[tuple[int, ...], int]) -> None:
        if kind in _VARINTS:
            fields[where] = _signed(self._varint())
        elif kind == _STRUCT:
            self._struct(where, fields)
        elif kind == _BINARY:
            self._pass(self._varint())
        elif kind in (_BYTE, _DOUBLE):
            self._pass(1 if kind == _BYTE else 8)
        elif kind not in _BOOLEANS:  # page headers hold neither lists nor maps
            raise self._none()

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise self._none()

    def _byte(self) -> int:
        read = self._file.read(1)
        if not read or self._file.tell() - self._begin > _MOST_HEADER_BYTES:
            raise self._none()
        return read[0]

    def _pass(self, count: int) -> None:
        if count > _MOST_HEADER_BYTES:
            raise self._none()
        self._file.seek(count, os.SEEK_CUR)

    def _none(self) -> PageFault:
        return PageFault(f"byte {self._begin}: no header of a page, where the footer says that there is one")


def _signed(value: int) -> int:
    return (value >> 1) ^ -(value & 1)
