"""Plots of an evaluation: accuracy with intervals, and slices."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from igd_core.evaluation.bootstrap import Interval
from igd_core.whole_files import write_figure

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import BinaryIO

    from matplotlib.axes import Axes

    from igd_core.evaluation.results import MethodResult

_COLOURS = {"allowed": "#2563eb", "excluded": "#d97706"}
_SERIES = ("#2563eb", "#d97706", "#059669", "#9ca3af")
"""The reference first."""
_SHOWN_IN_SLICES = 4


def draw_accuracy(results: Sequence[MethodResult], k: int, path: Path | BinaryIO) -> None:
    """Write a PNG: HR@k and NDCG@k of every method, one line each, best NDCG on top."""
    names = list(dict.fromkeys(_label(result) for result in results))
    best = {name: max(_metric(r, f"NDCG@{k}").value for r in results if _label(r) == name) for name in names}
    names.sort(key=lambda name: best[name])
    figure = Figure(figsize=(10, 1.6 + 0.34 * len(names)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, metric in zip(panels, (f"HR@{k}", f"NDCG@{k}"), strict=True):
        seens = list(dict.fromkeys(result.seen for result in results))
        for offset, seen in enumerate(seens):
            shift = 0.18 * (offset - (len(seens) - 1) / 2)
            part = [result for result in results if result.seen == seen]
            places = [names.index(_label(result)) - shift for result in part]
            _dots(
                axes, places, [_metric(result, metric) for result in part], colour=_COLOURS[seen], label=f"seen {seen}"
            )
        axes.set_xlabel(f"{metric}, by title, 95 % interval")
        axes.set_xlim(left=0)
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(names)), names)
    panels[1].legend(frameon=False, loc="lower right")
    write_figure(figure, path, dpi=150)


def draw_slices(results: Sequence[MethodResult], k: int, path: Path | BinaryIO) -> bool:
    """Write a PNG: HR@k by slice, of the reference and the best others; False where there are no slices."""
    chosen = _chosen(results, k)
    if not chosen:
        return False
    titles = list(chosen[0].slices)
    figure = Figure(figsize=(10, 3 * len(titles)), layout="constrained")
    panels = figure.subplots(len(titles), 1, squeeze=False)[:, 0]
    for axes, title in zip(panels, titles, strict=True):
        groups = list(chosen[0].slices[title])
        for number, result in enumerate(chosen):
            places = [place + 0.16 * (number - (len(chosen) - 1) / 2) for place in range(len(groups))]
            found = [result.slices[title][group][f"HR@{k}"] for group in groups]
            _dots(axes, places, found, colour=_SERIES[number], label=_label(result), upright=True)
        rows = [chosen[0].slices[title][group]["rows"] for group in groups]
        axes.set_xticks(
            range(len(groups)), [f"{group}\n{count:,} rows" for group, count in zip(groups, rows, strict=True)]
        )
        axes.set_ylabel(f"HR@{k}")
        axes.set_ylim(bottom=0)
        axes.set_title(f"By {title}; seen items {chosen[0].seen}", loc="left", fontsize=10)
        axes.grid(axis="y", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    write_figure(figure, path, dpi=150)
    return True


def _chosen(results: Sequence[MethodResult], k: int) -> list[MethodResult]:
    """The reference and the best other methods by NDCG@k; of one kind of ``seen``, the first there is."""
    part = [result for result in results if result.seen == results[0].seen and result.slices]
    reference = [result for result in part if not result.against]
    others = sorted((result for result in part if result.against), key=lambda each: -_metric(each, f"NDCG@{k}").value)
    return (reference[:1] + others)[:_SHOWN_IN_SLICES]


def _dots(
    axes: Axes, places: Sequence[float], found: Sequence[Interval], *, colour: str, label: str, upright: bool = False
) -> None:
    values = [each.value for each in found]
    # Rounding can put a value outside its interval by 1e-17, which matplotlib refuses.
    errors = [[max(0.0, e.value - e.low) for e in found], [max(0.0, e.high - e.value) for e in found]]
    look = {"fmt": "o", "markersize": 4, "linewidth": 1.2, "color": colour, "label": label}
    if upright:
        axes.errorbar(places, values, yerr=errors, **look)  # type: ignore[arg-type]
    else:
        axes.errorbar(values, places, xerr=errors, **look)  # type: ignore[arg-type]


def _metric(result: MethodResult, name: str) -> Interval:
    return result.titles.get(name) or Interval(value=0.0, low=0.0, high=0.0)


def _label(result: MethodResult) -> str:
    return f"{result.name} ({result.known_as})" if result.known_as else result.name
