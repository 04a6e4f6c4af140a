"""The two real data sets for benchmarks and exactness tests, each with ten-item test histories."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from igd_core.artifact import BuildOptions, build_artifact
from igd_core.bench.names import DATASETS, VIDEO_GAMES_DIR
from igd_core.datasets.interactions_file import read_interactions
from igd_core.datasets.items_file import read_items
from igd_core.datasets.movielens import read_movielens
from igd_core.datasets.rows import HistoryRows, history_rows, item_frequency
from igd_core.datasets.split import split_by_time
from igd_core.errors import DataError
from igd_core.ids import ItemIndex

if TYPE_CHECKING:
    from igd_core.artifact import Artifact
    from igd_core.catalogue.items import Catalogue
    from igd_core.catalogue.tokenization import TitleTokenizer

HISTORY_ITEMS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchData:
    """A catalogue with its training frequencies, and test histories of exactly ten items, oldest first."""

    name: str
    catalogue: Catalogue
    histories: tuple[tuple[ItemIndex, ...], ...]

    def artifact(self, tokenizer: TitleTokenizer) -> Artifact:
        """The artifact that decoding is measured on."""
        return build_artifact(self.catalogue, tokenizer, BuildOptions(name=self.name))


def load_dataset(name: str, *, histories: int, seed: int = 0, video_games: Path = VIDEO_GAMES_DIR) -> BenchData:
    """Read a data set, and draw ``histories`` test histories.

    Raises:
        DataError: unknown name, or the data are not on this machine (their terms forbid shipping them).
    """
    if name == "ml-100k":
        catalogue, test = _movielens()
    elif name == "video_games":
        catalogue, test = _video_games(video_games)
    else:
        raise DataError(f"data set {name!r}: one of {', '.join(DATASETS)}")
    full = np.flatnonzero(np.diff(test.history_start) >= HISTORY_ITEMS)
    rows = np.random.default_rng(seed).permutation(full)[:histories]
    return BenchData(
        name=name,
        catalogue=catalogue,
        histories=tuple(tuple(ItemIndex(int(i)) for i in test.history(row)[-HISTORY_ITEMS:]) for row in rows),
    )


def _movielens() -> tuple[Catalogue, HistoryRows]:
    movielens = read_movielens()
    split = split_by_time(movielens.interactions)
    train = movielens.interactions.take(split.train)
    catalogue = movielens.catalogue.with_frequency(item_frequency(train, movielens.catalogue))
    return catalogue, history_rows(movielens.interactions, split.test, max_history=HISTORY_ITEMS)


def _video_games(directory: Path) -> tuple[Catalogue, HistoryRows]:
    if not (directory / "items.csv").is_file():
        raise DataError(f"{directory}: the Video Games data are not here; they may not be redistributed")
    items = read_items(directory / "items.csv").catalogue
    train = read_interactions(directory / "train.csv", items, optional=()).data
    test = read_interactions(directory / "test.csv", items, optional=("user_id",)).data
    if not isinstance(test, HistoryRows):
        raise DataError(f"{directory / 'test.csv'}: expected history rows")
    return items.with_frequency(item_frequency(train, items)), test
