"""Open a file's bytes, from a path, a pipe or standard input, packed or not, and tell what kind of file it is."""

from __future__ import annotations

import bz2
import codecs
import contextlib
import gzip
import hashlib
import io
import lzma
import shutil
import sys
import tempfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, cast

import pyarrow as pa

from igd_core.errors import DataError, InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import tzinfo

    from igd_core.datasets.attribute_schema import ColumnRule
    from igd_core.datasets.decimals import Decimal

Quoting = Literal["auto", "doubled", "backslash", "none", "escaped"]

STANDARD_INPUT = "-"
BLOCK = 1 << 20
"""Bytes read at once."""
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_FOREIGN = {
    b"PK\x03\x04": "a zip archive or an Excel workbook: export it as csv",
    b"\xd0\xcf\x11\xe0": "an Excel workbook of the old kind: export it as csv",
    b"ORC": "an ORC file: csv, JSON lines and Parquet are read",
    b"ARROW1": "an Arrow file: csv, JSON lines and Parquet are read",
    b"Obj\x01": "an Avro file: csv, JSON lines and Parquet are read",
    b"SQLite format 3": "an SQLite database: export the table as csv",
    b"%PDF": "a PDF: csv, JSON lines and Parquet are read",
}
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_PARQUET = b"PAR1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How to read files, where they do not say it themselves.

    Attributes:
        columns: the file's name of a column, by our name: ``{"item_id": "product_id"}``.
        delimiter: one character between the cells of a csv file; None to detect it.
        quoting: how cells are quoted: quotes within a cell are ``doubled``, or behind a ``backslash``; or no cell is,
            and a tab in it is as it is (``none``) or ``escaped`` as databases do; ``auto`` to detect it.
        encoding: of text without a byte order mark; None for UTF-8, or else Windows-1252 where that is plausible.
        zone: of timestamps without one; None refuses them.
        on_bad_row: whether a row that cannot be used refuses the file or is skipped.
        decimal: the character before the fraction, in numbers written as text; None for numbers as programs write them
            (`igd_core.datasets.decimals`).
        attributes: rules of item columns; None for the schema beside the file.
        kinds: of interactions one a row, those alone whose column ``kind`` says one of these; empty for all.
        hints: whether messages name command-line flags.
        unknown_hint: what messages say about the flag for unknown items.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    delimiter: str | None = None
    quoting: Quoting = "auto"
    encoding: str | None = None
    zone: tzinfo | None = None
    on_bad_row: Literal["error", "skip"] = "error"
    decimal: Decimal | None = None
    attributes: Mapping[str, ColumnRule] | None = None
    kinds: Sequence[str] = ()
    hints: bool = False
    unknown_hint: str = ""

    def __post_init__(self) -> None:
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in '"\r\n\\'):
            raise InputError(f"delimiter {self.delimiter!r}: expected one character that is no quote and no backslash")
        if self.encoding is not None:
            try:
                "a".encode(self.encoding)  # raises for names that are no text encoding, such as hex
            except (LookupError, ValueError):
                raise InputError(f"encoding {self.encoding!r}: no such encoding") from None
        taken = list(self.columns.values())
        if twice := [name for name in taken if taken.count(name) > 1]:
            raise InputError(f"columns: {twice[0]!r} is given two names")

    def fingerprint(self) -> str:
        """What distinguishes rows read this way from rows read another way; empty for the defaults."""
        said = [
            sorted(self.columns.items()), self.delimiter, self.quoting, self.encoding, str(self.zone), self.on_bad_row
        ]  # fmt: skip
        plain = said == [[], None, "auto", None, "None", "error"]
        # Last, where they are set: readings without them keep the fingerprint they had before these existed.
        later = [each for each in (self.decimal, *self.kinds) if each is not None]
        if later:
            return repr([*said, *later])
        return "" if plain else repr(said)


