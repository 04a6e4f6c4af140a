"""Does rebalancing help where information gain is taken under each person's own prior, not the catalogue's?

    OMP_NUM_THREADS=1 .venv/bin/python tests/bench/own_gain.py --artifact DIR --model DIR --rows FILE --limit 1000

The prior of a person is what the artifact's item scorer makes of the history; every row gets a table of gains of its
own. NDCG@10 by title, of the same model and rows, with either table; differences are paired, and intervals draw the
titles that rows ask for.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import itertools
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from igd_core.artifact import load_artifact
from igd_core.catalogue.gain import InfoGainTable, leaf_prior_of
from igd_core.engines.open import EngineOptions, open_engine
from igd_core.evaluation.bootstrap import Interval, Resampling
from igd_core.evaluation.decode import RowDecoder
from igd_core.evaluation.methods import decoding_settings, with_mixings
from igd_core.evaluation.metrics import NONE, discounted_gains, target_ranks
from igd_core.evaluation.rows import read_rows
from igd_core.search.normalisation import Normalisation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from igd_core.artifact import Artifact
    from igd_core.evaluation.decode import RowAnswer
    from igd_core.ids import ItemIndex

K = 10


def own_gains(artifact: Artifact, history: Sequence[ItemIndex]) -> InfoGainTable:
    """Gains of every token under what the item scorer makes of a history."""
    if artifact.scorer is None:
        raise SystemExit("the artifact holds no item scorer")
    mass, counted = artifact.scorer.mass(history), artifact.catalogue.frequency + 1.0
    prior = mass.background * counted / counted.sum()
    np.add.at(prior, np.arange(len(prior)) if mass.items is None else mass.items, mass.mass)
    return InfoGainTable.build(artifact.trie, leaf_prior_of(artifact.trie, prior / prior.sum()))


async def measure(args: argparse.Namespace) -> dict[str, Any]:
    """NDCG of each setting with either table, and differences."""
    artifact = load_artifact(args.artifact)
    rows = read_rows(args.rows, artifact, limit=args.limit, seed=0, on_unknown="miss")
    settings = with_mixings(
        decoding_settings(
            alphas=args.alphas, length_penalties=[0.0], beams=[args.beams], seen=["allowed"],
            scored=[Normalisation(normalise="children")],
        ),
        gammas=args.gammas,
        mixtures=["log-linear"],
    )  # fmt: skip
    engine = open_engine(EngineOptions(model=args.model, device="cpu")).engine
    await engine.load(artifact)
    usual = RowDecoder(engine, artifact, settings)
    found: dict[str, list[RowAnswer]] = {"catalogue's": [], "own": []}
    for history in rows.histories:
        found["catalogue's"].append(await usual.answer(history))
        own = dataclasses.replace(artifact, gains=own_gains(artifact, history)) if history else artifact
        found["own"].append(await RowDecoder(engine, own, settings).answer(history))
    await engine.close()
    names = [setting.name for setting in settings]
    gains = {
        (prior, name): _gains(answers, place, artifact, rows.target_leaf(artifact))
        for prior, answers in found.items()
        for place, name in enumerate(names)
    }
    drawn = Resampling(groups=rows.target_groups(artifact))
    told: dict[str, Any] = {"rows": len(rows)}
    for (prior, name), values in gains.items():
        told[f"{name}, {prior} gains"] = _interval(values, drawn)
    for name in names:
        if "alpha=0 " not in name:
            plain = "alpha=0" + name[name.index(" ") :]
            told[f"{name}: own less catalogue's"] = _interval(gains["own", name] - gains["catalogue's", name], drawn)
            told[f"{name}: own less alpha 0"] = _interval(gains["own", name] - gains["own", plain], drawn)
    return told


def _gains(
    answers: Sequence[RowAnswer], place: int, artifact: Artifact, target: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Discounted gain of each row, by title."""
    lists = [[int(artifact.leaf_of_item[item]) for item in answer.lists[place][:K]] for answer in answers]
    padded = np.array(list(itertools.zip_longest(*lists, fillvalue=NONE))).T
    return discounted_gains(target_ranks(padded, target), K)


def _interval(values: NDArray[np.float64], drawn: Resampling) -> dict[str, float]:
    means = drawn.means(values[:, None])[:, 0]
    return {name: round(value, 4) for name, value in dataclasses.asdict(Interval.of(values.mean(), means)).items()}


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", type=Path, required=True, help="with an item scorer")
    parser.add_argument("--model", required=True, help="tuned over children")
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--beams", type=int, default=40)
    parser.add_argument("--alphas", type=float, nargs="+", default=[0.0, 0.2, 0.4])
    parser.add_argument("--gammas", type=float, nargs="+", default=[0.0, 0.5])
    sys.stdout.write(json.dumps(asyncio.run(measure(parser.parse_args())), indent=1) + "\n")


if __name__ == "__main__":
    main()
