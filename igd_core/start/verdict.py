"""Whether the lists are better than the best baseline's: a rule on the paired difference of the same test rows."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from igd_core.errors import DataError
from igd_core.evaluation.baselines import BASELINES
from igd_core.evaluation.bootstrap import Interval, Resampling
from igd_core.evaluation.compare import Question
from igd_core.evaluation.methods import Mixed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from igd_core.evaluation.ranks import MethodRanks, RankedRun

RELEVANT = 0.1
"""Share of the best baseline's value from which a difference is worth a model."""
RULE = (
    "Compared with the best of the others on the same test rows, by a 95 % interval over the titles that they ask for. "
    "Better: the whole interval is above 0. Not better: it is below 0, or excludes a gain of a tenth of the other's "
    "value. Otherwise there are too few rows to say; the number needed is the one at which such an interval would "
    "exclude 0, or such a gain."
)
_LEAST_TITLES = 20
_PART = "scorer"
"""The baseline that is mixed into the served lists."""
_BY_LENGTH = " gamma=0:"
"""In the name of a setting whose gamma depends on the length of the history."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A method on the test rows.

    Attributes:
        name: of the method.
        value: its NDCG@10.
        less: ours, minus it, paired; None of ours.
    """

    name: str
    value: Interval
    less: Interval | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the test rows say.

    Attributes:
        says: in a word.
        metric: that is compared.
        ours: the served lists.
        scorer_alone: whether the served lists are the item scorer's, gamma being 1: then it is no rival of theirs.
        alone: the model without the item scorer, where the served lists are of both.
        others: baselines, the best first.
        rows: that were compared.
        titles: that these rows ask for.
        needed: rows that would do, where there are too few.
    """

    says: Literal["better", "not better", "too few rows"]
    metric: str
    ours: Judged
    alone: Judged | None
    others: tuple[Judged, ...]
    rows: int
    titles: int
    needed: int | None = None
    scorer_alone: bool = False

    @property
    def best(self) -> Judged:
        """The best baseline that the served lists are not made of alone."""
        return next((other for other in self.others if not (self.scorer_alone and other.name == _PART)), self.others[0])

    def told(self) -> str:
        """In one sentence."""
        found, name, metric = _shown(self.best), shown_name(self.best.name), self.metric
        if self.says == "too few rows":
            told = (
                f"too few rows to say: {found} in {metric} on {name}, the best of the others, on {self.rows:,} test "
                f"rows; need about {self.needed:,}"
            )
        else:
            told = f"{self.says} than {name}, the best of the others: {found} in {metric} on {self.rows:,} test rows"
        if self.scorer_alone:
            return f"{told}; the lists are the item scorer's (gamma 1): the model adds nothing to them"
        foreign = next((other for other in self.others if other.name != _PART), None)
        if self.best.name != _PART or foreign is None:
            return told
        return f"{told}; on {shown_name(foreign.name)}, the best that is not part of them: {_shown(foreign)}"


def _shown(other: Judged) -> str:
    less = other.less or Interval(value=0.0, low=0.0, high=0.0)
    return f"{less.value:+.4f} ({less.low:+.4f} {less.high:+.4f})"


def shown_name(method: str) -> str:
    """A baseline in words."""
    return {
        "popular": "most popular",
        "transitions": "last-item transitions",
        "itemknn": "ItemKNN",
        "bpr": "BPR",
        "sasrec": "SASRec",
        "scorer": "the item scorer alone",
        "repeat": "the history again",
    }.get(method, "the served lists")


def judge(run: RankedRun, *, seed: int = 0) -> Verdict:
    """The verdict on an evaluation of the served setting, with its gamma or alone, and of baselines.

    Raises:
        DataError: the evaluation has no such setting, or no baseline.
    """
    question = Question(seen=run.methods[0].seen)
    settings = [method for method in run.methods if method.name not in BASELINES]
    mixed = [method for method in settings if Mixed.of(method.name).gamma or _BY_LENGTH in method.name]
    ours = mixed or settings
    alone = settings[:1] if mixed and len(settings) > 1 else []
    others = [method for method in run.methods if method.name in BASELINES]
    if len(ours) != 1 or not others:
        raise DataError(f"{run.path}: one served setting and baselines are needed to judge")
    groups = run.targets
    rows = len(ours[0].titles)
    titles = rows if groups is None else int(groups.max()) + 1
    ranked = sorted(others, key=lambda method: -float(question.values(method).mean()))
    found = _judged([ours[0], *ranked, *alone], question, Resampling(seed=seed, groups=groups))
    verdict = Verdict(
        says="too few rows", metric=question.metric, ours=found[0], alone=found[-1] if alone else None,
        others=tuple(found[1 : 1 + len(ranked)]), rows=rows, titles=titles,
        scorer_alone=Mixed.of(ours[0].name).gamma == 1,
    )  # fmt: skip
    best = verdict.best
    says, needed = _rule(best.less, best.value.value, rows=rows, titles=titles)
    return replace(verdict, says=says, needed=needed)


def _judged(methods: Sequence[MethodRanks], question: Question, resampling: Resampling) -> list[Judged]:
    values: NDArray[np.float64] = np.column_stack([question.values(method) for method in methods])
    draws, means = resampling.means(values), values.mean(axis=0)
    return [
        Judged(
            name=method.name,
            value=Interval.of(float(means[at]), draws[:, at]),
            less=None if at == 0 else Interval.of(float(means[0] - means[at]), draws[:, 0] - draws[:, at]),
        )
        for at, method in enumerate(methods)
    ]


def _rule(
    less: Interval | None, best: float, *, rows: int, titles: int
) -> tuple[Literal["better", "not better", "too few rows"], int | None]:
    """`RULE`, on the difference from the best baseline, whose value is ``best``."""
    less = less or Interval(value=0.0, low=0.0, high=0.0)
    relevant = RELEVANT * best
    if titles >= _LEAST_TITLES:
        if less.low > 0:
            return "better", None
        if less.high < max(relevant, 1e-12):
            return "not better", None
    half = (less.high - less.low) / 2
    wanted = max(less.value, relevant - less.value, relevant / 2)
    needed = rows * (half / wanted) ** 2 if wanted > 0 else rows * 10.0
    return "too few rows", _rounded(max(needed, rows * 1.5, _LEAST_TITLES * rows / max(titles, 1)))


def _rounded(number: float) -> int:
    """Up to two digits that count.

    >>> _rounded(4321.0), _rounded(17.2)
    (4400, 18)
    """
    unit = int(10 ** max(0, math.floor(math.log10(number)) - 1))
    return math.ceil(number / unit) * unit
