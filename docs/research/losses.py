"""Tuned over children, or over the vocabulary: three sets, three seeds, equal steps.

``sets-loss-SET-LOSS-SEED`` are evaluations of a small Llama each, on the same 2,000 test rows of a set;
``sets-lossmix-…`` of some of them with the mean of transitions and EASE mixed in, over children unless the name says
``vg-vocabulary``; ``vg-renormalised`` are of Video Games' models tuned over the vocabulary.
``sets-losssm-ml-LOSS-SEED`` are of an adapter for SmolLM2-135M each, on 500 test rows of ML-100K.
"""

from __future__ import annotations

import numpy as np

from docs.research.kept import Drawn, runs, targets_of, values
from docs.research.tables import between, effect, plain, table, verdict
from igd_core.evaluation.compare import Question

_SETS = {"vg": "Video Games", "cds": "CDs and Vinyl", "office": "Office (semantic IDs)"}
_NAMES = {"children": "alpha=0 lp=0 beams=10 normalise=children", "vocabulary": "alpha=0 lp=0 beams=10"}
_ASKED = Question(draw="targets", seen="allowed")


def by_set() -> str:
    """NDCG@10 of either loss, the mean of the seeds that both have, and their difference."""
    rows = []
    for name, words in _SETS.items():
        run = runs()[f"sets-loss-{name}-children-0"]
        held = [seed for seed in "012" if all(f"sets-loss-{name}-{loss}-{seed}" in runs() for loss in _NAMES)]
        seeds = {
            loss: [values(runs()[f"sets-loss-{name}-{loss}-{seed}"], setting, _ASKED) for seed in held]
            for loss, setting in _NAMES.items()
        }
        drawn = Drawn({loss: np.mean(each, axis=0) for loss, each in seeds.items()}, targets_of(run))
        gained = drawn.less("children", "vocabulary")
        shown = [
            f"{between(drawn.value(loss))}; {', '.join(plain(float(each.mean())) for each in of_seeds)}"
            for loss, of_seeds in seeds.items()
        ]
        rows.append([words, *shown, effect(gained), verdict(gained, seeds=len(held))])
    head = [
        "NDCG@10, 2,000 test rows",
        "over children; each seed",
        "over the vocabulary; each seed",
        "first less second",
    ]
    return table([*head, "better?"], rows)


_MIXED = {
    "the vocabulary, scored over it": ("sets-lossmix-vg-vocabulary-0", "alpha=0 lp=0 beams=20 gamma={}"),
    "the vocabulary, scored over children": (
        "sets-lossmix-vg-renormalised-0",
        "alpha=0 lp=0 beams=20 normalise=children gamma={}",
    ),
    "children, scored over them": (
        "sets-lossmix-vg-children-0",
        "alpha=0 lp=0 beams=20 normalise=children gamma={}",
    ),
}


def mixed_over() -> str:
    """What a scorer mixed into the search makes of models with either loss, by what their scores are over."""
    gammas = ("0.5", "0.7")
    first = runs()["sets-lossmix-vg-renormalised-0"]
    columns = {
        f"{words} {gamma}": values(runs()[run], name.format(gamma), _ASKED)
        for words, (run, name) in _MIXED.items()
        for gamma in gammas
    }
    drawn = Drawn({**columns, "scorer": values(first, "scorer", _ASKED)}, targets_of(first))
    plainly = next(iter(_MIXED))
    rows = [
        [
            words,
            *(between(drawn.value(f"{words} {gamma}")) for gamma in gammas),
            effect(drawn.less(f"{words} 0.7", "scorer")),
            "" if words == plainly else effect(drawn.less(f"{words} 0.7", f"{plainly} 0.7")),
        ]
        for words in _MIXED
    ]
    rows.append(["the scorer alone", "", between(drawn.value("scorer")), "", ""])
    head = ["tuned over", *(f"gamma {gamma}" for gamma in gammas), "gamma 0.7 less the scorer alone"]
    return table([*head, "less the first line"], rows)


_SERVED = {"office": "vocabulary", "vg": "renormalised"}
"""By set, the part of its names that says that the model was tuned over the vocabulary."""


def served_by_set() -> str:
    """NDCG@10 of either loss with a scorer mixed in, over children: the mean of three seeds, and their difference."""
    rows = []
    for name, other in _SERVED.items():
        first = runs()[f"sets-lossmix-{name}-children-0"]
        for gamma in ("0.5", "0.7"):
            setting = f"alpha=0 lp=0 beams=20 normalise=children gamma={gamma}"
            seeds = {
                loss: [values(runs()[f"sets-lossmix-{name}-{loss}-{seed}"], setting, _ASKED) for seed in "012"]
                for loss in ("children", other)
            }
            columns = {loss: np.mean(each, axis=0) for loss, each in seeds.items()}
            drawn = Drawn({**columns, "scorer": values(first, "scorer", _ASKED)}, targets_of(first))
            gained = drawn.less("children", other)
            shown = [
                f"{plain(drawn.value(loss).value)}; {', '.join(plain(float(each.mean())) for each in of_seeds)}"
                for loss, of_seeds in seeds.items()
            ]
            less = effect(drawn.less("children", "scorer"))
            rows.append([_SETS[name], gamma, *shown, effect(gained), verdict(gained, seeds=3), less])
    head = ["NDCG@10, 2,000 test rows", "gamma", "tuned over children; each seed", "over the vocabulary; each seed"]
    return table([*head, "first less second", "better?", "first less the scorer alone"], rows)


def smollm2() -> str:
    """NDCG@10 of an adapter for SmolLM2 with either loss, alone and with a scorer, and their difference."""
    asked = Question(draw="targets", seen="excluded")
    mixed = "alpha=0 lp=0 beams=10 normalise=children gamma=0.7"
    first = runs()["sets-losssm-ml-children-0"]
    scorer = values(first, "scorer", asked)
    held = [seed for seed in "012" if all(f"sets-losssm-ml-{loss}-{seed}" in runs() for loss in _NAMES)]
    rows = []
    for words, settings in {
        "the model alone": _NAMES,
        "with its scorer, gamma 0.7": dict.fromkeys(_NAMES, mixed),
    }.items():
        seeds = {
            loss: [values(runs()[f"sets-losssm-ml-{loss}-{seed}"], setting, asked) for seed in held]
            for loss, setting in settings.items()
        }
        columns = {loss: np.mean(each, axis=0) for loss, each in seeds.items()}
        drawn = Drawn({**columns, "scorer": scorer}, targets_of(first))
        gained = drawn.less("children", "vocabulary")
        shown = [
            f"{between(drawn.value(loss))}; {', '.join(plain(float(each.mean())) for each in of_seeds)}"
            for loss, of_seeds in seeds.items()
        ]
        alone = between(drawn.value("scorer"))
        rows.append([words, *shown, effect(gained), verdict(gained, seeds=len(held)), alone])
    head = ["NDCG@10, 500 test rows", "over children; each seed", "over the vocabulary; each seed", "first less second"]
    return table([*head, "better?", "the scorer alone"], rows)
