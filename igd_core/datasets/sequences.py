"""What each user chose in training, in order, from either kind of training file."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from igd_core.datasets.interactions import Interactions
from igd_core.datasets.interactions_file import read_interactions
from igd_core.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from igd_core.catalogue.items import Catalogue
    from igd_core.datasets.interactions_file import InteractionsFile
    from igd_core.datasets.rows import HistoryRows
    from igd_core.datasets.sources import Reading, Source


def read_training(
    file: Path | Source, catalogue: Catalogue, *, on_unknown: Literal["error", "drop"], reading: Reading
) -> InteractionsFile:
    """Training rows for `training_sequences`: with who chose, and with the times of history rows if all can be read.

    Raises:
        DataError: as `read_interactions`.
    """
    try:
        return read_interactions(
            file, catalogue, on_unknown=on_unknown, optional=("user_id", "timestamp"), reading=reading
        )
    except DataError:  # if it is about times that only order rows, these stay as they stand; else it comes again
        read = read_interactions(file, catalogue, on_unknown=on_unknown, optional=("user_id",), reading=reading)
    note = "not every timestamp of the history rows can be read: each person's rows are taken as they stand"
    return replace(read, notes=[*read.notes, note])


def training_sequences(data: Interactions | HistoryRows) -> list[NDArray[np.int32]]:
    """One array of item rows for each user, oldest first.

    A user's history rows repeat the earlier items. Rows of a named user are joined, by time where they tell it and else
    as they stand: the first row's history, then the targets. Without names, a row continues the previous sequence if
    its history is that sequence's end; otherwise it begins another.
    """
    if isinstance(data, Interactions):
        order = np.lexsort((data.timestamp, data.user))
        bounds = np.flatnonzero(np.diff(data.user[order])) + 1
        return [part.astype(np.int32) for part in np.split(data.item[order], bounds) if len(part)]
    sequences: list[list[int]] = []
    person: int | None = None
    for row in data.by_user_and_time().tolist():
        history, target = data.history(row).tolist(), int(data.item[row])
        if data.user is None:
            goes_on = bool(sequences) and bool(history) and sequences[-1][-len(history) :] == history
        else:
            goes_on = person == int(data.user[row])
            person = int(data.user[row])
        if goes_on:
            sequences[-1].append(target)
        else:
            sequences.append([*history, target])
    return [np.array(sequence, dtype=np.int32) for sequence in sequences]
