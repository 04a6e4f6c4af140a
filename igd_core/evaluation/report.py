"""From the journals in a run's folder to results.json, a table and plots."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from igd_core.errors import DataError
from igd_core.evaluation.journal import read_journal
from igd_core.evaluation.methods import Method
from igd_core.evaluation.metrics import NONE
from igd_core.evaluation.results import MethodLists, MethodResult

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from igd_core.artifact import Artifact
    from igd_core.evaluation.results import ResultSettings
    from igd_core.evaluation.rows import EvaluationRows

RESULTS = "results.json"
RESULTS_FORMAT = "igd-evaluation"


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """The content of a run's folder.

    Attributes:
        methods: lists of every complete method.
        missing: rows that no shard has decoded yet.
        model: header of the decoding journals without their methods, or empty.
        cost: totals of the decoding, or empty.
        shortened: what the model's context had no room for (`_shortened`); None where nothing was decoded, or where a
            row was decoded by an earlier release, which did not count.
    """

    methods: list[MethodLists]
    missing: int
    model: dict[str, Any]
    cost: dict[str, float]
    shortened: dict[str, int] | None = None


def collect(out: Path, identity: Mapping[str, Any], *, rows: int, items: int) -> Collected:
    """Read all journals of a folder.

    Args:
        out: the folder.
        identity: what the header of every journal must say.
        rows: of the run.
        items: of the catalogue.

    Raises:
        DataError: a damaged journal, or one of other rows, of another model than the others, or with a row that is not
            the run's.
    """
    decoding = [_read(path, identity, items) for path in sorted(out.glob("rows-*.jsonl"))]
    methods: list[MethodLists] = []
    missing, model, cost, shortened = 0, {}, {}, None
    if decoding:
        header = decoding[0][0]
        if any(other != header for other, _ in decoding):
            raise DataError(f"{out}: its shards are of different models or settings")
        records = {int(record["row"]): record for _, part in decoding for record in part}
        missing = rows - len(records)
        if not missing:
            methods += _method_lists(out, header, records, rows)
        model = {name: value for name, value in header.items() if name not in {"methods", "format", "format_version"}}
        cost, shortened = _cost(records), _shortened(records)
    for path in sorted(out.glob("baseline-*.jsonl")):
        header, part = _read(path, identity, items)
        if len(part) == rows:
            methods += _method_lists(path, header, {int(record["row"]): record for record in part}, rows)
    return Collected(methods=methods, missing=missing, model=model, cost=cost, shortened=shortened)


def _read(path: Path, identity: Mapping[str, Any], items: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    header, records = read_journal(path, items=items)
    for name, value in identity.items():
        if header.get(name) != value:
            raise DataError(f"{path}: {name} was {header.get(name)!r}, now it is {value!r}; choose another --out")
    return header, records


def _method_lists(
    path: Path, header: Mapping[str, Any], records: Mapping[int, Mapping[str, Any]], rows: int
) -> list[MethodLists]:
    if sorted(records) != list(range(rows)):
        raise DataError(f"{path}: holds rows that are not the run's")
    result = []
    for place, method in enumerate(header["methods"]):
        items = np.full((rows, int(method["depth"])), NONE, dtype=np.int64)
        for row, record in records.items():
            if record["lists"] is not None:
                found = record["lists"][place]
                items[row, : len(found)] = found
        named = Method(name=method["name"], seen=method["seen"])
        result.append(MethodLists(method=named, known_as=method["known_as"], items=items))
    return result


def _cost(records: Mapping[int, Mapping[str, Any]]) -> dict[str, float]:
    decoded = [record for record in records.values() if record["lists"] is not None]
    if not decoded:
        return {}
    return {
        "rows": len(decoded),
        "model_rounds_per_row": float(np.mean([record["rounds"] for record in decoded])),
        "model_tokens_per_row": float(np.mean([record["tokens"] for record in decoded])),
        "seconds_per_row": float(np.mean([record["seconds"] for record in decoded])),
    }


def _shortened(records: Mapping[int, Mapping[str, Any]]) -> dict[str, int] | None:
    """Rows whose history was shortened to fit, the items left out, and rows with no item left (popularity answered).

    Rows without a history count only among the last.
    """
    decoded = [record for record in records.values() if record["lists"] is not None]
    if any("left_out" not in record for record in decoded):
        return None
    left_out = [int(record["left_out"]) for record in decoded]
    return {
        "rows": sum(count > 0 for count in left_out),
        "items": sum(left_out),
        "rows_answered_by_popularity": sum(bool(record["popularity"]) for record in decoded),
    }


def report(
    collected: Collected,
    results: Sequence[MethodResult],
    *,
    rows: EvaluationRows,
    artifact: Artifact,
    settings: ResultSettings,
) -> dict[str, Any]:
    """The content of results.json; a figure that does not exist is null."""
    return {
        "format": RESULTS_FORMAT,
        "format_version": 1,
        "catalogue": artifact.manifest.name,
        "artifact": artifact.version,
        "items": len(artifact.catalogue),
        "titles": artifact.trie.num_leaves,
        "model": collected.model,
        "cost": collected.cost,
        "rows": len(rows),
        "rows_sha256": rows.sha256,
        "rows_with_unknown_target": int((rows.target == NONE).sum()),
        "rows_with_target_in_history": int(rows.repeats(artifact).sum()),
        "unknown_items_in_histories": rows.dropped_from_histories,
        "histories_shortened": collected.shortened,
        "resamples": settings.resampling.resamples,
        "seed": settings.resampling.seed,
        "draw": "rows" if settings.resampling.groups is None else "targets",
        "rows_of_the_commonest_target": int(np.bincount(rows.target_groups(artifact)).max()),
        "cutoffs": list(settings.cutoffs),
        "methods": [without_nan(asdict(result)) for result in results],
    }


def untuned_before(out: Path) -> str | None:
    """What an earlier summary of the folder said of the model, which a command without a model cannot say again."""
    try:
        told = json.loads((out / RESULTS).read_text("utf-8"))["untuned"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return told if isinstance(told, str) else None


def without_nan(value: Any) -> Any:  # noqa: ANN401 - JSON
    """``value`` with None for every number in it that is not finite, which JSON has not."""
    if isinstance(value, dict):
        return {name: without_nan(part) for name, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(results: Sequence[MethodResult], settings: ResultSettings) -> str:
    """Figures by title, for the terminal; a star marks a difference from the reference whose interval excludes 0."""
    k = settings.shown_cutoff(result.depth for result in results)
    lines = []
    for seen in dict.fromkeys(result.seen for result in results):
        part = [result for result in results if result.seen == seen]
        width = max(len(_label(result)) for result in part) + 2
        heads = [f"{name}@{cut}" for name in ("HR", "NDCG") for cut in settings.cutoffs]
        lines.append(f"seen items {seen}")
        lines.append(
            " " * width
            + "".join(f"{head:>9}" for head in heads)
            + f"{f'NDCG@{k} 95 %':>17}{'less reference':>28}{'coverage':>10}{'pop. lift':>11}{'cold':>7}"
        )
        ranked = sorted(part, key=lambda each: -_value(each.titles, f"NDCG@{k}"))
        lines += [*(_line(result, heads, k, width) for result in ranked), ""]
    references = {result.against for result in results if result.against}
    if references:
        lines.append(f"reference: {', '.join(sorted(references))}; * its interval leaves 0 out; by title")
    return "\n".join(lines)


def _line(result: MethodResult, heads: Sequence[str], k: int, width: int) -> str:
    cells = "".join(f"{_number(result.titles, head):>9}" for head in heads)
    ndcg, difference = result.titles.get(f"NDCG@{k}"), result.difference.get(f"NDCG@{k}")
    interval = "" if ndcg is None else f"{ndcg.low:.4f}-{ndcg.high:.4f}"
    less = ""
    if difference is not None:
        star = "*" if difference.low > 0 or difference.high < 0 else " "
        less = f"{difference.value:+.4f} ({difference.low:+.4f} {difference.high:+.4f}){star}"
    others = [_number(result.lists, f"{name}@{k}", digits=3) for name in ("coverage", "popularity_lift", "cold_share")]
    tail = f"{interval:>17}{less:>28}{others[0]:>10}{others[1]:>11}{others[2]:>7}"
    return f"{_label(result):<{width}}{cells}{tail}"


def _label(result: MethodResult) -> str:
    return f"{result.name} ({result.known_as})" if result.known_as else result.name


def _number(figures: Mapping[str, Any], name: str, digits: int = 4) -> str:
    found = figures.get(name)
    return "-" if found is None or not math.isfinite(found.value) else f"{found.value:.{digits}f}"


def _value(figures: Mapping[str, Any], name: str) -> float:
    found = figures.get(name)
    return -1.0 if found is None else float(found.value)
