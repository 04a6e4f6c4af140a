"""Compare evaluations of several checkpoints: what tuning adds, what decoding adds, what both add.

Each checkpoint is evaluated on validation rows, which choose its decoding setting, and on test rows, which judge it.
Runs of one name are seeds of one training; a row counts with its mean over the seeds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from igd_core.errors import InputError
from igd_core.evaluation.bootstrap import DRAWS, Interval
from igd_core.evaluation.methods import is_plain, ranks_by_sum
from igd_core.evaluation.metrics import discounted_gains, hits
from igd_core.evaluation.pairing import on_same_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from igd_core.evaluation.bootstrap import Draw, Resampling
    from igd_core.evaluation.ranks import MethodRanks, RankedRun

_METRICS: Mapping[str, Callable[[NDArray[np.int64], int], NDArray[np.float64]]] = {
    "HR": hits,
    "NDCG": discounted_gains,
}
_METRIC = re.compile(r"(HR|NDCG)@([1-9][0-9]{0,2})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One training: its evaluation on validation rows and on test rows."""

    valid: RankedRun
    test: RankedRun


@dataclass(frozen=True, slots=True, kw_only=True)
class Against:
    """A baseline's value on test rows, and the trials' value as chosen minus it."""

    value: Interval
    difference: Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The result of the trials of one name, by title, on test rows.

    Attributes:
        name: the trials' name.
        base: each trial's setting with alpha 0 and no item scorer: one for the trials of all names, or else of one
            width of the search.
        chosen: each trial's best setting on its validation rows, or one setting for all (`Question`).
        validated: mean of that best validation value over trials; the name with the highest would be chosen.
        plain_by_seed: each trial's value by ``base``.
        chosen_by_seed: each trial's value as chosen.
        plain: mean over trials, likewise.
        best: mean over trials, as chosen.
        decoding: ``best`` minus ``plain``.
        tuning: ``plain`` minus the first name's ``plain``; None for the first name.
        both: ``best`` minus the first name's ``plain``; None for the first name.
        against: baselines by name.
    """

    name: str
    base: tuple[str, ...]
    chosen: tuple[str, ...]
    validated: float
    plain_by_seed: tuple[float, ...]
    chosen_by_seed: tuple[float, ...]
    plain: Interval
    best: Interval
    decoding: Interval
    tuning: Interval | None
    both: Interval | None
    against: Mapping[str, Against]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What to compare, and by which metric.

    Attributes:
        metric: ``HR@k`` or ``NDCG@k``.
        seen: whether items of the history are allowed in lists.
        among: names of the settings to choose from; empty for all that rank by the sum of token scores: D3, IGD with
            any alpha, and either over children or mixed with an item scorer.
        together: choose one setting for all trials of a name, by the mean of their values, not one for each trial.
        draw: what the intervals draw: test rows or target titles (`bootstrap`).
    """

    metric: str = "NDCG@10"
    seen: str = "allowed"
    among: tuple[str, ...] = ()
    together: bool = False
    draw: Draw = "rows"

    def __post_init__(self) -> None:
        if self.draw not in DRAWS:
            raise InputError(f"draw {self.draw!r}: one of {', '.join(DRAWS)}")
        if _METRIC.fullmatch(self.metric) is None:
            raise InputError(f"metric {self.metric!r}: expected HR@K or NDCG@K, such as NDCG@10")

    @property
    def cutoff(self) -> int:
        """K of the metric."""
        return int(self.metric.split("@")[1])

    def values(self, method: MethodRanks) -> NDArray[np.float64]:
        """The metric of each row, ``(rows,)`` float64.

        Raises:
            InputError: k is larger than the length of the method's lists.
        """
        if self.cutoff > method.depth:
            raise InputError(f"metric {self.metric}: {method.name!r} has lists of {method.depth}")
        return _METRICS[self.metric.split("@")[0]](method.titles, self.cutoff)

    def long_enough(self, methods: Sequence[MethodRanks]) -> list[MethodRanks]:
        """Those whose lists the metric can look at.

        Raises:
            InputError: as `values`, if there are methods, and all of their lists are too short.
        """
        held = [method for method in methods if method.depth >= self.cutoff]
        if methods and not held:
            self.values(methods[0])
        return held


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """Trials and baselines on the same rows.

    Attributes:
        trials: by name.
        baselines: runs, each with the method to take from it.
        shared: for ``validation`` and ``test``, the number of rows if the runs were cut to common rows.
        targets: ``(rows,)`` int64, a number for each test row's target title; None if no run has them.
    """

    trials: Mapping[str, Sequence[Trial]]
    baselines: Mapping[str, RankedRun]
    shared: Mapping[str, int]
    targets: NDArray[np.int64] | None


