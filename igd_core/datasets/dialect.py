"""A csv dialect: how cells are separated and quoted."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_CELL_CHARS = 16 << 20
"""A longer cell means a quote that is never closed, or a file that is of no use here."""
_LETTERS = {"t": "\t", "n": "\n", "r": "\r", "b": "\b", "f": "\f", "v": "\v"}
"""What databases write after a backslash for characters that would end a cell."""
_BACKSLASH = re.compile(r"\\(.?)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How cells are separated and quoted; ``quoting`` is never ``auto``."""

    delimiter: str
    quoting: str

    def reader(self, lines: Iterator[str]) -> Iterator[list[str]]:
        """Python's reader, which reports rows that do not fit and goes on with the next line."""
        csv.field_size_limit(MAX_CELL_CHARS)
        escapes = self.quoting in {"backslash", "escaped"}
        return csv.reader(
            self._spelled(lines) if escapes else lines,
            delimiter=self.delimiter,
            quoting=csv.QUOTE_MINIMAL if self.quotes else csv.QUOTE_NONE,
            escapechar="\\" if escapes else None,
            strict=True,
        )

    @property
    def quotes(self) -> bool:
        """Whether a double quote has a meaning."""
        return self.quoting in {"doubled", "backslash"}

    def _spelled(self, lines: Iterator[str]) -> Iterator[str]:
        """Double the backslashes that escape nothing: Python's reader drops every single one."""
        letters = _LETTERS if self.quoting == "escaped" else {}
        escaped = {'"', "\\", "\r", "\n", self.delimiter}

        def spelled(found: re.Match[str]) -> str:
            behind = letters.get(found[1], found[1])
            return "\\" * (1 if behind in escaped or behind != found[1] else 2) + behind

        for line in lines:
            yield _BACKSLASH.sub(spelled, line) if "\\" in line else line
