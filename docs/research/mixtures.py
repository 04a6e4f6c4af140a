"""A model tuned and scored over children, last-item transitions mixed in: the kept evaluations of Video Games."""

from __future__ import annotations

from functools import cache

import numpy as np

from docs.research.kept import D3, Drawn, runs, values

CHILDREN = f"{D3} normalise=children"
SEEDS = "012"
"""Of the models tuned over the vocabulary, on the same rows."""
MODELS = {"Video Games": ("mixed-vg-test", "small-vg"), "ML-100K": ("mixed-ml-test", "small-ml")}
"""For each set the evaluation of a model tuned over children, and the family of those tuned over the vocabulary."""


def validated() -> dict[str, float]:
    """NDCG@10 on validation rows of each gamma, and of the scorer alone."""
    run = runs()["mixed-vg-valid"]
    return {each.name: float(values(run, each.name).mean()) for each in run.methods if each.name != "popular"}


def chosen() -> str:
    """The setting with the best NDCG@10 on validation rows."""
    return max(validated().items(), key=lambda held: held[1])[0]


@cache
def mixed() -> Drawn:
    """NDCG@10 on test rows: the chosen setting, the model alone, the scorer alone and baselines, drawn together."""
    run = runs()["mixed-vg-test"]
    columns = {name: values(run, name) for name in (chosen(), CHILDREN, "scorer", "popular")}
    columns |= {name: values("baselines-vg-test", name) for name in ("transitions", "sasrec")}
    return Drawn(columns, _targets("mixed-vg-test"))


def losses() -> dict[str, tuple[float, list[float], Drawn]]:
    """For each set NDCG@10 at alpha 0: tuned over children, each seed over the vocabulary, and both drawn together."""
    found = {}
    for name, (run, family) in MODELS.items():
        over = [values(f"{family}-b1-s{seed}-test", D3) for seed in SEEDS]
        columns = {"children": values(run, CHILDREN), "vocabulary": np.mean(over, axis=0)}
        means = [float(each.mean()) for each in over]
        found[name] = (float(columns["children"].mean()), means, Drawn(columns, _targets(run)))
    return found


def _targets(name: str) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    targets = runs()[name].targets
    if targets is None:
        raise ValueError(f"{name} does not say which rows ask for the same title")
    return targets
