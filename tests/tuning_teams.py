"""Runs that several processes share, for tests: what each of them calls, by name."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING
from unittest import mock

from igd_core.tuning.run import tune
from igd_core.tuning.trainer import IGDTrainer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from igd_core.tuning.inputs import RunInputs
    from igd_core.tuning.settings import TuningSettings
    from igd_core.tuning.team import Team

SharedRun = tuple["RunInputs", "TuningSettings", bool, int]
"""Inputs and settings of a run; whether weights are split; the step before which it is interrupted, 0 for none."""


def tune_each(team: Team, runs: Sequence[SharedRun]) -> None:
    """Tune each, or go on with it."""
    for inputs, settings, shards, stop in runs:
        with interrupted_before(stop):
            tune(inputs, settings, resume=(inputs.out / "run.json").exists(), team=replace(team, shards=shards))


@contextlib.contextmanager
def interrupted_before(step: int) -> Iterator[None]:
    """Ctrl-C before a step; with 0, never."""
    original = IGDTrainer.get_batch_samples

    def get(self: IGDTrainer, *args: object) -> object:
        if step and self.state.global_step == step:
            raise KeyboardInterrupt
        return original(self, *args)  # type: ignore[arg-type]

    with mock.patch.object(IGDTrainer, "get_batch_samples", get):
        try:
            yield
        except KeyboardInterrupt:
            if not step:
                raise
