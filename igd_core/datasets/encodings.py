"""Tell in which encoding a text file is: by its byte order mark, by what the operator says, or by its bytes."""

from __future__ import annotations

import codecs
import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, cast

from igd_core.datasets.sources import BLOCK, BYTE_ORDER_MARKS
from igd_core.errors import DataError

if TYPE_CHECKING:
    from igd_core.datasets.sources import Source

_BROKEN = re.compile("[\udc80-\udcff]")
_RUN = re.compile("[\udc80-\udcff]{3,}")
_ACCENTED = re.compile("[^\x00-\x7f\udc80-\udcff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """How bytes become text.

    Attributes:
        codec: Python's name of the encoding.
        errors: Python's name for what happens to other bytes; ``surrogateescape`` where rows are judged one by one.
        note: what a person should know about it, or "".
    """

    codec: str
    errors: str = "strict"
    note: str = ""

    def text_of(self, raw: BinaryIO) -> io.TextIOWrapper:
        """The file as text, line ends unchanged; detach it, or it closes the file."""
        return io.TextIOWrapper(cast("io.BytesIO", raw), self.codec, errors=self.errors, newline="")


def encoding_of(source: Source, given: str | None) -> Encoding:
    """The encoding of a text file: its byte order mark, ``given``, UTF-8, or Windows-1252 where that is plausible.

    Reads the file once. In a file with UTF-8 characters, other bytes are left to be judged row by row.

    Raises:
        DataError: the text does not fit its mark or ``given``, or no encoding fits.
    """
    with source.open() as file:
        head = file.read(4)
    marked = next((codec for bom, codec in BYTE_ORDER_MARKS if head.startswith(bom)), None)
    codec = marked or given or "utf-8"
    try:
        line = _first_misfit(source, codec)
        if line is None:
            return Encoding(codec="utf-8-sig" if codec == "utf-8" else codec)
    except UnicodeError as error:  # UTF-16 that ends in half a character
        raise DataError(f"{source.name}: not {codec}: {str(error).splitlines()[0]}") from None
    if codec != "utf-8":
        raise DataError(f"{source.name}: line {line}: not {codec}")
    counts = _beyond_ascii(source)
    if counts.accented or marked or given:
        return Encoding(codec="utf-8-sig", errors="surrogateescape")
    if 2 * counts.in_runs > counts.misfits or _first_misfit(source, "cp1252") is not None:
        raise DataError(f"{source.name}: line {line}: not UTF-8, and not likely Windows-1252: --encoding NAME reads it")
    return Encoding(
        codec="cp1252", note=f"{source.name}: read as Windows-1252, as line {line} is not UTF-8 (--encoding decides)"
    )


def _first_misfit(source: Source, codec: str) -> int | None:
    """Number of the first line that the codec cannot read, or None."""
    decoder = codecs.getincrementaldecoder(codec)()
    line = 1
    with source.open() as file:
        while True:
            block = file.read(BLOCK)
            try:
                line += decoder.decode(block, final=not block).count("\n")
            except UnicodeDecodeError as error:
                return line + error.object[: error.start].decode(codec, "replace").count("\n")
            if not block:
                return None


@dataclass(frozen=True, slots=True, kw_only=True)
class _BeyondAscii:
    """Counts of bytes that are not UTF-8, of such bytes in runs of three or more, and of non-ASCII characters in UTF-8.

    In Western text such bytes come alone or in pairs; Cyrillic, Greek or Chinese words consist of them.
    """

    misfits: int
    in_runs: int
    accented: int


def _beyond_ascii(source: Source) -> _BeyondAscii:
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    misfits = in_runs = accented = 0
    with source.open() as file:
        while block := file.read(BLOCK):
            text = decoder.decode(block)
            broken = len(_BROKEN.findall(text))
            misfits += broken
            accented += len(_ACCENTED.findall(text))
            in_runs += sum(map(len, _RUN.findall(text)))
    return _BeyondAscii(misfits=misfits, in_runs=in_runs, accented=accented)
