"""The rows to evaluate: read, sampled, and grouped into slices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from igd_core.datasets.interactions_file import read_interactions
from igd_core.datasets.rows import HistoryRows
from igd_core.datasets.sources import DEFAULT_READING, Reading, Source
from igd_core.errors import DataError, InputError
from igd_core.evaluation.metrics import NONE
from igd_core.ids import ItemIndex

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from igd_core.artifact import Artifact
    from igd_core.datasets.row_places import RowPlaces

_LENGTHS = ((0, "0"), (1, "1"), (2, "2-4"), (5, "5-9"), (10, "10 or more"))
_DECISIONS = ((0, "0-2"), (3, "3"), (4, "4"), (5, "5"), (6, "6 or more"))
_UNKNOWN = "not in the catalogue"


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRows:
    """Histories, each with its target.

    Attributes:
        number: ``(n,)`` int64, position of each in its file, from 0, rising; rows that cannot be used do not count. It
            is the same whatever catalogue the rows are read with.
        histories: n item lists, oldest first.
        target: ``(n,)`` int64 `ItemIndex`; -1 outside the catalogue, which every method misses.
        dropped_from_histories: entries of histories that are not in the catalogue.
        sha256: of the file, and of how it was read if not by default.
        row: ``(n,)`` int64, number of each in messages, as a spreadsheet shows it.
        places: where rows stand in the file, in words.
        unknown_in_file: rows with a target outside the catalogue in the whole file, of which these may be a sample.
        notes: what a person should know about how the file was read.
    """

    number: NDArray[np.int64]
    histories: tuple[tuple[ItemIndex, ...], ...]
    target: NDArray[np.int64]
    dropped_from_histories: int
    sha256: str
    row: NDArray[np.int64]
    places: RowPlaces
    unknown_in_file: int = 0
    notes: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.target)

    def target_leaf(self, artifact: Artifact) -> NDArray[np.int64]:
        """Leaf of each target, ``(n,)`` int64, -1 where unknown."""
        return np.where(self.target == NONE, NONE, artifact.leaf_of_item[self.target]).astype(np.int64)

    def target_groups(self, artifact: Artifact) -> NDArray[np.int64]:
        """A number for each row's target title, ``(n,)``, from 0 in order of appearance.

        A target outside the catalogue counts as a title of its own.
        """
        leaf = self.target_leaf(artifact)
        unknown = np.flatnonzero(leaf == NONE)
        leaf[unknown] = NONE - 1 - np.arange(len(unknown))
        _, first, group = np.unique(leaf, return_index=True, return_inverse=True)
        return np.argsort(np.argsort(first))[group]

    def repeats(self, artifact: Artifact) -> NDArray[np.bool_]:
        """Whether the history has the target's title, ``(n,)``: always a miss where seen items are excluded."""
        leaf = artifact.leaf_of_item
        return np.array(
            [
                target != NONE and bool((leaf[list(history)] == leaf[target]).any())
                for history, target in zip(self.histories, self.target.tolist(), strict=True)
            ],
            dtype=bool,
        )