def pair(trials: Mapping[str, Sequence[Trial]], baselines: Mapping[str, RankedRun] | None = None) -> Paired:
    """Cut samples of one file to the rows that all runs share.

    Raises:
        InputError: runs were evaluated on other rows.
    """
    everything = [trial for group in trials.values() for trial in group]
    baselines = baselines or {}
    valid = on_same_rows([trial.valid for trial in everything])
    test = on_same_rows([*(trial.test for trial in everything), *baselines.values()])
    cut = iter(Trial(valid=each, test=other) for each, other in zip(valid.runs, test.runs, strict=False))
    return Paired(
        trials={name: [next(cut) for _ in group] for name, group in trials.items()},
        baselines=dict(zip(baselines, test.runs[len(everything) :], strict=True)),
        shared={name: each.rows for name, each in (("validation", valid), ("test", test)) if each.cut},
        targets=next((run.targets for run in test.runs if run.targets is not None), None),
    )


def compare(paired: Paired, question: Question, resampling: Resampling) -> list[Comparison]:
    """Compare each name with the first one, and with the baselines.

    Intervals are a bootstrap over test rows: they tell how sure the rows make a difference between these checkpoints,
    not how another seed would turn out; for that, look at the values by seed.

    Raises:
        InputError: a run lacks a method, or titles are to be drawn and no run has target titles.
    """
    trials, baselines = paired.trials, paired.baselines
    if question.draw == "targets":
        if paired.targets is None:
            raise InputError("draw targets: no run says which rows ask for the same title; evaluate one again")
        resampling = replace(resampling, groups=paired.targets)
    columns: list[NDArray[np.float64]] = []
    found = []
    bases = iter(_bases([trial.test for group in trials.values() for trial in group], question))
    for name, group in trials.items():
        base = [next(bases) for _ in group]
        plain = [
            question.values(trial.test.of(setting, question.seen)) for trial, setting in zip(group, base, strict=True)
        ]
        chosen, validated = _chosen([trial.valid for trial in group], question)
        best = [_as_chosen(trial.test, setting, question) for trial, setting in zip(group, chosen, strict=True)]
        columns += [np.mean(plain, axis=0), np.mean(best, axis=0)]
        found.append((name, base, chosen, validated, plain, best))
    columns += [question.values(run.of(name, question.seen)) for name, run in baselines.items()]
    draws = resampling.means(np.column_stack(columns))

    def interval(at: int, less: int | None = None) -> Interval:
        if less is None:
            return Interval.of(float(columns[at].mean()), draws[:, at])
        return Interval.of(float((columns[at] - columns[less]).mean()), draws[:, at] - draws[:, less])

    return [
        Comparison(
            name=name,
            base=tuple(base),
            chosen=tuple(chosen),
            validated=validated,
            plain_by_seed=tuple(float(values.mean()) for values in plain),
            chosen_by_seed=tuple(float(values.mean()) for values in best),
            plain=interval(2 * place),
            best=interval(2 * place + 1),
            decoding=interval(2 * place + 1, 2 * place),
            tuning=interval(2 * place, 0) if place else None,
            both=interval(2 * place + 1, 0) if place else None,
            against={
                name: Against(value=interval(at), difference=interval(2 * place + 1, at))
                for at, name in enumerate(baselines, start=2 * len(found))
            },
        )
        for place, (name, base, chosen, validated, plain, best) in enumerate(found)
    ]


def table(results: Sequence[Comparison], question: Question, paired: Paired) -> str:
    """The result as a table for the terminal; a star marks a difference whose interval excludes 0."""
    base = results[0].name
    drawn = "test rows"
    if question.draw == "targets" and paired.targets is not None:
        drawn = f"the {paired.targets.max() + 1:,} titles that {len(paired.targets):,} test rows ask for"
    lines = [f"{question.metric} by title, seen items {question.seen}; 95 % intervals over {drawn}"]
    lines += [f"on the {rows:,} {name} rows that all runs hold" for name, rows in paired.shared.items()]
    bases = list(dict.fromkeys(name for result in results for name in result.base))
    lines.append(f"alpha 0: {', or '.join(bases)}")
    lines.append("")
    lines += [f"{name:<30}{_value(baseline.value)}" for name, baseline in results[0].against.items()]
    if results[0].against:
        lines.append("")
    for result in results:
        seeds = len(result.chosen)
        lines.append(f"{result.name} ({seeds} seed{'s' if seeds > 1 else ''})")
        lines.append(f"  alpha 0, no item scorer     {_value(result.plain)}   by seed {_list(result.plain_by_seed)}")
        lines.append(f"  chosen on validation rows   {_value(result.best)}   by seed {_list(result.chosen_by_seed)}")
        lines += [f"    {setting}" for setting in (result.chosen if len(set(result.chosen)) > 1 else result.chosen[:1])]
        lines.append(f"  on validation rows then     {result.validated:.4f}")
        lines.append(f"  decoding adds               {_difference(result.decoding)}")
        if result.tuning is not None and result.both is not None:
            lines.append(f"  tuning adds to {base:<12} {_difference(result.tuning)}")
            lines.append(f"  both add to {base:<15} {_difference(result.both)}")
        for name, baseline in result.against.items():
            lines.append(f"  as chosen less {name:<12} {_difference(baseline.difference)}")
        lines.append("")
    if len(results) > 1:
        highest = max(each.validated for each in results)
        best = [each.name for each in results if each.validated == highest]
        told = f"validation rows choose {best[0]}" if len(best) == 1 else f"equal on validation rows: {', '.join(best)}"
        lines += [told, ""]
    return "\n".join(lines[:-1])


