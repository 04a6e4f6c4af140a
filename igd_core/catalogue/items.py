"""Items: ids, titles, the texts that spell them, how often each was chosen, and their metadata."""

from __future__ import annotations

import math
import unicodedata
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from igd_core.catalogue.attribute_types import AttributeType, JsonScalar, TypedValues, comparable
from igd_core.catalogue.item_rows import ItemRows, hash_codes, rows_of_equal_codes
from igd_core.catalogue.packed_texts import PackedTexts
from igd_core.errors import CatalogueError
from igd_core.ids import MAX_ITEM_ID_CHARS, ItemIndex

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

MetadataValue: TypeAlias = JsonScalar | tuple[JsonScalar, ...] | None
"""A tuple is a list (genres); None is a missing value; dates are ISO 8601 text (`attribute_types`)."""

_UNPRINTABLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_RESERVED_COLUMNS = frozenset({"item_id", "title"})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Catalogue:
    """The items, in file order; row i of every attribute is `ItemIndex` i. Immutable: all requests share one copy.

    `build` checks every value. The constructor checks only that all lengths agree: it is for catalogues that `build`
    made, read back from an artifact.

    Items may share a title, or a text: they become one outcome when paths are built. Cold items have frequency 0.

    Attributes:
        item_ids: unique, 1 to 256 printable characters.
        titles: what people are shown; one line, never empty.
        texts: what spells an item for the model; the titles unless another column was chosen.
        frequency: ``(num_items,)`` int64, read-only; interactions in the training split.
        metadata: further columns by name, which filters use.
        types: the attribute type of each of these columns.
    """

    item_ids: Sequence[str]
    titles: Sequence[str]
    texts: Sequence[str]
    frequency: NDArray[np.int64]
    metadata: Mapping[str, Sequence[MetadataValue]]
    types: Mapping[str, AttributeType] = field(default_factory=dict)
    _rows: ItemRows | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        num_items = len(self.item_ids)
        lengths = [("titles", len(self.titles)), ("texts", len(self.texts)), ("frequency", len(self.frequency))]
        lengths += [(f"metadata column {name!r}", len(column)) for name, column in self.metadata.items()]
        for name, length in lengths:
            if length != num_items:
                raise CatalogueError(f"{name}: {length} values for {num_items} items")

    @classmethod
    def build(
        cls,
        *,
        item_ids: Sequence[str],
        titles: Sequence[str],
        texts: Sequence[str] | None = None,
        frequency: NDArray[np.integer] | None = None,
        metadata: Mapping[str, Sequence[MetadataValue]] | None = None,
        types: Mapping[str, AttributeType] | None = None,
    ) -> Catalogue:
        """Make a catalogue and check every value. Titles and texts must be clean (`igd_core.datasets.cleaning`).

        A metadata column without a type gets the type of its values. Ids, titles and texts are packed, and a column of
        `TypedValues` stays as it is: no item takes a Python object.

        Raises:
            CatalogueError: no items; an id that is empty, repeated, too long, padded or holds invisible characters;
                a title or text that is blank, padded or of several lines; a column of another length; a negative
                frequency; a metadata value of another type than its column.
        """
        columns = {
            name: column if isinstance(column, TypedValues) else tuple(column)
            for name, column in (metadata or {}).items()
        }
        if not len(item_ids):
            raise CatalogueError("the catalogue holds no items")
        ids = _packed("id", item_ids)
        _check_item_ids(ids)
        shown = _packed("title", titles)
        made = cls(
            item_ids=ids,
            titles=shown,
            texts=shown if texts is None or texts is titles else _packed("text", texts),
            frequency=_checked_frequency(np.zeros(len(item_ids), np.int64) if frequency is None else frequency),
            metadata=columns,
            types={name: (types or {}).get(name) or _type_of(column) for name, column in columns.items()},
        )
        made.build_index()
        _check_lines("title", made.item_ids, shown)
        if made.texts is not made.titles:
            _check_lines("text", made.item_ids, _packed("text", made.texts))
        for name, column in made.metadata.items():
            _check_metadata(name, made.types[name], made.item_ids, column)
        return made

    def __len__(self) -> int:
        return len(self.item_ids)

    def build_index(self) -> None:
        """Build the index that `index_of` needs; 0.5 s for a million items, so loading does not do it.

        Raises:
            CatalogueError: two rows have the same id.
        """
        object.__setattr__(self, "_rows", ItemRows.of(self.item_ids))  # whole or not at all, for other threads

    def index_of(self, item_id: str) -> ItemIndex | None:
        """Row of an item, or None when the catalogue does not hold it."""
        if self._rows is None:
            self.build_index()
        found = None if self._rows is None else self._rows.find(item_id)
        return None if found is None else ItemIndex(found)

    def take(self, rows: Sequence[int]) -> Catalogue:
        """The items of these rows, in that order."""
        titles = PackedTexts.of(self.titles[row] for row in rows)
        return replace(
            self,
            item_ids=PackedTexts.of(self.item_ids[row] for row in rows),
            titles=titles,
            texts=titles if self.texts is self.titles else PackedTexts.of(self.texts[row] for row in rows),
            frequency=_checked_frequency(self.frequency[np.asarray(rows, dtype=np.int64)]),
            metadata={name: tuple(column[row] for row in rows) for name, column in self.metadata.items()},
        )

    def with_texts(self, texts: Sequence[str]) -> Catalogue:
        """The same items, spelled otherwise for the model.

        Raises:
            CatalogueError: a text that is blank, padded or of several lines, or not one for each item.
        """
        packed = _packed("text", texts)
        changed = replace(self, texts=packed)
        _check_lines("text", changed.item_ids, packed)
        return changed

    def with_frequency(self, frequency: NDArray[np.integer]) -> Catalogue:
        """The same items with other counts, ``(num_items,)`` of any integer dtype.

        Raises:
            CatalogueError: a count is negative or not an integer, or the length differs.
        """
        return replace(self, frequency=_checked_frequency(frequency))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SharedTitles:
    """Which items share their title with another; 12 bytes for each such item, nothing for the others.

    Attributes:
        codes: ``(m,)`` int64, ascending; hashes of the titles, valid in this process only.
        rows: ``(m,)`` int32; the item row behind each hash.
    """

    codes: NDArray[np.int64]
    rows: NDArray[np.int32]

    @staticmethod
    def of_titles(titles: Sequence[str]) -> SharedTitles:
        """Find items that share a title; 0.5 s for a million titles."""
        codes = hash_codes(titles)
        shared = rows_of_equal_codes(codes)
        shared = shared[np.argsort(codes[shared], kind="stable")]
        return SharedTitles(codes=codes[shared], rows=shared.astype(np.int32))

    def of(self, titles: Sequence[str], row: int) -> list[int]:
        """Rows of all items with the title of item ``row``, itself included; empty if it is the only one."""
        title = titles[row]
        first = np.searchsorted(self.codes, hash(title))
        end = np.searchsorted(self.codes, hash(title), side="right")
        return [other for other in self.rows[first:end].tolist() if titles[other] == title]


