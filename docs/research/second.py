"""Video Games once more: other scorers, alpha in the mixture, tuning by lists, half of the rows, other widths.

``sets-vg-…`` are of seed 1 with the mean of transitions and EASE (`sets`); ``sets-vgfirst-…`` of seed 0 with
transitions, on the same rows; ``sets-vglists-test`` of seed 1's model after `igd tune lists`, on 2,000 of them;
``sets-vgrows-whole`` and ``sets-vgrows-half`` of seed 0, with models and scorers of all training rows and of every
second, on the same 2,000; ``sets-vgwidth-64`` and ``sets-vgwidth-256`` as the former, with models half and twice as
wide; ``sets-vgthree-both-valid`` and ``sets-vgthree-three-valid`` of the model half as wide, with transitions and EASE,
and with SASRec as well.
"""

from __future__ import annotations

import numpy as np

from docs.research.kept import Drawn, runs, targets_of, values
from docs.research.tables import between, effect, gamma_of, plain, table, verdict
from igd_core.evaluation.compare import Question

_MODEL = "alpha=0 lp=0 beams=40 normalise=children"
_SERVED = f"{_MODEL} gamma=0.5"
_ASKED = Question(draw="targets", seen="allowed")


def trainings() -> str:
    """The served lists of both trainings, and what the second gains."""
    first, second = runs()["sets-vgfirst-test"], runs()["sets-vg-test"]
    columns = {
        f"{place} {name}": values(run, name, _ASKED)
        for place, run in (("first", first), ("second", second))
        for name in (_SERVED, _MODEL)
    }
    drawn = Drawn(columns, targets_of(second))
    rows = [
        [words, *(between(drawn.value(f"{place} {name}")) for place in ("first", "second")), effect(gained)]
        for name, words in ((_SERVED, "served, gamma 0.5"), (_MODEL, "the model alone"))
        for gained in [drawn.less(f"second {name}", f"first {name}")]
    ]
    chosen = [float(values(runs()[run], _SERVED, _ASKED).mean()) for run in ("sets-vgfirst-valid", "sets-vg-valid")]
    rows.append(["served, on 1,000 validation rows", *map(plain, chosen), ""])
    return table(["NDCG@10", "seed 0, transitions", "seed 1, transitions and EASE", "second less first"], rows)


def alphas() -> str:
    """Alpha 0.2 less alpha 0 over children, by gamma, on validation rows."""
    run = runs()["sets-vg-valid"]
    names = [each.name for each in run.methods if each.name.startswith("alpha=")]
    drawn = Drawn({name: values(run, name, _ASKED) for name in names}, targets_of(run))
    rows = []
    for name in (each for each in names if each.startswith("alpha=0 ")):
        other = name.replace("alpha=0 ", "alpha=0.2 ")
        gained = drawn.less(other, name)
        rows.append([gamma_of(name), *map(between, map(drawn.value, (name, other))), effect(gained), verdict(gained)])
    return table(["gamma", "alpha 0", "alpha 0.2", "alpha 0.2 less alpha 0", "better?"], rows)


def by_lists() -> str:
    """What tuning by lists adds to the model alone and to the served lists, on the same rows."""
    after, whole = runs()["sets-vglists-test"], runs()["sets-vg-test"]
    if after.rows is None or whole.rows is None:
        raise ValueError("the samples do not say which rows they hold")
    held = np.searchsorted(whole.rows, after.rows)
    if not np.array_equal(whole.rows[held], after.rows):
        raise ValueError("the rows after tuning by lists are not among those before")
    rows = []
    for name, words in ((_MODEL, "the model alone"), (_SERVED, "served, gamma 0.5")):
        columns = {"before": values(whole, name, _ASKED)[held], "after": values(after, name, _ASKED)}
        drawn = Drawn(columns, targets_of(after))
        gained = drawn.less("after", "before")
        shown = [between(drawn.value("before")), between(drawn.value("after")), effect(gained)]
        rows.append([words, *shown, verdict(gained, seeds=1)])
    return table(["NDCG@10, 2,000 test rows", "before", "after", "after less before", "better?"], rows)


def by_rows() -> str:
    """What the second half of the training rows brought to the model, the scorer and what is served."""
    whole, half = runs()["sets-vgrows-whole"], runs()["sets-vgrows-half"]
    rows = []
    for name, words in ((_MODEL, "the model alone"), ("scorer", "the scorer alone"), (_SERVED, "served, gamma 0.5")):
        columns = {"half": values(half, name, _ASKED), "whole": values(whole, name, _ASKED)}
        drawn = Drawn(columns, targets_of(whole))
        gained = drawn.less("whole", "half")
        shown = [between(drawn.value("half")), between(drawn.value("whole")), effect(gained)]
        rows.append([words, *shown, verdict(gained, seeds=1)])
    return table(["NDCG@10, 2,000 test rows", "24,567 rows", "49,133 rows", "more by the other half", "better?"], rows)


def by_width() -> str:
    """What a model half and twice as wide makes of the same training rows, alone and served."""
    of_width = {
        "64": runs()["sets-vgwidth-64"], "128": runs()["sets-vgrows-whole"], "256": runs()["sets-vgwidth-256"]
    }  # fmt: skip
    targets = targets_of(of_width["128"])
    rows = []
    for name, words in ((_MODEL, "the model alone"), (_SERVED, "served, gamma 0.5")):
        drawn = Drawn({width: values(run, name, _ASKED) for width, run in of_width.items()}, targets)
        gained = [drawn.less("128", "64"), drawn.less("256", "128")]
        rows.append([words, *(between(drawn.value(width)) for width in of_width), *map(effect, gained)])
    head = ["NDCG@10, 2,000 test rows", *(f"width {width}" for width in of_width)]
    return table([*head, "128 less 64", "256 less 128"], rows)


def three_parts() -> str:
    """What SASRec as a third part of the scorer adds, on validation rows."""
    both, three = runs()["sets-vgthree-both-valid"], runs()["sets-vgthree-three-valid"]
    rows = []
    for name, words in (
        ("scorer", "the scorer alone"),
        (_SERVED, "served, gamma 0.5"),
        (_SERVED.replace("0.5", "0.7"), "served, gamma 0.7"),
    ):
        drawn = Drawn({"both": values(both, name, _ASKED), "three": values(three, name, _ASKED)}, targets_of(both))
        gained = drawn.less("three", "both")
        shown = [between(drawn.value("both")), between(drawn.value("three")), effect(gained)]
        rows.append([words, *shown, verdict(gained, seeds=1)])
    head = ["NDCG@10, 1,000 validation rows", "transitions and EASE", "and SASRec", "more by SASRec", "better?"]
    return table(head, rows)
