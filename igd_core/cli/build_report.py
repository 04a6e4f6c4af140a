"""What `igd build` and `igd inspect` say of an artifact."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from igd_core.artifact.shared_paths import shared_paths
from igd_core.datasets.faults import SHOWN_ROWS
from igd_core.scorers.gamma import checked_gamma, shown_gamma

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from igd_core.artifact import Artifact, Built
    from igd_core.catalogue.items import Catalogue
    from igd_core.scorers.record import ScorerRecord


def build_report(built: Built, catalogue: Catalogue, rows: NDArray[np.int64]) -> dict[str, object]:
    """What was built of ``catalogue``, whose items stand in ``rows`` of their file."""
    return {**summary(built.artifact), **_sharing(built.artifact), **_unspellable(built, catalogue, rows)}


def print_report(report: Mapping[str, object]) -> None:
    """Print it for people: a line a fact, examples below."""
    for name, value in report.items():
        if isinstance(value, list):
            for example in value:
                print(f"  {_line(example)}")
            continue
        shown_value = ", ".join(f"{one} {kind}" for one, kind in value.items()) if isinstance(value, dict) else value
        if name == "gamma":
            shown_value = shown_gamma(checked_gamma(value))
        elif isinstance(value, tuple):
            shown_value = ", ".join(f"{each:g}" for each in value)
        print(f"{name.replace('_', ' '):<25} {shown_value}")


def _sharing(artifact: Artifact) -> dict[str, object]:
    shared = shared_paths(artifact)
    return {
        "items_sharing_paths": shared.items,
        "shared_paths": shared.paths,
        "shared_path_examples": [asdict(example) for example in shared.examples],
    }


def _line(example: dict[str, Any]) -> str:
    """An example of the report, for people."""
    if "why" in example:
        shown_items = ", ".join(
            f"{item_id} {title!r}" for item_id, title in zip(example["item_ids"], example["titles"], strict=True)
        )
        more = ", ..." if example["items"] > len(example["item_ids"]) else ""
        return f"{example['items']} items of {example['why']}: {shown_items}{more}"
    became = "left out" if example["spelled"] is None else f"spelled {example['spelled']!r}"
    return f"row {example['row']}: item {example['item_id']!r}: {example['reason']}: {became}"


def _unspellable(built: Built, catalogue: Catalogue, rows: NDArray[np.int64]) -> dict[str, object]:
    """What became of titles that the tokenizer cannot spell, with the first five."""
    faults, written = built.spelled.faults, built.spelled.written
    first = [
        {
            "row": int(rows[fault.item]),
            "item_id": catalogue.item_ids[fault.item],
            "text": catalogue.texts[fault.item],
            "reason": fault.reason,
            "spelled": written.get(fault.item),
        }
        for fault in faults[:SHOWN_ROWS]
    ]
    return {
        "unspellable_skipped": len(faults) - len(written),
        "unspellable_spelled": len(written),
        "unspellable_interactions": sum(
            int(catalogue.frequency[fault.item]) for fault in faults if fault.item not in written
        ),
        "unspellable_examples": first,
    }


def summary(artifact: Artifact) -> dict[str, object]:
    """What people ask first of an artifact."""
    counts, scorer = artifact.manifest.counts, artifact.manifest.scorer
    return {
        "version": artifact.version,
        "name": artifact.manifest.name,
        "items": counts.items,
        "distinct_paths": counts.leaves,
        "trie_nodes": counts.nodes,
        "longest_path": counts.depth,
        "truncated_titles": counts.truncated,
        "cold_items": counts.cold,
        "entropy_nats": round(artifact.manifest.entropy_nats, 4),
        **({} if scorer is None else _of_scorer(scorer)),
    }


def _of_scorer(scorer: ScorerRecord) -> dict[str, object]:
    """Its kind and size, and how it is mixed with the model where a request does not say."""
    kinds = [(each, f"_{each.kind}" if place else "") for place, each in enumerate(scorer.kinds)]
    return {
        "scorer": scorer.name,
        **{f"scorer_entries{suffix}": each.entries for each, suffix in kinds if each.entries is not None},
        **{f"scorer_network{suffix}": asdict(each.network) for each, suffix in kinds if each.network is not None},
        **({} if scorer.share is None else {"scorer_shares": scorer.shares}),
        "gamma": scorer.gamma,
        "mixture": scorer.mixture,
    }