def prior(frequency: NDArray[np.integer], smoothing: float = 0.0) -> NDArray[np.float64]:
    """p(i) = (freq(i) + smoothing) / sum_j (freq(j) + smoothing), ``(num_items,)`` float64 (arXiv 2506.13229).

    Additive smoothing is ours, not the paper's: above 0, cold items (freq 0) have a small p instead of 0. Items that
    share a path each have their own p here; the path's prior is their sum.

    Raises:
        CatalogueError: smoothing is negative or not finite, or everything is 0.
    """
    if not (math.isfinite(smoothing) and smoothing >= 0):
        raise CatalogueError(f"smoothing {smoothing}: expected a finite number, 0 or above")
    mass = _checked_frequency(frequency) + np.float64(smoothing)
    total = mass.sum()
    if total <= 0:
        raise CatalogueError(
            "no item was ever interacted with: give the training interactions, or a smoothing above 0 for equal priors"
        )
    return np.asarray(mass / total, np.float64)


def item_id_fault(item_id: str) -> str:
    """What is wrong with an item id, as the end of a sentence that begins with the id; "" if nothing."""
    if not item_id:
        return "is empty"
    if len(item_id) > MAX_ITEM_ID_CHARS:
        return f"has more than {MAX_ITEM_ID_CHARS} characters"
    if item_id != item_id.strip():
        return "begins or ends with white space"
    if not item_id.isprintable() and any(unicodedata.category(char) in _UNPRINTABLE for char in item_id):
        return "holds a control or invisible character"
    return ""


