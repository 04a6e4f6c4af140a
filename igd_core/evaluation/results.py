"""Ranked lists to metrics with intervals, differences from a reference, and slices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from igd_core.errors import InputError
from igd_core.evaluation.bootstrap import Interval, Resampling, coverage_interval
from igd_core.evaluation.metrics import (
    NONE,
    coverage,
    discounted_gains,
    hits,
    mean_over_list,
    popularity_lift,
    target_ranks,
)
from igd_core.evaluation.rows import leaf_frequency, slicings

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from igd_core.artifact import Artifact
    from igd_core.evaluation.methods import Method
    from igd_core.evaluation.rows import EvaluationRows, Slicing


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodLists:
    """The lists of one method.

    Attributes:
        method: its name.
        known_as: the name in the literature, or empty.
        items: ``(rows, depth)`` int64 `ItemIndex`, one a title, best first, padded with -1.
    """

    method: Method
    known_as: str
    items: NDArray[np.int64]

    @property
    def depth(self) -> int:
        """Length of the longest list."""
        return int(self.items.shape[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodResult:
    """The figures of one method; metrics deeper than its lists are omitted.

    Attributes:
        name: without ``seen``.
        seen: allowed or excluded.
        known_as: the name in the literature, or empty.
        depth: length of the longest list.
        titles: HR@k and NDCG@k where any item of the target's title counts.
        items: HR@k and NDCG@k where the target itself must be the item returned.
        lists: coverage@k, popularity_lift@k, cold_share@k, by title.
        against: name of the reference method; empty for itself.
        difference: ``titles`` minus the reference's, paired row by row.
        slices: by slicing, by group: rows, HR@k and NDCG@k for one k.
    """

    name: str
    seen: str
    known_as: str
    depth: int
    titles: Mapping[str, Interval]
    items: Mapping[str, Interval]
    lists: Mapping[str, Interval]
    against: str
    difference: Mapping[str, Interval]
    slices: Mapping[str, Mapping[str, Mapping[str, Any]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultSettings:
    """How to summarise lists.

    cutoffs: every k of the metrics, ascending.
        cutoffs: every k of the metrics, rising.
        reference: the method that others are compared with; None for D3, else most popular, else the first.
        resampling: for the intervals.
    """

    cutoffs: tuple[int, ...]
    reference: str | None
    resampling: Resampling

    def __post_init__(self) -> None:
        if not self.cutoffs or min(self.cutoffs) < 1 or list(self.cutoffs) != sorted(set(self.cutoffs)):
            raise InputError(f"k: expected rising numbers from 1 on, got {', '.join(map(str, self.cutoffs))}")
        if self.resampling.resamples < 100:
            raise InputError(f"resamples {self.resampling.resamples}: at least 100 are needed for an interval")

    def shown_cutoff(self, depths: Iterable[int]) -> int:
        """The k of slices, plots and order: of the cutoffs that all lists reach, the nearest to 10."""
        shallowest = min(depths)
        fitting = [k for k in self.cutoffs if k <= shallowest] or self.cutoffs
        return min(fitting, key=lambda k: (abs(k - 10), k))


def summarise(
    methods: Sequence[MethodLists], rows: EvaluationRows, artifact: Artifact, settings: ResultSettings
) -> list[MethodResult]:
    """Compute the figures of every method on the same rows.

    Raises:
        InputError: no method has the reference's name.
    """
    reference = reference_name(methods, settings.reference)
    target = _Targets.of(rows, artifact)
    columns = [_Columns(method, target, settings) for method in methods]
    draws = settings.resampling.means(np.column_stack([target.popularity, *(each.values for each in columns)]))
    popularity_draws, offset = draws[:, 0], 1
    for each in columns:
        each.draws = draws[:, offset : offset + each.values.shape[1]]
        offset += each.values.shape[1]
    by_method = {each.lists.method: each for each in columns}
    groups = slicings(rows, artifact)
    shown = settings.shown_cutoff(method.depth for method in methods)
    results = []
    for each in columns:
        base = next(
            (by for method, by in by_method.items() if (method.name, method.seen) == (reference, each.seen)), None
        )
        results.append(
            MethodResult(
                name=each.lists.method.name,
                seen=each.seen,
                known_as=each.lists.known_as,
                depth=each.lists.depth,
                titles=each.intervals("title "),
                items=each.intervals("item "),
                lists=each.list_intervals(target, popularity_draws, settings.resampling),
                against="" if base is None or base is each else reference,
                difference={} if base is None or base is each else each.less(base),
                slices=each.slices(groups, k=shown, resampling=settings.resampling),
            )
        )
    return results


def title_ranks(methods: Sequence[MethodLists], rows: EvaluationRows, artifact: Artifact) -> list[NDArray[np.int64]]:
    """Rank of each row's target by title, for each method: ``(rows,)``, from 1; 0 where it is not in the list."""
    target = _Targets.of(rows, artifact)
    return [target_ranks(target.leaf_of_item[method.items], target.leaf) for method in methods]


