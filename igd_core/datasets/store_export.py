"""Interactions from an export of a store: which events are choices, and what was shown with them.

An event of a kind that makes a history is an interaction; neighbours of one user on one item, of kinds that all differ,
are one (`igd_core.event_kinds.steps`), at the time of the first. Its rating is the value of an event of the kind
``rating`` among them.

An interaction whose events name an answer on record was shown at the rank that the answer gave it; without a record the
``position`` that an event says counts. The other items of that answer are its negatives, in the order of their ranks,
but for those that the user chose from the same answer, whenever, or had chosen before.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from igd_core.datasets.export_format import SCHEMAS
from igd_core.datasets.exposure import Exposure, propensity_at
from igd_core.datasets.interactions import Interactions
from igd_core.errors import DataError
from igd_core.event_kinds import steps

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from igd_core.catalogue.items import Catalogue
    from igd_core.datasets.export_format import StoreExport, Table

_RATING = "rating"
_MS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedInteractions:
    """What an export came to.

    Attributes:
        interactions: by user, then by time.
        events: that made them.
        other_events: of kinds that make no history.
        dropped: events on items that the catalogue does not hold.
        shown: interactions whose rank is known.
    """

    interactions: Interactions
    events: int
    other_events: int
    dropped: int
    shown: int


@dataclass(slots=True)
class _Step:
    """An interaction in the making; ``rank`` 0: not known."""

    user: int
    item: int
    time_ms: int
    rating: float = float("nan")
    rank: int = 0
    request_id: str | None = None
    negatives: Sequence[tuple[int, int]] = ()


@dataclass(slots=True)
class _Counts:
    events: int = 0
    others: int = 0
    unknown: dict[str, int] = field(default_factory=dict)


def read_export(
    export: StoreExport, catalogue: Catalogue, *, kinds: Collection[str], power: float, drop_unknown: bool
) -> ExportedInteractions:
    """The interactions of an export.

    Args:
        export: checked.
        catalogue: its items.
        kinds: those of events that make a history.
        power: of the position-based model (`igd_core.datasets.exposure`).
        drop_unknown: leave out events on items that the catalogue does not hold; else they are an error.

    Raises:
        DataError: there is no such event; an item is unknown; a file cannot be read.
    """
    item_of = {item_id: row for row, item_id in enumerate(catalogue.item_ids)}
    shown = _shown(export, item_of)
    counts, user_ids, made = _Counts(), list[str](), list[_Step]()
    for user_id, events in _by_user(export):
        found = _steps_of(events, item_of, kinds, counts)
        if found:
            _expose(found, user_id, shown)
            for step in found:
                step.user = len(user_ids)
            user_ids.append(user_id)
            made += found
    if counts.unknown and not drop_unknown:
        sample = ", ".join(repr(item_id) for item_id in list(counts.unknown)[:5])
        raise DataError(
            f"export: {sum(counts.unknown.values())} events are on items that are not in the catalogue of "
            f"{len(catalogue)} items: {sample}; --on-unknown-item drop leaves them out"
        )
    if not made:
        raise DataError(
            f"export: {export.folder} holds no event of the kinds {', '.join(kinds)} on an item of the catalogue"
        )
    is_shown = sum(step.rank > 0 for step in made)
    return ExportedInteractions(
        interactions=_interactions(user_ids, made, power if is_shown else None),
        events=counts.events,
        other_events=counts.others,
        dropped=sum(counts.unknown.values()),
        shown=is_shown,
    )


def _read(export: StoreExport, table: Table, columns: Sequence[str]) -> pa.Table:
    try:
        parts = [pq.ParquetFile(path).read(columns=list(columns), use_threads=False) for path in export.files[table]]
        schema = pa.schema([SCHEMAS[table].field(name) for name in columns])
        return pa.concat_tables([part.cast(schema) for part in parts] or [schema.empty_table()])
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise DataError(f"export: {export.folder / table}: {str(error).splitlines()[0]}") from None


def _by_user(export: StoreExport) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The events of each user by time, of one time in the order of the export, which is that of the store."""
    columns = ("user_id", "timestamp", "item_id", "kind", "value", "position", "request_id")
    table = _read(export, "events", columns)
    table = table.set_column(1, "timestamp", table.column("timestamp").cast(pa.int64()))
    table = table.append_column("row", pa.array(range(table.num_rows), pa.int64()))  # arrow's sort is not stable
    order = [("user_id", "ascending"), ("timestamp", "ascending"), ("row", "ascending")]
    events: list[dict[str, Any]] = []
    for batch in table.sort_by(order).to_batches(max_chunksize=10_000):
        for event in batch.to_pylist():
            if events and event["user_id"] != events[0]["user_id"]:
                yield events[0]["user_id"], events
                events = []
            events.append(event)
    if events:
        yield events[0]["user_id"], events


