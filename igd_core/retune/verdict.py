"""Whether a retuned model is published: a paired interval of its metric less the served model's, and a rule."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from igd_core.evaluation.bootstrap import Interval, Resampling
from igd_core.evaluation.compare import Question
from igd_core.evaluation.pairing import on_same_rows

if TYPE_CHECKING:
    from igd_core.evaluation.ranks import RankedRun

Rule: TypeAlias = Literal["not-certainly-worse", "certainly-better"]
"""Publish unless the whole interval lies below 0; or only if all of it lies above."""

_SEEN = "excluded"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the newest held-out rows say.

    Attributes:
        metric: that was compared.
        rows: that both models were asked for.
        served: its value under the served model.
        retuned: under the retuned one.
        difference: ``retuned`` less ``served``, paired by row.
        publish: what the rule says.
        why: in words.
    """

    metric: str
    rows: int
    served: Interval
    retuned: Interval
    difference: Interval
    publish: bool
    why: str


def judge(served: RankedRun, retuned: RankedRun, *, rule: Rule, least_rows: int, metric: str = "NDCG@10") -> Verdict:
    """Compare two evaluations of the same rows, each under the last of its decoding settings.

    Target titles are drawn with all their rows, as rows of one title are no new evidence each.

    Raises:
        InputError: they are of other rows, or the metric is none.
    """
    paired = on_same_rows([served, retuned])
    question = Question(metric=metric, seen=_SEEN)
    runs = paired.runs
    columns = np.column_stack([question.values(run.of(run.methods[-1].name, _SEEN)) for run in runs])
    targets = next((run.targets for run in runs if run.targets is not None), None)
    draws = replace(Resampling(), groups=targets).means(columns)
    before, after = (Interval.of(float(columns[:, at].mean()), draws[:, at]) for at in range(2))
    difference = Interval.of(after.value - before.value, draws[:, 1] - draws[:, 0])
    publish, why = _ruled(difference, len(columns), rule, least_rows)
    return Verdict(
        metric=metric,
        rows=len(columns),
        served=before,
        retuned=after,
        difference=difference,
        publish=publish,
        why=f"{metric} {after.value:.4f} against {before.value:.4f} on the newest {len(columns):,} held-out rows, "
        f"{difference.value:+.4f} ({difference.low:+.4f} to {difference.high:+.4f}): {why}",
    )


def _ruled(difference: Interval, rows: int, rule: Rule, least_rows: int) -> tuple[bool, str]:
    if rows < least_rows:
        return False, f"too few rows to say, at least {least_rows:,} are asked for"
    if difference.low > 0:
        return True, "certainly better"
    if difference.high < 0:
        return False, "certainly worse"
    if rule == "certainly-better":
        return False, "not certainly better"
    return True, "not certainly worse"
