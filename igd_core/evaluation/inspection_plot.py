"""The picture of `igd inspect`: information gain by token position."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from igd_core.whole_files import write_figure

if TYPE_CHECKING:
    from pathlib import Path

    from igd_core.evaluation.inspection import Inspection

_BLUE, _GREY = "#2563eb", "#9ca3af"


def draw_gain_by_position(inspection: Inspection, name: str, path: Path) -> None:
    """Write a PNG: quantiles of the gain at each position above, share of zero-IG tokens below."""
    every = inspection.positions
    shown = [at for at in every if at.paths >= every[0].paths / 100]  # the tail of a few long titles says little
    positions = [at.position for at in shown]
    low, lower, median, upper, high = zip(*(at.quantiles for at in shown), strict=True)
    figure = Figure(figsize=(9, 6), layout="constrained")
    gains, zeros = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    gains.fill_between(positions, low, high, color=_BLUE, alpha=0.15, label="10 to 90 % of paths", linewidth=0)
    gains.fill_between(positions, lower, upper, color=_BLUE, alpha=0.3, label="25 to 75 %", linewidth=0)
    gains.plot(positions, median, color=_BLUE, marker="o", markersize=3, label="median")
    gains.set_yscale("symlog", linthresh=1e-4)
    gains.set_ylim(bottom=0)
    gains.set_ylabel("information gain (nats)")
    gains.set_title(f"What each token of a title decides: {name}, {every[0].paths:,} distinct titles")
    gains.legend(frameon=False)
    zeros.bar(positions, [at.zero_share for at in shown], color=_GREY)
    zeros.yaxis.set_major_formatter(PercentFormatter(1.0))
    zeros.set_ylim(0, 1)
    zeros.set_ylabel("zero-IG tokens")
    zeros.set_xlabel("token position in the title (as far as 1 % of the titles reach)")
    for axes in (gains, zeros):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.3)
    write_figure(figure, path, dpi=150)