def _shown(export: StoreExport, item_of: Mapping[str, int]) -> dict[tuple[str, str], list[tuple[int, int]]]:
    """(rank, item) of each answer on record, by user and request, by rank; items of other catalogues left out."""
    answers: dict[tuple[str, str], list[tuple[int, int]]] = {}
    table = _read(export, "impressions", ("user_id", "request_id", "rank", "item_id"))
    for batch in table.to_batches(max_chunksize=10_000):
        for user_id, request_id, rank, item_id in zip(*(column.to_pylist() for column in batch), strict=True):
            if item_id in item_of:
                answers.setdefault((user_id, request_id), []).append((rank, item_of[item_id]))
    for ranked in answers.values():
        ranked.sort()
    return answers


def _steps_of(
    events: Sequence[Mapping[str, Any]], item_of: Mapping[str, int], kinds: Collection[str], counts: _Counts
) -> list[_Step]:
    kept = []
    for event in events:
        if event["kind"] not in kinds:
            counts.others += 1
        elif event["item_id"] in item_of:
            kept.append(event)
        else:
            counts.unknown[event["item_id"]] = counts.unknown.get(event["item_id"], 0) + 1
    counts.events += len(kept)
    begins = steps((event["item_id"], event["kind"]) for event in kept)
    return [_step(kept[a:b], item_of) for a, b in itertools.pairwise([*begins, len(kept)])]


def _step(events: Sequence[Mapping[str, Any]], item_of: Mapping[str, int]) -> _Step:
    step = _Step(user=0, item=item_of[events[0]["item_id"]], time_ms=events[0]["timestamp"])
    for event in events:
        if event["kind"] == _RATING and event["value"] is not None:
            step.rating = event["value"]
        step.request_id = step.request_id or event["request_id"]
        step.rank = step.rank or event["position"] or 0
    return step


def _expose(made: Sequence[_Step], user_id: str, shown: Mapping[tuple[str, str], Sequence[tuple[int, int]]]) -> None:
    """Set ranks and negatives of a user's interactions from the answers on record."""
    taken: dict[str, set[int]] = {}
    for step in made:
        if step.request_id is not None:
            taken.setdefault(step.request_id, set()).add(step.item)
    before: set[int] = set()
    for step in made:
        before.add(step.item)
        answer = shown.get((user_id, step.request_id)) if step.request_id is not None else None
        if answer is None:
            continue
        step.rank = next((rank for rank, item in answer if item == step.item), step.rank)
        if step.rank:
            chosen = taken[step.request_id or ""]
            step.negatives = [(rank, item) for rank, item in answer if item not in chosen and item not in before]


def _interactions(user_ids: Sequence[str], made: Sequence[_Step], power: float | None) -> Interactions:
    time_ms = np.array([step.time_ms for step in made], np.int64)
    rating = np.array([step.rating for step in made], np.float64)
    return Interactions(
        user_ids=user_ids,
        user=np.array([step.user for step in made], np.int32),
        item=np.array([step.item for step in made], np.int32),
        timestamp=time_ms / _MS if (time_ms % _MS).any() else time_ms // _MS,
        rating=None if np.isnan(rating).all() else rating,
        exposure=None if power is None else _exposure(made, power),
    )


def _exposure(made: Sequence[_Step], power: float) -> Exposure:
    rank = np.array([step.rank for step in made], np.int64)
    negatives = [negative for step in made for negative in step.negatives]
    return Exposure(
        propensity=np.where(rank > 0, propensity_at(np.maximum(rank, 1), power), np.nan),
        negative_start=np.concatenate(([0], np.cumsum([len(step.negatives) for step in made]))).astype(np.int64),
        negative_item=np.array([item for _, item in negatives], np.int32),
        negative_propensity=propensity_at(np.array([rank for rank, _ in negatives], np.int64), power),
    )
