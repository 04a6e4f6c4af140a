"""Genres behind the titles of a prompt, ML-100K: ``sets-prompt-ml-after-SEED`` with them, ``…-plain-SEED`` without."""

from __future__ import annotations

import numpy as np

from docs.research.kept import Drawn, runs, targets_of, values
from docs.research.tables import between, effect, plain, table, verdict
from igd_core.evaluation.compare import Question

_SEEDS = "01"
_SETTING = "alpha=0 lp=0 beams=20 normalise=children"
_SETTINGS = {
    "the model alone": _SETTING,
    "with its scorer, gamma 0.5": f"{_SETTING} gamma=0.5",
    "gamma 0.7": f"{_SETTING} gamma=0.7",
}
_ASKED = Question(draw="targets", seen="excluded")


def genres() -> str:
    """NDCG@10 with genres and without, the mean of two seeds, and their difference."""
    rows = []
    for words, setting in _SETTINGS.items():
        seeds = {
            kind: [values(runs()[f"sets-prompt-ml-{kind}-{seed}"], setting, _ASKED) for seed in _SEEDS]
            for kind in ("after", "plain")
        }
        columns = {kind: np.mean(each, axis=0) for kind, each in seeds.items()}
        drawn = Drawn(columns, targets_of(runs()["sets-prompt-ml-plain-0"]))
        gained = drawn.less("after", "plain")
        shown = [
            f"{between(drawn.value(kind))}; {', '.join(plain(float(each.mean())) for each in of_seeds)}"
            for kind, of_seeds in seeds.items()
        ]
        rows.append([words, *shown, effect(gained), verdict(gained, seeds=len(_SEEDS))])
    head = ["NDCG@10, 2,000 test rows", "with genres; each seed", "titles alone; each seed", "first less second"]
    return table([*head, "better?"], rows)
