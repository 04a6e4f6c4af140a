"""The inputs of a run: files and folders, and the rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from igd_core.datasets.sources import DEFAULT_READING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from igd_core.datasets.sources import Reading, Source
    from igd_core.tuning.examples import Examples


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInputs:
    """The files and folders of a run.

    Attributes:
        artifact: directory of the artifact.
        train: history rows to tune on.
        valid: history rows that decide when to stop.
        out: the run's folder.
        model: checkpoint to start from; None with ``from_config``.
        adapter: directory of an adapter of that checkpoint to continue from.
        tokenizer: directory of the tokenizer for a model from scratch, or of ``model``'s tokenizer with tokens added.
        device: ``auto``, ``cpu``, ``cuda``.
        on_unknown: ``error`` refuses a row whose target is not in the catalogue, ``drop`` leaves it out.
        reading: how to read both files of rows.
    """

    artifact: Path
    train: Path | Source
    valid: Path | Source
    out: Path
    model: str | None = None
    adapter: Path | None = None
    tokenizer: Path | None = None
    device: str = "auto"
    on_unknown: str = "error"
    reading: Reading = DEFAULT_READING


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningData:
    """The rows of a run.

    Attributes:
        train: to tune on.
        valid: to decide when to stop.
        dropped: rows left out because their target is not in the catalogue.
        bad_rows: rows left out because they cannot be used.
        untrained: validation rows left out because no training row asks for their item.
        notes: what a person should know about how the files were read.
    """

    train: Examples
    valid: Examples
    dropped: int
    bad_rows: int = 0
    untrained: int = 0
    notes: Sequence[str] = ()
