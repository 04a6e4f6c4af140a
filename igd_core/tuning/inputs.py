"""What a run is made of: where everything comes from and goes to, and the rows."""

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
    """Where everything comes from and goes to.

    Attributes:
        artifact: directory of the artifact.
        train: history rows to tune on.
        valid: history rows to stop by.
        out: the run's folder.
        model: checkpoint to start from; None with ``from_config``.
        adapter: directory of an adapter of that checkpoint to go on from.
        tokenizer: directory of the tokenizer of a model from scratch, or of ``model``'s own with tokens added.
        device: ``auto``, ``cpu``, ``cuda``.
        on_unknown: what happens to a row whose target is not in the catalogue, ``error`` or ``drop``.
        reading: how both files of rows are to be read.
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
        valid: to stop by.
        dropped: rows left out because their target is not in the catalogue.
        bad_rows: rows left out because they cannot be used.
        notes: what a person should know of how the files were read.
    """

    train: Examples
    valid: Examples
    dropped: int
    bad_rows: int = 0
    notes: Sequence[str] = ()
