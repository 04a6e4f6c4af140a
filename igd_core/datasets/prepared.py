"""A prepared data set: one folder of csv files that `igd build`, tuning and evaluation read.

items.csv               item_id, title, attributes (several values of a cell joined by "|", or what no value holds)
items.schema.json       the attributes' types: igd_core/datasets/attribute_schema.py
train_interactions.csv  user_id, item_id, timestamp[, rating]: all of training, for the prior
train.csv, valid.csv,   user_id, history_item_ids (separated by spaces, oldest first), item_id, timestamp[, rating]:
test.csv                the targets that have a history; from a store with impressions also propensity,
                        negative_item_ids and negative_propensities: igd_core/datasets/exposure.py
left_out.csv            file, row, line, reason: what of the source is not used, where there is such
dataset.json            how it was made, and counts
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from igd_core.datasets.attribute_schema import LIST_SEPARATOR, schema_path, schema_text
from igd_core.datasets.odd_titles import odd_titles
from igd_core.datasets.rows import HistoryRows, history_rows, item_frequency
from igd_core.datasets.split import split_as
from igd_core.errors import DataError
from igd_core.replaced_outputs import require_only
from igd_core.timestamps import iso_of
from igd_core.whole_files import replaced_folder

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from igd_core.catalogue.items import Catalogue, MetadataValue
    from igd_core.datasets.exposure import Exposure
    from igd_core.datasets.interactions import Interactions
    from igd_core.datasets.options import Preparation

_SEPARATORS = (LIST_SEPARATOR, ";", "||", "\t", "\x1f")
LEFT_OUT = "left_out.csv"
_SUMMARY = "dataset.json"
_SCHEMA = schema_path(Path("items.csv")).name
_TABLES = ("items", "train_interactions", "train", "valid", "test")
_PARTS = {*(f"{table}.csv" for table in _TABLES), LEFT_OUT, _SUMMARY, _SCHEMA}
_NEEDS_QUOTES = re.compile(r'[,"\r\n]')


def write_prepared(
    out: Path,
    catalogue: Catalogue,
    interactions: Interactions,
    how: Preparation,
    *,
    force: bool = False,
    left_out: Sequence[tuple[str, int, int, str]] = (),
) -> dict[str, object]:
    """Split, make rows, and write the folder `out` atomically; returns the content of dataset.json.

    Args:
        out: the folder.
        catalogue: its items.
        interactions: with them.
        how: they are split, and rows made.
        force: whether a prepared data set there is replaced.
        left_out: rows of the source that are not used: file, row, line, reason.

    Raises:
        DataError: `out` cannot be written; it is not empty and `force` is off, or is on but `out` is no prepared data
            set, or not that alone; the interactions cannot be split; an id or a value holds the separator of its
            column.
    """
    _check_target(out, force=force)
    _check_item_ids(catalogue)
    split = split_as(how.split, interactions, held_out=how.held_out)
    positions = {"train": split.train, "valid": split.valid, "test": split.test}
    rows = {part: history_rows(interactions, at, max_history=how.max_history) for part, at in positions.items()}
    training = interactions.take(split.train)
    items, separators = _item_columns(catalogue)
    summary: dict[str, object] = {
        "split": how.split,
        "max_history": how.max_history,
        "items": len(catalogue),
        "items_never_in_training": int((item_frequency(training, catalogue) == 0).sum()),
        "items_never_chosen": int((item_frequency(interactions, catalogue) == 0).sum()),
        "items_of_a_shared_title": len(catalogue) - len(set(catalogue.titles)),
        "odd_titles": dict(Counter(odd.reason for odd in odd_titles(catalogue))),
        "users": len(np.unique(interactions.user)),
        **_when_and_again(interactions),
        "interactions": {part: len(at) for part, at in positions.items()},
        "rows": {part: len(made) for part, made in rows.items()},
        "attributes": {name: kind.name for name, kind in catalogue.types.items()},
        "multi": separators,
    }
    tables: dict[str, Mapping[str, Sequence[object]]] = {
        "items": items,
        "train_interactions": _columns(training, catalogue),
    }
    tables |= {part: _columns(made, catalogue) for part, made in rows.items()}
    if left_out:
        names = ("file", "row", "line", "reason")
        tables[LEFT_OUT.removesuffix(".csv")] = dict(zip(names, zip(*left_out, strict=True), strict=True))
    try:
        _replace_folder(
            out,
            tables,
            {_SUMMARY: json.dumps(summary, indent=2) + "\n", _SCHEMA: schema_text(catalogue.types, separators)},
        )
    except OSError as error:
        raise DataError(f"{out}: cannot be written: {error.strerror}") from None
    return summary


def _when_and_again(interactions: Interactions) -> dict[str, object]:
    """First and last time, and how many rows repeat another: at the same time, or what the same person chose before."""
    pair = interactions.user.astype(np.int64) << 32 | interactions.item
    moments = len(np.unique(np.column_stack([pair, interactions.timestamp]), axis=0))
    first, last = interactions.timestamp.min(), interactions.timestamp.max()
    return {
        "first": iso_of(int(first * 1000)),
        "last": iso_of(int(last * 1000)),
        "repeated_rows": len(interactions) - moments,
        "chosen_again": moments - len(np.unique(pair)),
    }


def _check_target(out: Path, *, force: bool) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise DataError(f"{out}: is a file, not a folder")
    if any(out.iterdir()):
        if not force:
            raise DataError(f"{out}: is not empty; igd data prepare --force replaces it")
        if not (out / _SUMMARY).is_file():
            raise DataError(f"{out}: holds no {_SUMMARY}, so it is no prepared data set and --force leaves it alone")
        require_only(out, _PARTS, "a prepared data set")


def _check_item_ids(catalogue: Catalogue) -> None:
    for item_id in catalogue.item_ids:
        if len(item_id.split()) != 1:
            raise DataError(f"item {item_id!r}: its id holds white space, which separates the ids of a history")


def _item_columns(catalogue: Catalogue) -> tuple[dict[str, Sequence[str]], dict[str, str]]:
    """The cells of items.csv, and the separator of each list column."""
    separators = {
        name: _separator(name, column) for name, column in catalogue.metadata.items() if catalogue.types[name].is_list
    }
    cells = {
        name: [_cell(value, separators.get(name, "")) for value in column]
        for name, column in catalogue.metadata.items()
    }
    return {"item_id": catalogue.item_ids, "title": catalogue.titles, **cells}, separators


def _separator(name: str, column: Sequence[MetadataValue]) -> str:
    """The first of the usual separators that no value contains."""
    left = dict.fromkeys(_SEPARATORS)
    for value in column:
        for part in value if isinstance(value, tuple) else ():
            if not isinstance(part, str):
                continue
            if not part or part != part.strip():
                raise DataError(f"{name} {part!r}: one of several values may not be empty or padded")
            left = {separator: None for separator in left if separator not in part}
            if not left:
                raise DataError(f"{name} {part!r}: one of several values holds what could separate them")
    return next(iter(left))


def _cell(value: MetadataValue, separator: str) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return separator.join(_cell(part, "") for part in value) if isinstance(value, tuple) else str(value)


def _columns(data: Interactions | HistoryRows, catalogue: Catalogue) -> dict[str, Sequence[object]]:
    columns: dict[str, Sequence[object]] = {}
    if data.user is not None and data.user_ids is not None:
        columns["user_id"] = [data.user_ids[code] for code in data.user.tolist()]
    if isinstance(data, HistoryRows):
        ids = [catalogue.item_ids[i] for i in data.history_item.tolist()]
        start = data.history_start.tolist()
        columns["history_item_ids"] = [" ".join(ids[a:b]) for a, b in itertools.pairwise(start)]
    columns["item_id"] = [catalogue.item_ids[i] for i in data.item.tolist()]
    if data.timestamp is not None:
        columns["timestamp"] = data.timestamp.tolist()
    if data.rating is not None:
        columns["rating"] = ["" if rating != rating else rating for rating in data.rating.tolist()]  # noqa: PLR0124 - NaN
    if data.exposure is not None and isinstance(data, HistoryRows):
        columns |= _exposure_columns(data.exposure, catalogue)
    return columns


def _exposure_columns(exposure: Exposure, catalogue: Catalogue) -> dict[str, Sequence[object]]:
    ids = [catalogue.item_ids[i] for i in exposure.negative_item.tolist()]
    shares = [f"{share:.6g}" for share in exposure.negative_propensity.tolist()]
    spans = list(itertools.pairwise(exposure.negative_start.tolist()))
    return {
        "propensity": ["" if math.isnan(share) else f"{share:.6g}" for share in exposure.propensity.tolist()],
        "negative_item_ids": [" ".join(ids[a:b]) for a, b in spans],
        "negative_propensities": [" ".join(shares[a:b]) for a, b in spans],
    }


def _line(cells: Iterable[object]) -> str:
    """Write one csv line. Python 3.11's csv module does not quote a lone carriage return, which breaks the row."""
    texts = map(str, cells)
    return (
        ",".join('"' + text.replace('"', '""') + '"' if _NEEDS_QUOTES.search(text) else text for text in texts) + "\n"
    )


def _replace_folder(out: Path, tables: Mapping[str, Mapping[str, Sequence[object]]], texts: Mapping[str, str]) -> None:
    with replaced_folder(out) as made:
        for name, columns in tables.items():
            with (made / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
                file.writelines(_line(row) for row in itertools.chain([columns], zip(*columns.values(), strict=True)))
        for name, text in texts.items():
            (made / name).write_text(text, "utf-8")
