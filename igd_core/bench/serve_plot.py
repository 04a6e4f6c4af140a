"""The plot of `igd bench serve`: latency over time, outcomes, and the distribution of latencies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from igd_core.whole_files import write_figure

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from matplotlib.axes import Axes

    from igd_core.bench.serve import ServeResult

_BLUE, _ORANGE, _GREEN, _RED, _GREY = "#2563eb", "#d97706", "#16a34a", "#dc2626", "#9ca3af"
_MAX_POINTS = 2000


def draw_serve(result: ServeResult, path: Path) -> None:
    """Write a PNG."""
    report = result.report
    figure = Figure(figsize=(10, 9), layout="constrained")
    over_time, answers, distribution = figure.subplots(3, 1, height_ratios=(3, 2, 3))
    _draw_latency(over_time, report)
    _draw_answers(answers, report)
    _draw_distribution(distribution, result)
    answers.sharex(over_time)
    for axes in (over_time, answers, distribution):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    figure.suptitle(
        f"{report['rate_per_s']:g} requests a second ({report['arrivals']}) for {report['seconds']:.0f} s: "
        f"{report['goodput_per_s']:g} good answers a second"
    )
    write_figure(figure, path, dpi=130)


def _draw_latency(axes: Axes, report: Mapping[str, Any]) -> None:
    rows = [row for row in report["timeline"] if row["p50_ms"] is not None]
    seconds = [row["second"] + row["seconds"] / 2 for row in rows]
    marker = "o" if len(rows) < 60 else None
    axes.plot(seconds, [row["p99_ms"] for row in rows], color=_ORANGE, marker=marker, markersize=3, label="p99")
    axes.plot(seconds, [row["p50_ms"] for row in rows], color=_BLUE, marker=marker, markersize=3, label="p50")
    axes.axhline(report["deadline_ms"], color=_RED, linestyle="--", linewidth=1, label="deadline")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylabel("latency of accepted\nrequests (ms)")
    axes.legend(frameon=False, ncols=3, loc="upper left", bbox_to_anchor=(0, 1.16))


def _draw_answers(axes: Axes, report: Mapping[str, Any]) -> None:
    rows = report["timeline"]
    seconds = np.array([row["second"] for row in rows])
    width = np.array([row["seconds"] for row in rows])
    good = np.array([row["good"] for row in rows]) / width
    other = np.array([row["accepted"] for row in rows]) / width - good
    refused = np.array([row["refused"] for row in rows]) / width
    failed = np.array([row["failed"] for row in rows]) / width
    layers = (
        (good, _GREEN, "good"),
        (other, _BLUE, "popularity or late"),
        (refused, _GREY, "refused"),
        (failed, _RED, "no answer"),
    )
    bottom = np.zeros(len(rows))
    for values, colour, label in layers:
        if values.any():
            axes.bar(seconds, values, width, bottom=bottom, align="edge", color=colour, label=label, linewidth=0)
            bottom += values
    axes.set_ylim(bottom=0)
    axes.set_xlabel("seconds from the start, by planned arrival")
    axes.set_ylabel("requests a second")
    axes.legend(frameon=False, ncols=4, loc="upper left", bbox_to_anchor=(0, 1.24))


def _draw_distribution(axes: Axes, result: ServeResult) -> None:
    requests = result.requests
    accepted = (requests.status >= 200) & (requests.status < 300)
    refused = (requests.status > 0) & ~accepted
    curves = (
        (requests.latency_s[accepted], _BLUE, "-", "accepted, from the planned arrival"),
        (requests.service_s[accepted], _BLUE, ":", "accepted, from sending"),
        (requests.latency_s[refused], _GREY, "-", "refused, from the planned arrival"),
    )
    for seconds, colour, style, label in curves:
        if len(seconds):
            ranks = np.linspace(0, 100, min(len(seconds), _MAX_POINTS) + 1)
            axes.plot(np.percentile(seconds * 1000, ranks), ranks, color=colour, linestyle=style, label=label)
    axes.axvline(result.report["deadline_ms"], color=_RED, linestyle="--", linewidth=1, label="deadline")
    axes.set_xscale("log")
    axes.set_ylim(0, 101)
    axes.set_xlabel("latency (ms)")
    axes.set_ylabel("% of requests at most")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.legend(frameon=False, ncols=4, loc="upper left", bbox_to_anchor=(0, 1.16), fontsize="small")
