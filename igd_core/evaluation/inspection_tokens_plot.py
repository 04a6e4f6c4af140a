"""The plot of `igd inspect --checkpoint`: zero-IG and other tokens, and what alpha moves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from igd_core.whole_files import write_figure

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from matplotlib.axes import Axes

    from igd_core.evaluation.bootstrap import Interval
    from igd_core.evaluation.inspection_tokens import AlphaEffect, TokenBias

_ZERO, _POSITIVE = "#9ca3af", "#2563eb"
_MOVES = ("entered", "up", "down", "left")
_WHAT = ("the list", "within it", "within it", "the list")


def draw_token_bias(biases: Mapping[str, TokenBias], effects: Mapping[str, AlphaEffect], path: Path) -> None:
    """Write a PNG: mean log-probabilities, shares of tokens and loss, and targets moved by alpha, by checkpoint."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    logprobs, shares, moves = figure.subplots(1, 3)
    names = list(biases)
    labels = [f"{name}\nover {bias.scored.normalise}" for name, bias in biases.items()]
    before_end = [biases[name].zero_logprob_before_end for name in names]
    _bars(logprobs, labels, {"zero IG, EOS left out": before_end}, _ZERO, shift=-0.2)
    _bars(logprobs, labels, {"positive IG": [biases[name].positive_logprob for name in names]}, _POSITIVE, shift=0.2)
    logprobs.set_ylabel("mean log-probability of target tokens (nats)")
    _bars(shares, labels, {"of tokens": [biases[name].zero_share for name in names]}, _ZERO, shift=-0.2)
    _bars(shares, labels, {"of the loss": [biases[name].zero_loss_share for name in names]}, _POSITIVE, shift=0.2)
    shares.set_ylabel("share of zero-IG tokens")
    shares.set_ylim(0, 1)
    shares.yaxis.set_major_formatter(PercentFormatter(1.0))
    width = 0.8 / max(1, len(names))
    for number, name in enumerate(names):
        effect = effects[name]
        places = [place + (number - (len(names) - 1) / 2) * width for place in range(len(_MOVES))]
        moves.bar(places, [getattr(effect, move) for move in _MOVES], width * 0.9, label=name)
        moves.set_title(f"targets moved by alpha {effect.alpha:g}, of {effect.rows:,} rows", fontsize=10)
    moves.set_xticks(range(len(_MOVES)), [f"{move}\n{what}" for move, what in zip(_MOVES, _WHAT, strict=True)])
    moves.set_ylabel("rows")
    moves.set_ylim(0, 1.35 * max(1.0, moves.get_ylim()[1]))  # room for the legend above the bars
    for axes in (logprobs, shares, moves):
        axes.legend(frameon=False, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
    write_figure(figure, path, dpi=150)


def _bars(axes: Axes, names: list[str], series: Mapping[str, list[Interval]], colour: str, *, shift: float) -> None:
    for label, found in series.items():
        values = [each.value for each in found]
        errors = [[max(0.0, e.value - e.low) for e in found], [max(0.0, e.high - e.value) for e in found]]
        places = [place + shift for place in range(len(names))]
        axes.bar(places, values, 0.36, color=colour, label=label, yerr=errors, error_kw={"linewidth": 1})
    axes.set_xticks(range(len(names)), names, fontsize=8)