def _packed(kind: str, texts: Iterable[str]) -> PackedTexts:
    try:
        return PackedTexts.of(texts)
    except UnicodeEncodeError as error:
        raise CatalogueError(f"{kind} {error.object[:48]!r} is no text: it holds a lone surrogate") from None


def _check_item_ids(item_ids: PackedTexts) -> None:
    is_suspect = item_ids.lengths() > MAX_ITEM_ID_CHARS
    is_suspect[item_ids.odd_rows()] = True
    for row in np.flatnonzero(is_suspect).tolist():
        item_id = item_ids[row]
        if fault := item_id_fault(item_id):
            raise CatalogueError(f"item {item_id[:48]!r}: its id {fault}")


def _check_lines(kind: str, item_ids: Sequence[str], lines: PackedTexts) -> None:
    for row in lines.odd_rows().tolist():
        item_id, line = item_ids[row], lines[row]
        if not line or line.isspace():
            raise CatalogueError(f"item {item_id!r}: empty {kind}")
        if line != line.strip() or len(line.splitlines()) > 1:
            raise CatalogueError(f"item {item_id!r}: {kind} {line!r} is not one trimmed line")


def _checked_frequency(counts: NDArray[np.integer]) -> NDArray[np.int64]:
    """A read-only int64 copy."""
    given = np.asarray(counts)
    if given.ndim != 1 or not np.issubdtype(given.dtype, np.integer):
        raise CatalogueError(f"frequency: expected one integer per item, got shape {given.shape} of {given.dtype}")
    frequency = given.astype(np.int64)
    if (frequency < 0).any():
        raise CatalogueError(f"frequency: {frequency.min()} at item row {int(frequency.argmin())} is negative")
    frequency.flags.writeable = False
    return frequency


def _type_of(column: Sequence[MetadataValue]) -> AttributeType:
    """The type of the first value; numbers are integers while all are whole. Without a value, text."""
    if isinstance(column, TypedValues):
        return column.type
    is_list = any(isinstance(value, tuple) for value in column)
    singles = [one for value in column for one in (value if isinstance(value, tuple) else (value,)) if one is not None]
    match singles[0] if singles else None:
        case bool():
            return AttributeType(base="boolean", is_list=is_list)
        case int() | float():
            is_fraction = any(isinstance(value, float) for value in singles)
            return AttributeType(base="number" if is_fraction else "integer", is_list=is_list)
        case _:
            return AttributeType(base="text", is_list=is_list)


def _check_metadata(name: str, kind: AttributeType, item_ids: Sequence[str], column: Sequence[MetadataValue]) -> None:
    if not name or name in _RESERVED_COLUMNS:
        raise CatalogueError(f"metadata column {name!r}: needs a name, other than item_id and title")
    if isinstance(column, TypedValues) and column.type == kind:
        return
    for item_id, value in zip(item_ids, column, strict=True):
        if value is None:
            continue
        if isinstance(value, tuple) != kind.is_list:
            raise CatalogueError(f"item {item_id!r}: {name} {value!r}; the column is {kind.name}")
        for single in value if isinstance(value, tuple) else (value,):
            try:
                comparable(kind.base, single)
            except ValueError as error:
                raise CatalogueError(
                    f"item {item_id!r}: {name} {single!r} {error}; the column is {kind.name}"
                ) from None
