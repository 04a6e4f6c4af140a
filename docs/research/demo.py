"""The blocks about the demo: its kept evaluations, which are of the very catalogue that it serves."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Literal

from docs.research.kept import Drawn, runs, targets_of, values
from docs.research.tables import between, effect, gamma_of, plain, table, verdict
from igd_core.evaluation.compare import Question
from igd_core.evaluation.methods import DecodingSetting, with_chosen
from igd_core.evaluation.pairing import on_same_rows
from igd_core.scorers.gamma_file import ChosenGamma
from igd_core.tuning.recipes import build_options, read_recipe
from igd_core.tuning.settings import TuningSettings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from igd_core.evaluation.ranks import RankedRun

NAMES = {
    "scorer": "the scorer alone",
    "transitions": "last-item transitions",
    "sasrec": "SASRec",
    "itemknn": "ItemKNN",
    "popular": "most-popular",
}
LESS = ("scorer", "transitions", "sasrec", "popular")
SERVED_SEEN: Literal["excluded"] = "excluded"
"""The server leaves out what was seen."""


def served() -> str:
    """The setting that the demo serves, as `igd evaluate` names it: its recipe's, over children as all mixtures are."""
    recipe = read_recipe("ml-100k-small-llama")
    options, scored = build_options(recipe), TuningSettings.read(recipe.tuning).scored
    if options.scorer is None:
        raise ValueError("the demo's recipe names no scorer")
    setting = DecodingSetting(
        alpha=options.alpha,
        length_penalty=0.0,
        beams=options.beams,
        seen=SERVED_SEEN,
        scored=scored.settled("children", None),
    )
    chosen = ChosenGamma(gamma=options.scorer.gamma, mixture=options.scorer.mixture, scorer=options.scorer.kind)
    return with_chosen([setting], chosen)[0].name


@cache
def both() -> tuple[RankedRun, RankedRun]:
    """The demo's evaluation and that of baselines, on the same rows."""
    test, base = on_same_rows([runs()["demo-ml-test"], runs()["demo-ml-base"]]).runs
    return test, base


def value(method: str, metric: str = "NDCG@10", *, run: RankedRun | None = None) -> NDArray[np.float64]:
    """The metric of each row."""
    test, base = both()
    held = run or (test if method in {each.name for each in test.methods} else base)
    return values(held, method, Question(metric=metric, seen=SERVED_SEEN))


@cache
def drawn() -> Drawn:
    """NDCG@10 of the demo's settings, and of what needs no model."""
    test, _ = both()
    return Drawn({name: value(name) for name in (*settings(), *NAMES)}, targets_of(test))


def settings() -> list[str]:
    """The settings of the demo's evaluation, gamma rising."""
    return [each.name for each in both()[0].methods if each.name.startswith("alpha=")]


def _over(name: str) -> str:
    return "children" if "normalise=children" in name else "the vocabulary"


def compared() -> str:
    """The demo's model, with each gamma, and what needs no model."""
    alone, *_ = settings()
    labels = {name: f"gamma {gamma_of(name)}, over {_over(name)}" for name in settings()}
    labels |= {alone: "gamma 0: the model alone", served(): f"**gamma {gamma_of(served())}, served**"} | NAMES
    less = (alone, *LESS)
    rows = []
    for method, label in labels.items():
        hits = [plain(value(method, f"HR@{k}").mean()) for k in (1, 10)]
        gained = ["" if method == each else effect(drawn().less(method, each)) for each in less]
        rows.append([label, *hits, between(drawn().value(method)), *gained])
    head = ["less the model alone", *(f"less {NAMES[each]}" for each in LESS)]
    return table(["", "HR@1", "HR@10", "NDCG@10", *head], rows)


def chosen() -> str:
    """NDCG@10 of the demo's model on validation rows, with each gamma and width of the search."""
    found: dict[str, dict[str, float]] = {}
    for valid in (runs()["demo-ml-valid-narrow"], runs()["demo-ml-valid"]):
        for each in valid.methods:
            mixes = gamma_of(each.name) != "0"
            if each.name.startswith("alpha=") and mixes == (_over(each.name) == "children"):  # as the server does
                beams = each.name.partition("beams=")[2].split()[0]
                found.setdefault(gamma_of(each.name), {})[beams] = float(value(each.name, run=valid).mean())
    widths = sorted({beams for held in found.values() for beams in held}, key=int)
    best = max((value, gamma, beams) for gamma, held in found.items() for beams, value in held.items())
    rows = []
    for gamma in sorted(found, key=float):
        told = [plain(found[gamma][beams]) if beams in found[gamma] else "" for beams in widths]
        rows.append(
            [
                gamma,
                *(f"**{cell}**" if best[1:] == (gamma, at) else cell for cell, at in zip(told, widths, strict=True)),
            ]
        )
    rows.append(["the scorer alone", *([plain(float(value("scorer", run=valid).mean()))] * len(widths))])
    return table(["gamma", *(f"{beams} beams" for beams in widths)], rows)


def claims() -> str:
    """What the demo's lists are better than."""
    alone, *_ = settings()
    rows: list[list[str]] = []
    for name, label in {alone: "the model alone", **{each: NAMES[each] for each in LESS}}.items():
        gained = drawn().less(served(), name)
        rows.append(
            ["" if rows else "**The demo's lists** are better than", label, effect(gained), verdict(gained, seeds=1)]
        )
    return table(["claim", "than", "effect (interval)", "verdict"], rows)