DEFAULT_READING = Reading()


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A file that can be read more than once.

    Attributes:
        path: where it is.
        name: what messages call it.
    """

    path: Path
    name: str

    @classmethod
    def of(cls, given: Path | Source) -> Source:
        """A source for a path, named by it; a source stays as it is."""
        return given if isinstance(given, Source) else cls(path=given, name=str(given))

    @contextlib.contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Open the file's bytes, unpacked.

        Raises:
            DataError: the file cannot be read or unpacked; raised here or within the block.
        """
        try:
            with self.path.open("rb") as file:
                packing = next((how for magic, how in _PACKED.items() if _starts(file, magic)), None)
                with _unpacked(file, packing) as unpacked:
                    yield unpacked
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            told = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise DataError(f"{self.name}: cannot be read: {told}") from None

    def sha256(self, reading: Reading = DEFAULT_READING) -> str:
        """Digest of the file's raw bytes, and of ``reading`` where it is not the default.

        Raises:
            DataError: the file cannot be read.
        """
        digest = hashlib.sha256()
        try:
            with self.path.open("rb") as file:
                while block := file.read(BLOCK):
                    digest.update(block)
        except OSError as error:
            raise DataError(f"{self.name}: cannot be read: {error.strerror}") from None
        digest.update(reading.fingerprint().encode())
        return digest.hexdigest()

    def kind(self) -> Literal["parquet", "json", "csv"]:
        """The kind of file, by its first bytes.

        Raises:
            DataError: the file is empty, or of a kind that is not supported.
        """
        with self.open() as file:
            head = file.read(64)
            if head.startswith(_PARQUET):
                with self.path.open("rb") as raw:
                    if raw.read(len(_PARQUET)) != _PARQUET:
                        raise DataError(f"{self.name}: a Parquet file inside of a packed one: unpack it")
                return "parquet"
            for magic, what in _FOREIGN.items():
                if head.startswith(magic):
                    raise DataError(f"{self.name}: {what}")
            while head and not _printed(head) and (more := file.read(BLOCK)):
                head = more
        first = _printed(head)
        if not first:
            raise DataError(f"{self.name}: the file is empty")
        if first.startswith(b"["):
            raise DataError(f"{self.name}: one JSON array; JSON is read as one object a line")
        return "json" if first.startswith(b"{") else "csv"


@contextlib.contextmanager
def opened(paths: Sequence[Path | Source]) -> Iterator[list[Source]]:
    """Sources of the paths on a command line: ``-`` is standard input, and a pipe is copied to disk first.

    Raises:
        InputError: ``-`` is given twice.
    """
    if [str(path) for path in paths].count(STANDARD_INPUT) > 1:
        raise InputError("only one file can be standard input (-)")
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(_seekable(path)) for path in paths]


@contextlib.contextmanager
def _seekable(path: Path | Source) -> Iterator[Source]:
    if isinstance(path, Source):
        yield path
        return
    is_input = str(path) == STANDARD_INPUT
    if not is_input and (not path.exists() or path.is_file() or path.is_dir()):
        yield Source.of(path)
        return
    name = "standard input" if is_input else str(path)
    with tempfile.NamedTemporaryFile(prefix="igd-") as copy:
        try:
            with contextlib.nullcontext(sys.stdin.buffer) if is_input else path.open("rb") as pipe:
                shutil.copyfileobj(pipe, copy, BLOCK)
            copy.flush()
        except OSError as error:
            raise DataError(f"{name}: cannot be read: {error.strerror}") from None
        yield Source(path=Path(copy.name), name=name)


def _starts(file: BinaryIO, magic: bytes) -> bool:
    file.seek(0)
    start = file.read(len(magic))
    file.seek(0)
    return start == magic


@contextlib.contextmanager
def _unpacked(file: BinaryIO, packing: str | None) -> Iterator[BinaryIO]:
    if packing == "gzip":
        with gzip.GzipFile(fileobj=file) as unpacked:
            yield cast("BinaryIO", unpacked)
    elif packing == "bz2":
        with bz2.BZ2File(file) as bz2_file:
            yield cast("BinaryIO", bz2_file)
    elif packing == "xz":
        with lzma.LZMAFile(file) as xz_file:
            yield cast("BinaryIO", xz_file)
    elif packing == "zstd":
        with pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd") as zstd_file:
            yield cast("BinaryIO", io.BufferedReader(cast("io.RawIOBase", _Raw(zstd_file)), BLOCK))
    else:
        yield file


class _Raw(io.RawIOBase):
    """An Arrow stream that Python can read."""

    def __init__(self, stream: pa.NativeFile) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(cast("bytes", buffer))
        block = self._stream.read(len(view))
        view[: len(block)] = block
        return len(block)


def _printed(head: bytes) -> bytes:
    """The bytes after a byte order mark and white space; UTF-16 without its zero bytes."""
    for bom, codec in BYTE_ORDER_MARKS:
        if head.startswith(bom):
            head = head[len(bom) :] if codec == "utf-8" else head[len(bom) :].replace(b"\x00", b"")
            break
    return head.strip()
