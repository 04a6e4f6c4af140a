"""The data sets that benchmarks run on: their names, and where the one that is not installed lies."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeAlias, get_args

Dataset: TypeAlias = Literal["ml-100k", "video_games"]
DATASETS: tuple[Dataset, ...] = get_args(Dataset)
VIDEO_GAMES_DIR = Path(__file__).resolve().parents[3] / "shared" / "data" / "video_games"