def read_rows(
    path: Path | Source,
    artifact: Artifact,
    *,
    limit: int | None = None,
    seed: int = 0,
    on_unknown: Literal["error", "miss"] = "error",
    reading: Reading = DEFAULT_READING,
) -> EvaluationRows:
    """Read (history, target) rows; with ``limit``, a random sample of that size, in file order.

    Args:
        path: csv, JSON lines or Parquet with history_item_ids and item_id; other columns are ignored.
        artifact: the catalogue of the ids.
        limit: None for all rows.
        seed: of the sample.
        on_unknown: with ``miss``, every method misses a target outside the catalogue, and unknown items of a history
            are left out; ``error`` refuses both.
        reading: how the file is to be read.

    Raises:
        DataError: the file; rows of another kind; an item that the catalogue does not hold (with ``error``).
        InputError: ``limit`` is below 1.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit {limit}: at least 1 row is needed")
    read = read_interactions(
        path,
        artifact.catalogue,
        on_unknown="error" if on_unknown == "error" else "drop",
        optional=(),
        wanted="histories",
        reading=reading,
    )
    data = read.data
    if not isinstance(data, HistoryRows):  # for the type checker: other rows are refused above
        raise DataError(f"{Source.of(path).name}: single interactions")
    # In file order, rows of unknown targets among the others: which of them are drawn must not depend on the catalogue.
    row = np.sort(np.concatenate([read.rows, read.unknown_rows]))
    chosen = np.arange(len(row))
    if limit is not None and limit < len(row):
        chosen = np.sort(np.random.default_rng(seed).permutation(len(row))[:limit])
    row = row[chosen]
    known = ~np.isin(row, read.unknown_rows)
    place = np.searchsorted(read.rows, row)  # in `data`, of known targets
    target = np.full(len(row), NONE, dtype=np.int64)
    target[known] = data.item[place[known]]
    histories = tuple(
        tuple(map(ItemIndex, data.history(at).tolist())) if is_known else ()
        for at, is_known in zip(place.tolist(), known.tolist(), strict=True)
    )
    return EvaluationRows(
        number=chosen.astype(np.int64),
        histories=histories,
        target=target,
        dropped_from_histories=read.dropped_from_histories,
        sha256=Source.of(path).sha256(reading),
        row=row,
        places=read.places,
        unknown_in_file=len(read.unknown_rows),
        notes=read.notes,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Slicing:
    """Rows in groups: row i is in group ``names[group[i]]``; ``group`` is ``(n,)`` int64."""

    title: str
    names: tuple[str, ...]
    group: NDArray[np.int64]


def slicings(rows: EvaluationRows, artifact: Artifact) -> list[Slicing]:
    """Group rows by history length, by popularity of the target's title, and by decisions on its path.

    Titles are sorted by training interactions: the head is the most popular titles that make up the first third of all
    interactions, then come middle and tail; cold titles have none. A decision is a token with siblings. Rows whose
    target the catalogue lacks, and whose histories are not read, are a group of their own.
    """
    length = np.array([len(history) for history in rows.histories], dtype=np.int64)
    leaf = rows.target_leaf(artifact)
    return [
        _binned("history length", length, _LENGTHS, unknown=leaf == NONE),
        Slicing(
            title="target popularity",
            names=("head", "middle", "tail", "cold", _UNKNOWN),
            group=np.append(_popularity_group(artifact), 4)[leaf],
        ),
        _binned("decisions", _decisions(leaf, artifact), _DECISIONS, unknown=leaf == NONE),
    ]


def leaf_frequency(artifact: Artifact) -> NDArray[np.int64]:
    """Training interactions of each leaf, all its items together, ``(num_leaves,)`` int64."""
    trie = artifact.trie
    return np.add.reduceat(artifact.catalogue.frequency[trie.leaf_items], trie.leaf_start[:-1])


def _popularity_group(artifact: Artifact) -> NDArray[np.int64]:
    frequency = leaf_frequency(artifact)
    order = np.argsort(-frequency, kind="stable")
    before = np.cumsum(frequency[order]) - frequency[order]
    group = np.empty(len(frequency), dtype=np.int64)
    group[order] = np.minimum(3 * before // max(1, int(frequency.sum())), 2)
    group[frequency == 0] = 3
    return group


def _decisions(leaf: NDArray[np.int64], artifact: Artifact) -> NDArray[np.int64]:
    trie = artifact.trie
    count = np.zeros(len(leaf), dtype=np.int64)
    node = np.where(leaf == NONE, 0, trie.leaf_node[leaf]).astype(np.int64)
    while (inner := np.flatnonzero(node)).size:
        node[inner] = trie.parents(node[inner])
        count[inner] += trie.row_start[node[inner] + 1] - trie.row_start[node[inner]] > 1
    return count


def _binned(
    title: str, values: NDArray[np.int64], bins: tuple[tuple[int, str], ...], *, unknown: NDArray[Any]
) -> Slicing:
    lows = np.array([low for low, _ in bins])
    group = np.searchsorted(lows, values, side="right") - 1
    group[unknown] = len(bins)
    return Slicing(title=title, names=(*(name for _, name in bins), _UNKNOWN), group=group)