def _bases(runs: Sequence[RankedRun], question: Question) -> list[str]:
    """For each run its setting with alpha 0 and no item scorer, so that checkpoints alone differ.

    The widest that all runs have, the vocabulary's before others. Where they have none in common, as where models are
    scored as they were tuned, each its own of the greatest width that all have.
    """
    held = []
    for run in runs:
        of_seen = [each for each in run.methods if each.seen == question.seen]
        found = question.long_enough([each for each in of_seen if each.known_as == "D3" or is_plain(each.name)])
        if not found:
            raise InputError(
                f"{run.path}: has no alpha 0 with length penalty 0, no item scorer and {_seen_items(run, question)}"
            )
        held.append(sorted(found, key=lambda each: (-_beams(each.name), each.known_as != "D3", each.name)))
    names = [[each.name for each in found] for found in held]
    shared = next((name for name in names[0] if all(name in others for others in names)), None)
    if shared is not None:
        return [shared] * len(runs)
    width = max(set.intersection(*({_beams(name) for name in found} for found in names)), default=None)
    if width is None:
        told = "; ".join(f"{run.path}: {', '.join(found)}" for run, found in zip(runs, names, strict=True))
        raise InputError(
            f"the test runs have no number of beams in common (--beams) with alpha 0 and no scorer: {told}"
        )
    return [next(name for name in found if _beams(name) == width) for found in names]


def _beams(name: str) -> int:
    found = re.search(r" beams=(\d+)", name)
    return 0 if found is None else int(found[1])


def _chosen(runs: Sequence[RankedRun], question: Question) -> tuple[list[str], float]:
    """The run's best settings on validation rows (of equals the first), and the mean of their values there."""
    tables = [_validated(run, question) for run in runs]
    if question.together:
        shared = [name for name in tables[0] if all(name in values for values in tables)]
        if not shared:
            raise InputError(f"{runs[0].path}: has no setting that all runs of its name have")
        best = max(shared, key=lambda name: sum(values[name] for values in tables))
        tables = [{best: values[best]} for values in tables]
    chosen = [max(values, key=values.__getitem__) for values in tables]
    return chosen, float(np.mean([values[name] for values, name in zip(tables, chosen, strict=True)]))


def _as_chosen(run: RankedRun, setting: str, question: Question) -> NDArray[np.float64]:
    if all((each.name, each.seen) != (setting, question.seen) for each in run.methods):
        raise InputError(
            f"{run.path}: has no {setting!r} with {_seen_items(run, question)}, which validation rows choose"
        )
    return question.values(run.of(setting, question.seen))


def _validated(run: RankedRun, question: Question) -> dict[str, float]:
    """The metric on validation rows, for each setting that can be chosen."""
    if question.among:
        candidates = [run.of(name, question.seen) for name in question.among]
    else:
        of_seen = [method for method in run.methods if method.seen == question.seen]
        candidates = question.long_enough(
            [method for method in of_seen if method.known_as in {"D3", "IGD"} or ranks_by_sum(method.name)]
        )
    if not candidates:
        raise InputError(
            f"{run.path}: has no setting with length penalty 0 and {_seen_items(run, question)}; --among names others"
        )
    return {method.name: float(question.values(method).mean()) for method in candidates}


def _seen_items(run: RankedRun, question: Question) -> str:
    """What was asked for, and what the run has instead."""
    others = sorted({each.seen for each in run.methods} - {question.seen})
    return f"seen items {question.seen}" + (f" (--seen {others[0]} would find what it has)" if others else "")


def _value(interval: Interval) -> str:
    return f"{interval.value:.4f} ({interval.low:.4f}-{interval.high:.4f})"


def _difference(interval: Interval) -> str:
    star = "*" if interval.low > 0 or interval.high < 0 else ""
    return f"{interval.value:+.4f} ({interval.low:+.4f} {interval.high:+.4f}){star}"


def _list(values: Sequence[float]) -> str:
    return " ".join(f"{value:.4f}" for value in values)
