"""A model tuned and scored over children, last-item transitions mixed in: the kept evaluations of Video Games."""

from __future__ import annotations

from functools import cache

import numpy as np

from docs.research.demo import LESS, NAMES
from docs.research.kept import D3, Drawn, runs, targets_of, values
from docs.research.tables import between, by_seed, effect, gamma_of, plain, table, verdict

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
    return Drawn(columns, targets_of(runs()["mixed-vg-test"]))


def losses() -> dict[str, tuple[float, list[float], Drawn]]:
    """For each set NDCG@10 at alpha 0: tuned over children, each seed over the vocabulary, and both drawn together."""
    found = {}
    for name, (run, family) in MODELS.items():
        over = [values(f"{family}-b1-s{seed}-test", D3) for seed in SEEDS]
        columns = {"children": values(run, CHILDREN), "vocabulary": np.mean(over, axis=0)}
        means = [float(each.mean()) for each in over]
        found[name] = (float(columns["children"].mean()), means, Drawn(columns, targets_of(runs()[run])))
    return found


def mixed_block() -> str:
    """Video Games: transitions mixed into a model's search."""
    found, on_valid, best = mixed(), validated(), chosen()
    labels = {CHILDREN: "gamma 0: the model alone", best: f"**gamma {gamma_of(best)}, chosen**"}
    labels |= NAMES
    less = (CHILDREN, *LESS)
    rows = []
    for name in (best, CHILDREN, *LESS):
        gained = ["" if name == each else effect(found.less(name, each)) for each in less]
        valid = plain(on_valid[name]) if name in on_valid else ""
        rows.append([labels[name], valid, between(found.value(name)), *gained])
    head = ["less the model alone", *(f"less {NAMES[each]}" for each in less[1:])]
    return table(["", "on validation rows", "NDCG@10", *head], rows)


def mixture() -> str:
    """The claims about a prior in the tree and about the loss over children."""
    found, best = mixed(), chosen()
    others = {CHILDREN: "the model alone", **NAMES}
    rows: list[list[str]] = []
    for name in ("transitions", "scorer", CHILDREN, "sasrec"):
        gained = found.less(best, name)
        first = "" if rows else f"**A model with transitions mixed in**, gamma {gamma_of(best)}, is better than"
        rows.append([first, f"{others[name]}, VG 2,000", effect(gained), "1", verdict(gained, seeds=1)])
    for place, (name, (_, _, both)) in enumerate(losses().items()):
        gained = both.less("children", "vocabulary")
        first = "" if place else "**The loss over children** less that over the vocabulary, each scored as tuned"
        rows.append([first, f"small Llama, {name}", effect(gained), "1 and 3", verdict(gained, seeds=1)])
    return table(["claim", "than, or where", "effect (interval)", "seeds", "verdict"], rows)


def gammas() -> str:
    """Video Games, validation rows: NDCG@10 by gamma."""
    found = {gamma_of(name): value for name, value in validated().items() if name != "scorer"}
    found = dict(sorted(found.items(), key=lambda held: float(held[0])))
    head = ["gamma", *found, "the scorer alone"]
    return table(head, [["NDCG@10", *map(plain, found.values()), plain(validated()["scorer"])]])


def losses_block() -> str:
    """One seed tuned over children, less three over the vocabulary."""
    rows = []
    for name, (children, seeds, found) in losses().items():
        rows.append([name, plain(children), by_seed(seeds), effect(found.less("children", "vocabulary"))])
    return table(["NDCG@10, alpha 0", "over children, seed 0", "over the vocabulary, by seed", "difference"], rows)
