"""Cut evaluations to their common rows, so that they can be compared row by row."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING

import numpy as np

from igd_core.errors import InputError
from igd_core.evaluation.ranks import IN_FILE_ORDER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from igd_core.evaluation.ranks import RankedRun

_OF_THE_SAMPLE = frozenset({"limit", "seed"})
_NOT_OF_ROWS = frozenset({"artifact"})  # another tokenizer builds another artifact of the same titles


@dataclass(frozen=True, slots=True, kw_only=True)
class SameRows:
    """Runs on the same rows.

    Attributes:
        runs: in the given order, each cut to the common rows.
        rows: number of common rows.
        cut: whether any run had more.
    """

    runs: Sequence[RankedRun]
    rows: int
    cut: bool


def on_same_rows(runs: Sequence[RankedRun]) -> SameRows:
    """Cut samples of one file to the rows that all runs share.

    Raises:
        InputError: the runs are of different files, a run does not say which rows of the file it has, or they have no
            row in common.
    """
    first = runs[0]
    silent = next((run.path for run in runs if run.rows is None), None)
    differs = False
    _require_one_order(runs)
    for run in runs[1:]:
        for name in sorted((first.identity.keys() | run.identity.keys()) - _NOT_OF_ROWS):
            theirs, ours = run.identity.get(name), first.identity.get(name)
            if theirs == ours:
                continue
            problem = f"{run.path}: cannot be paired with {first.path}: {name} is {theirs!r}, there it is {ours!r}"
            if name not in _OF_THE_SAMPLE:
                raise InputError(problem)
            if silent is not None:
                raise InputError(f"{problem}, and {silent} does not say which rows of the file it holds")
            differs = True
    if not differs:
        return SameRows(runs=runs, rows=len(first.methods[0].titles), cut=False)
    held = [run.rows for run in runs if run.rows is not None]
    shared = reduce(np.intersect1d, held)
    if not len(shared):
        raise InputError(f"{first.path}: no row is in all of the {len(runs)} runs that it is to be paired with")
    places = [np.searchsorted(numbers, shared) for numbers in held]
    return SameRows(
        runs=[run.at(each) for run, each in zip(runs, places, strict=True)],
        rows=len(shared),
        cut=any(len(numbers) > len(shared) for numbers in held),
    )


def _require_one_order(runs: Sequence[RankedRun]) -> None:
    """Refuse ranks of an earlier release, which put rows with unknown targets last, beside those of this one."""
    if not any(IN_FILE_ORDER.items() <= run.identity.items() for run in runs):
        return
    for run in runs:
        if run.identity.get("on_unknown") == "miss" and not IN_FILE_ORDER.items() <= run.identity.items():
            raise InputError(
                f"{run.path}: an earlier release wrote it, which put rows with unknown targets last; the same "
                "`igd evaluate` writes it again, or says that it needs another --out"
            )
