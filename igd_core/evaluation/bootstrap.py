"""Percentile bootstrap. Every column draws the same rows for the same seed, so differences are paired.

Rows are drawn one by one, or in groups. Rows with the same target title are not independent: a method that finds the
title finds it for most of them at once, so an interval that counts each row as new evidence is too narrow.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from igd_core.evaluation.metrics import NONE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

Draw = Literal["rows", "targets"]

DRAWS: tuple[Draw, ...] = ("rows", "targets")
"""What to draw: rows, or target titles, each with all its rows."""

LEVEL = 0.95
_BLOCK = 64
_COVERAGE_RESAMPLES = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float

    @staticmethod
    def of(value: float, draws: NDArray[np.float64]) -> Interval:
        """The middle 95 % of ``draws`` around ``value``."""
        finite = draws[np.isfinite(draws)]
        if not len(finite):
            return Interval(value=float(value), low=float("nan"), high=float("nan"))
        low, high = np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return Interval(value=float(value), low=float(low), high=float(high))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Resampling:
    """How to resample: how often, from which seed, and what.

    Attributes:
        resamples: number of draws.
        seed: of the draws.
        groups: ``(rows,)`` int64, the group of each row, numbered from 0 without gaps. A draw takes as many groups as
            there are, each with all its rows, and a mean is over the rows drawn. None: each row is a group.
    """

    resamples: int = 2000
    seed: int = 0
    groups: NDArray[np.int64] | None = None

    def of(self, members: NDArray[np.bool_]) -> Resampling:
        """The resampling for a subset of the rows; ``members`` is ``(rows,)``."""
        if self.groups is None:
            return self
        return replace(self, groups=np.unique(self.groups[members], return_inverse=True)[1])

    def weights(self, rows: int) -> Iterator[NDArray[np.float64]]:
        """Blocks of ``(draws, rows)`` float64: how often each row is in each draw."""
        rng = np.random.default_rng(self.seed)
        units = rows if self.groups is None else int(self.groups.max()) + 1
        for first in range(0, self.resamples, _BLOCK):
            draws = min(_BLOCK, self.resamples - first)
            drawn = rng.integers(0, units, size=(draws, units)) + units * np.arange(draws)[:, None]
            times = np.bincount(drawn.ravel(), minlength=draws * units).reshape(draws, units).astype(np.float64)
            yield times if self.groups is None else times[:, self.groups]

    def means(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Mean of each column in each draw: ``(rows, columns)`` to ``(resamples, columns)`` float64.

        A column's NaN rows do not count; a draw without any other row is NaN.

        >>> draws = Resampling(resamples=500, seed=1).means(np.array([[0.0, 1.0], [1.0, 2.0]]))
        >>> draws.shape, bool(np.allclose(draws[:, 1] - draws[:, 0], 1.0))
        ((500, 2), True)
        """
        given = np.isfinite(values)
        filled = np.where(given, values, 0.0)
        whole = bool(given.all())
        means = []
        for weights in self.weights(len(values)):
            count = weights.sum(axis=1, keepdims=True) if whole else weights @ given
            with np.errstate(invalid="ignore", divide="ignore"):
                means.append((weights @ filled) / count)
        return np.concatenate(means)


def coverage_interval(value: float, lists: NDArray[np.integer[Any]], *, total: int, resampling: Resampling) -> Interval:
    """Interval of a coverage: ``value`` plus and minus 1.96 standard deviations of the resampled coverages.

    A resample has about 63 % of the distinct rows and so covers less: its quantiles would lie below the value, but its
    spread is usable.

    Args:
        value: coverage of ``lists``, cut to the first k places.
        lists: ``(rows, k)``.
        total: number of leaves (or items).
        resampling: at most 200 of its draws are used.
    """
    row, place = np.nonzero(lists != NONE)
    shown = lists[row, place]
    order = np.argsort(shown, kind="stable")
    if not len(order):
        return Interval(value=value, low=value, high=value)
    starts = np.flatnonzero(np.diff(shown[order], prepend=NONE))
    few = replace(resampling, resamples=min(_COVERAGE_RESAMPLES, resampling.resamples))
    covered = np.concatenate(
        [
            (np.add.reduceat(weights[:, row[order]], starts, axis=1) > 0).sum(axis=1)
            for weights in few.weights(len(lists))
        ]
    )
    margin = 1.96 * float(np.std(covered / total))
    return Interval(value=value, low=max(0.0, value - margin), high=min(1.0, value + margin))