def reference_name(methods: Sequence[MethodLists], wanted: str | None) -> str:
    """The method that others are compared with: ``wanted``, or D3, most popular, the first.

    Raises:
        InputError: no method is called ``wanted``.
    """
    names = list(dict.fromkeys(each.method.name for each in methods))
    if wanted is not None:
        if wanted not in names:
            raise InputError(f"reference {wanted!r}: one of {', '.join(names)}")
        return wanted
    d3 = [each.method.name for each in methods if each.known_as == "D3"]
    return next((name for name in [*d3, "popular"] if name in names), names[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Targets:
    """The targets, in the forms that lists are compared with.

    Attributes:
        item: ``(n,)`` item row, -1 unknown.
        leaf: ``(n,)`` leaf, -1 unknown.
        popularity: ``(n,)`` float64 training interactions of the leaf, NaN unknown.
        leaf_of_item: ``(num_items + 1,)``; the last is -1, for lists' -1.
        leaf_popularity: ``(num_leaves,)`` float64.
    """

    item: NDArray[np.int64]
    leaf: NDArray[np.int64]
    popularity: NDArray[np.float64]
    leaf_of_item: NDArray[np.int64]
    leaf_popularity: NDArray[np.float64]

    @staticmethod
    def of(rows: EvaluationRows, artifact: Artifact) -> _Targets:
        leaf, popularity = rows.target_leaf(artifact), leaf_frequency(artifact).astype(np.float64)
        return _Targets(
            item=rows.target,
            leaf=leaf,
            popularity=np.append(popularity, np.nan)[leaf],
            leaf_of_item=np.append(artifact.leaf_of_item, NONE).astype(np.int64),
            leaf_popularity=popularity,
        )


class _Columns:
    """One method's figures by row, and their means in every draw (``draws``)."""

    def __init__(self, lists: MethodLists, target: _Targets, settings: ResultSettings) -> None:
        self.lists = lists
        self.seen = lists.method.seen
        self.cutoffs = [k for k in settings.cutoffs if k <= lists.depth]
        self.leaves = target.leaf_of_item[lists.items]
        self.draws = np.empty((0, 0))
        ranks = {"title": target_ranks(self.leaves, target.leaf), "item": target_ranks(lists.items, target.item)}
        columns: dict[str, NDArray[np.float64]] = {}
        for level, rank in ranks.items():
            columns |= {f"{level} HR@{k}": hits(rank, k) for k in self.cutoffs}
            columns |= {f"{level} NDCG@{k}": discounted_gains(rank, k) for k in self.cutoffs}
        cold = (target.leaf_popularity == 0).astype(np.float64)
        for k in self.cutoffs:
            columns[f"popularity@{k}"] = mean_over_list(target.leaf_popularity, self.leaves, k)
            columns[f"cold_share@{k}"] = mean_over_list(cold, self.leaves, k)
        self.names = list(columns)
        self.values = np.column_stack(list(columns.values())) if columns else np.empty((len(target.item), 0))

    def intervals(self, prefix: str) -> dict[str, Interval]:
        """Intervals of every column whose name begins with ``prefix``, named without it."""
        return {name.removeprefix(prefix): self._interval(name) for name in self.names if name.startswith(prefix)}

    def less(self, base: _Columns) -> dict[str, Interval]:
        """Title metrics minus those of ``base``; both means use the same draws."""
        result = {}
        for name in self.names:
            if name.startswith("title ") and name in base.names:
                mine, theirs = self.names.index(name), base.names.index(name)
                value = float((self.values[:, mine] - base.values[:, theirs]).mean())
                result[name.removeprefix("title ")] = Interval.of(value, self.draws[:, mine] - base.draws[:, theirs])
        return result

    def list_intervals(
        self, target: _Targets, popularity_draws: NDArray[np.float64], resampling: Resampling
    ) -> dict[str, Interval]:
        """Coverage, popularity lift and cold share at every k."""
        result = {}
        total, chosen = len(target.leaf_popularity), _mean(target.popularity)
        for k in self.cutoffs:
            value = coverage(self.leaves, k, total)
            result[f"coverage@{k}"] = coverage_interval(value, self.leaves[:, :k], total=total, resampling=resampling)
            at = self.names.index(f"popularity@{k}")
            with np.errstate(invalid="ignore", divide="ignore"):
                lift_draws = self.draws[:, at] / popularity_draws - 1.0
            result[f"popularity_lift@{k}"] = Interval.of(popularity_lift(_mean(self.values[:, at]), chosen), lift_draws)
            result[f"cold_share@{k}"] = self._interval(f"cold_share@{k}")
        return result

    def slices(
        self, groups: Sequence[Slicing], *, k: int, resampling: Resampling
    ) -> dict[str, dict[str, dict[str, Any]]]:
        """HR@k and NDCG@k by title in each group that has rows."""
        if k not in self.cutoffs:
            return {}
        at = [self.names.index(f"title HR@{k}"), self.names.index(f"title NDCG@{k}")]
        result: dict[str, dict[str, dict[str, Any]]] = {}
        for slicing in groups:
            result[slicing.title] = {}
            for number, name in enumerate(slicing.names):
                members = slicing.group == number
                values = self.values[members][:, at]
                if len(values):
                    draws, means = resampling.of(members).means(values), values.mean(axis=0)
                    result[slicing.title][name] = {
                        "rows": len(values),
                        f"HR@{k}": Interval.of(means[0], draws[:, 0]),
                        f"NDCG@{k}": Interval.of(means[1], draws[:, 1]),
                    }
        return result

    def _interval(self, name: str) -> Interval:
        at = self.names.index(name)
        return Interval.of(_mean(self.values[:, at]), self.draws[:, at])


def _mean(values: NDArray[np.float64]) -> float:
    """Mean of the finite values; NaN where there is none."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else float("nan")
