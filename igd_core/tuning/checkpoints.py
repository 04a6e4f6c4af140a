"""A run's checkpoints: what it goes on from."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointFolder:
    """The folder of a run's checkpoints: ``checkpoint-STEP`` folders, each complete."""

    path: Path

    @staticmethod
    def of(run: Path) -> CheckpointFolder:
        """That of a run's folder."""
        return CheckpointFolder(path=run / "checkpoints")

    def newest(self) -> Path | None:
        """The checkpoint with the highest step, or None."""
        return max(self._all(), key=_step_of, default=None)

    def keep_newest(self) -> None:
        """Delete all other checkpoints, and what an interrupted write left."""
        newest = self.newest()
        for path in self._all():
            if path != newest:
                shutil.rmtree(path, ignore_errors=True)
        for path in self.path.glob(".checkpoint-*"):
            shutil.rmtree(path, ignore_errors=True)

    def _all(self) -> list[Path]:
        return [path for path in self.path.glob("checkpoint-*") if _CHECKPOINT.fullmatch(path.name)]


def _step_of(path: Path) -> int:
    return int(path.name.rpartition("-")[2])
