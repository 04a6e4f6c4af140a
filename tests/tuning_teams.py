"""Runs that several processes share, for tests: what each of them calls, by name."""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch

from igd_core.cli.main import main
from igd_core.errors import InputError
from igd_core.tuning.run import tune
from igd_core.tuning.settings import TuningSettings
from igd_core.tuning.trainer import IGDTrainer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from igd_core.tuning.inputs import RunInputs
    from igd_core.tuning.team import Team

SharedRun = tuple["RunInputs", dict[str, Any], bool, int]
"""Inputs and settings of a run; whether weights are split; the step before which it is interrupted, 0 for none."""


def tune_each(team: Team, runs: Sequence[SharedRun]) -> None:
    """Tune each, or go on with it."""
    for inputs, settings, shards, stop in runs:
        with interrupted_before(stop):
            tune(
                inputs,
                TuningSettings.read(settings),
                resume=(inputs.out / "run.json").exists(),
                team=replace(team, shards=shards),
            )


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


def launched(rank: int, port: int, folder: str, words: Sequence[str]) -> None:
    """`igd` as one of two processes of torchrun, with its output in a file."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    with (
        Path(folder, f"said-{rank}").open("w") as said,
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
    ):
        code = main(words)
    Path(folder, f"code-{rank}").write_text(str(code))


def fail(team: Team, how: str) -> None:
    """In one process or the other; the one that is left waits for it."""
    if how == "alone":
        team.agreed(lambda: _raise(InputError("model: not on this machine")) if team.rank == 1 else None)
    if how == "elsewhere":
        team.agreed(lambda: _raise(InputError("model: said by the first")) if team.is_first else None)
    if team.rank == 1:
        if how == "ended":
            os.kill(os.getpid(), signal.SIGTERM)
        _raise(ZeroDivisionError("here"))
    team.sum(torch.zeros(1))


def _raise(error: Exception) -> None:
    raise error
