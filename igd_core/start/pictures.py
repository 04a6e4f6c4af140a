"""The pictures of a start's report: those of `igd evaluate`, with methods called as the report's table calls them."""

from __future__ import annotations

import io
import json
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from igd_core.evaluation.bootstrap import Interval
from igd_core.evaluation.plots import draw_accuracy, draw_slices
from igd_core.evaluation.results import MethodResult
from igd_core.start.verdict import shown_name

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from igd_core.start.verdict import Verdict

_K = 10


def accuracy_picture(judged: Path, verdict: Verdict) -> bytes:
    """A PNG: every method on the test rows; ``judged`` is the folder of the evaluation."""
    written = io.BytesIO()
    draw_accuracy(_results(judged, verdict), _K, written)
    return written.getvalue()


def slices_picture(judged: Path, verdict: Verdict) -> bytes:
    """A PNG: the served lists and the best three others, by slice; empty where there are no slices."""
    written = io.BytesIO()
    draw_slices(_results(judged, verdict), _K, written)
    return written.getvalue()


def _results(judged: Path, verdict: Verdict) -> list[MethodResult]:
    """The methods of results.json, the served lists as the one that others are compared with."""
    content = json.loads((judged / "results.json").read_text("utf-8"))
    return [_result(method, verdict) for method in content["methods"]]


def _result(method: Mapping[str, Any], verdict: Verdict) -> MethodResult:
    said = {each.name: method[each.name] for each in fields(MethodResult)}
    for name in ("titles", "items", "lists", "difference"):
        said[name] = {metric: Interval(**found) for metric, found in method[name].items()}
    said["slices"] = {
        title: {
            group: {metric: Interval(**found) if isinstance(found, dict) else found for metric, found in cells.items()}
            for group, cells in groups.items()
        }
        for title, groups in method["slices"].items()
    }
    is_ours = method["name"] == verdict.ours.name
    is_alone = verdict.alone is not None and method["name"] == verdict.alone.name
    said["name"] = "the model alone" if is_alone else shown_name(method["name"])
    return MethodResult(**{**said, "known_as": "", "against": "" if is_ours else shown_name(verdict.ours.name)})
