"""What a start reads itself from the rows and events that were prepared."""

from __future__ import annotations

import csv
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def first_history(rows: Path) -> list[str]:
    """The longest of the first hundred histories, its last five items."""
    with rows.open(encoding="utf-8", newline="") as file:
        histories = [row["history_item_ids"].split() for row, _ in zip(csv.DictReader(file), range(100), strict=False)]
    return max(histories, key=len)[-5:]


def have_two_sequences(events: Path) -> bool:
    """Whether two people or more chose two items or more."""
    chosen: Counter[str] = Counter()
    with events.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            chosen[row["user_id"]] += 1
            if chosen[row["user_id"]] == 2 and sum(count > 1 for count in chosen.values()) > 1:
                return True
    return False
