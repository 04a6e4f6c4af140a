"""Each data set: the served setting, as validation rows chose it, beside rankers that need no language model.

A set NAME has these kept evaluations, all of its test runs on the same rows: ``sets-NAME-valid`` and ``sets-NAME-test``
of the model with its scorer; ``sets-NAME-base`` of most-popular, last-item transitions and ItemKNN; ``sets-NAME-ease``
of EASE alone, as ``scorer``; ``sets-NAME-both`` of the mean of transitions and EASE, likewise; ``sets-NAME-sasrec`` of
SASRec, sized on validation rows, and of BPR. ML-100K is the demo's, with ``sets-ml-mean`` of the mean of EASE and
SASRec, as ``scorer``, and ``sets-ml-mean-valid`` of that mean in its search.
Books has ``sets-bookslinear-valid``, of linear mixtures; ``sets-bookswarm-valid`` and ``sets-bookswarm-test``, of a
model that was kept by other validation rows; and ``sets-bookssecond-test`` and ``sets-bookswarmsecond-test``, of
another seed of either.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

import numpy as np

from docs.research import demo
from docs.research.kept import Drawn, runs, slices, targets_of, values
from docs.research.tables import between, effect, gamma_of, plain, table, verdict
from igd_core.evaluation.compare import Question
from igd_core.evaluation.gammas import choose_gamma

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from igd_core.evaluation.bootstrap import Interval
    from igd_core.evaluation.ranks import RankedRun

NAMES = {
    "vg": "Video Games",
    "cds": "CDs and Vinyl",
    "office": "Office (semantic IDs)",
    "industrial": "Industrial (semantic IDs)",
    "toys": "Toys and Games",
    "ml1m": "MovieLens-1M",
    "books": "Books",
}
EXCLUDED = ("ml1m", "toys")
"""Sets in whose lists nothing comes back that was seen, since no row asks for it."""
SCORERS = {
    "ml": "EASE",
    "vg": "transitions and EASE",
    "cds": "transitions and EASE",
    "office": "transitions and EASE",
    "industrial": "transitions and EASE",
    "toys": "transitions and EASE",
    "ml1m": "EASE",
    "books": "EASE",
}
"""Of the served setting."""
RANKERS = {
    "popular": "most-popular",
    "transitions": "last-item transitions",
    "itemknn": "ItemKNN",
    "bpr": "BPR",
    "ease": "EASE",
    "sasrec": "SASRec",
    "both": "mean of transitions and EASE",
    "mean": "mean of EASE and SASRec",
}
MEANS = ("both", "mean")
"""Rankers that are two."""
ALONE, SERVED = "the model alone", "served"
METRICS = ("HR@5", "HR@10", "HR@20", "NDCG@5", "NDCG@10", "NDCG@20")
_AS_SCORER = ("ease", "both", "mean")
_HELD = {**{name: name for name in (*_AS_SCORER, "sasrec")}, "bpr": "sasrec"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What was kept of one set.

    Attributes:
        label: as the page calls it.
        setting: that is served, as `igd evaluate` names it.
        chosen: NDCG@10 on validation rows by gamma, and of the scorer alone.
        methods: for each method the run that ranked it, and its name there.
        seen: whether lists may hold what was seen.
    """

    label: str
    setting: str
    chosen: dict[str, float]
    methods: dict[str, tuple[RankedRun, str]]
    seen: Literal["allowed", "excluded"]

    def values(self, method: str, metric: str) -> NDArray[np.float64]:
        """Of each row."""
        run, name = self.methods[method]
        return values(run, name, Question(metric=metric, draw="targets", seen=self.seen))

    def drawn(self) -> Drawn:
        """NDCG@10 of every method, drawn together."""
        return _drawn(self.label)

    def best(self, *, means: bool) -> str | None:
        """The mean of rankers, or the single ranker, with the highest NDCG@10 on the test rows: in its favour."""
        there = [name for name in RANKERS if name in self.methods and (name in MEANS) == means]
        return max(there, key=lambda name: float(self.values(name, "NDCG@10").mean()), default=None)

    @property
    def is_better(self) -> bool:
        """Whether the served lists are certainly better than the best single ranker."""
        best = self.best(means=False)
        return best is not None and self.drawn().less(SERVED, best).low > 0


def found() -> dict[str, Found]:
    """Every set, by name; those first whose lists gain most."""
    return {"ml": _ml(), **{name: _found(name) for name in NAMES}}


@cache
def _found(name: str) -> Found:
    valid, test = runs()[f"sets-{name}-valid"], runs()[f"sets-{name}-test"]
    seen: Literal["allowed", "excluded"] = "excluded" if name in EXCLUDED else "allowed"
    asked = Question(draw="targets", seen=seen)
    chosen = {
        each.name: float(values(valid, each.name, asked).mean())
        for each in valid.methods
        if each.name == "scorer" or each.name.startswith("alpha=0 ")
    }
    setting = _surest(valid, [each for each in chosen if each != "scorer"], seen)
    alone = next(each.name for each in test.methods if each.name.startswith("alpha=") and gamma_of(each.name) == "0")
    methods = {SERVED: (test, setting), ALONE: (test, alone)}
    for ranker in RANKERS:
        run = f"sets-{name}-{_HELD.get(ranker, 'base')}"
        if run in runs():
            methods[ranker] = (runs()[run], "scorer" if ranker in _AS_SCORER else ranker)
    return Found(label=NAMES[name], setting=setting, chosen=chosen, methods=methods, seen=seen)


def _surest(valid: RankedRun, names: Sequence[str], seen: str) -> str:
    """The setting whose gamma `igd evaluate` chooses."""
    methods, rows = [valid.of(name, seen) for name in names], len(targets_of(valid))
    choice = choose_gamma(methods, np.ones(rows, np.int64), targets_of(valid), k=10)
    if choice is None:
        raise ValueError(f"{valid.path}: has one gamma")
    return next(name for name in names if gamma_of(name) == f"{choice.one:g}")


@cache
def _ml() -> Found:
    test, base = demo.both()
    methods = {SERVED: (test, demo.served()), ALONE: (test, demo.settings()[0]), "ease": (test, "scorer")}
    methods |= {"mean": (runs()["sets-ml-mean"], "scorer")}
    known = {each.name for each in base.methods}
    methods |= {name: (base, name) for name in RANKERS if name not in methods and name in known}
    return Found(label="MovieLens-100K, the demo", setting=demo.served(), chosen={}, methods=methods, seen="excluded")


@cache
def _drawn(label: str) -> Drawn:
    held = next(each for each in found().values() if each.label == label)
    targets = targets_of(held.methods[SERVED][0])
    return Drawn({name: held.values(name, "NDCG@10") for name in held.methods}, targets)


def _rows(held: Found) -> int:
    return len(held.values(SERVED, "NDCG@10"))


def claims() -> str:
    """For each set: what the served lists gain on the best ranker, on the best mean of rankers, and on the model."""
    rows = []
    for name, held in found().items():
        drawn, best, mean = held.drawn(), held.best(means=False), held.best(means=True)
        if best is None or mean is None:
            raise ValueError(f"{held.label}: no ranker was kept")
        gained: Interval = drawn.less(SERVED, best)
        rows.append(
            [
                f"{held.label}: {SCORERS[name]}, {gamma_of(held.setting)}",
                f"{_rows(held):,}",
                plain(drawn.value(SERVED).value),
                f"{RANKERS[best]}, {plain(drawn.value(best).value)}",
                effect(gained),
                verdict(gained, seeds=1),
                f"{RANKERS[mean].removeprefix('mean of ')}, {plain(drawn.value(mean).value)}",
                effect(drawn.less(SERVED, mean)),
                effect(drawn.less(SERVED, ALONE)),
            ]
        )
    head = [
        "set: scorer, gamma",
        "test rows",
        "served",
        "best ranker",
        "less it",
        "better?",
        "best mean of two",
        "less it",
        "less the model alone",
    ]
    return table(head, rows)


def every() -> str:
    """Each method on each set."""
    rows = []
    for held in found().values():
        labels = {SERVED: f"**served**, gamma {gamma_of(held.setting)}", ALONE: ALONE, **RANKERS}
        for place, (name, label) in enumerate((name, labels[name]) for name in labels if name in held.methods):
            told = [plain(float(held.values(name, metric).mean())) for metric in METRICS]
            less = "" if name == SERVED else effect(held.drawn().less(SERVED, name))
            rows.append(["" if place else held.label, label, *told, between(held.drawn().value(name)), less])
    return table(["set", "", *METRICS, "NDCG@10 (interval)", "served less it"], rows)


def gammas() -> str:
    """NDCG@10 on validation rows, by gamma."""
    told = {name: {gamma_of(each): v for each, v in _found(name).chosen.items() if each != "scorer"} for name in NAMES}
    known = sorted({each for held in told.values() for each in held}, key=float)
    rows = []
    for name, held in told.items():
        cells = [plain(held[each]) if each in held else "" for each in known]
        top = gamma_of(_found(name).setting)
        shown = [f"**{cell}**" if each == top else cell for each, cell in zip(known, cells, strict=True)]
        rows.append([NAMES[name], *shown, plain(_found(name).chosen["scorer"])])
    return table(["NDCG@10, validation rows", *(f"gamma {each}" for each in known), "the scorer alone"], rows)


def books() -> str:
    """Books, validation rows: NDCG@10 by gamma of both mixtures."""
    asked, rows = Question(draw="targets"), []
    for run, mixture, words in (
        ("sets-books-valid", "", "log-linear"),
        ("sets-bookslinear-valid", "linear", "linear"),
    ):
        names = [each.name for each in runs()[run].methods if each.name.startswith("alpha=")]
        told = {
            gamma_of(name): plain(float(values(runs()[run], name, asked).mean()))
            for name in names
            if gamma_of(name) == "0" or name.partition(" mixture=")[2] == mixture
        }
        rows.append((words, told))
    known = sorted({gamma for _, told in rows for gamma in told}, key=float)
    alone = plain(float(values(runs()["sets-books-valid"], "scorer", asked).mean()))
    head = ["NDCG@10, 1,000 validation rows", *(f"gamma {gamma}" for gamma in known), "EASE alone"]
    return table(head, [[words, *(told.get(gamma, "") for gamma in known), alone] for words, told in rows])


def books_kept() -> str:
    """Books, test rows: the model that all validation rows kept, and the one that rows of trained items kept."""
    asked, first = Question(draw="targets"), runs()["sets-books-test"]
    kept = {
        "all": (first, runs()["sets-bookssecond-test"]),
        "trained": (runs()["sets-bookswarm-test"], runs()["sets-bookswarmsecond-test"]),
    }
    rows = []
    for gamma, words in (("0", "the model alone"), ("0.7", "gamma 0.7")):
        seeds = {
            by: [values(run, next(name for name in _settings(run) if gamma_of(name) == gamma), asked) for run in of]
            for by, of in kept.items()
        }
        columns = {by: np.mean(each, axis=0) for by, each in seeds.items()}
        drawn = Drawn({**columns, "ease": values(first, "scorer", asked)}, targets_of(first))
        told = [
            f"{between(drawn.value(by))}; {', '.join(plain(float(one.mean())) for one in each)}"
            for by, each in seeds.items()
        ]
        gained = drawn.less("trained", "all")
        rows.append([words, *told, effect(gained), verdict(gained, seeds=2), effect(drawn.less("trained", "ease"))])
    head = ["NDCG@10, 4,383 test rows", "kept by all rows; each seed", "by those of trained items; each seed"]
    return table([*head, "second less first", "better?", "second less EASE"], rows)


def _settings(run: RankedRun) -> list[str]:
    """Searches of the model, without baselines."""
    return [each.name for each in run.methods if each.name.startswith("alpha=")]


def books_chosen() -> str:
    """Books, the model that rows of trained items kept: each gamma on validation rows, and one title's share of it."""
    asked, valid, test = Question(draw="targets"), runs()["sets-bookswarm-valid"], runs()["sets-bookswarm-test"]
    of_test = {gamma_of(name): values(test, name, asked) for name in _settings(test)}
    later = Drawn({**of_test, "ease": values(test, "scorer", asked)}, targets_of(test))
    rows = []
    for name in _settings(valid):
        gamma, gains = gamma_of(name), values(valid, name, asked)
        by_title, asking = np.bincount(targets_of(valid), gains), np.bincount(targets_of(valid))
        mean = Drawn({name: gains}, targets_of(valid)).value(name)
        share = f"{by_title.max() / by_title.sum():.0%} ({asking[by_title.argmax()]} rows)"
        on_test = [plain(later.value(gamma).value), effect(later.less(gamma, "ease"))] if gamma in of_test else ["", ""]
        rows.append([gamma, plain(mean.value), plain(mean.low), share, *on_test])
    head = ["gamma", "1,000 validation rows: NDCG@10", "lower end (95 %)", "one title's share of it", "4,383 test rows"]
    return table([*head, "less EASE"], rows)


def mean_in_search() -> str:
    """ML-100K, validation rows: the mean of EASE and SASRec as the scorer of the demo's search, and alone."""
    run = runs()["sets-ml-mean-valid"]
    asked = Question(draw="targets", seen="excluded")
    told = {each.name: float(values(run, each.name, asked).mean()) for each in run.methods if each.name != "popular"}
    by_gamma = {f"gamma {gamma_of(name)}": value for name, value in told.items() if name != "scorer"}
    shown = dict(sorted(by_gamma.items())) | {"the mean alone": told["scorer"]}
    return table(["NDCG@10, 1,000 validation rows", *shown], [["ML-100K", *map(plain, shown.values())]])


def ceilings() -> str:
    """What a search would find that took for each row the better list of its two parts, which nobody can know."""
    rows = []
    for of in found().values():
        run, _ = of.methods[ALONE]
        scorer = values(run, "scorer", Question(draw="targets", seen=of.seen))
        model, served = of.values(ALONE, "NDCG@10"), of.values(SERVED, "NDCG@10")
        best = np.maximum(model, scorer)
        shown = (float(each.mean()) for each in (model, scorer, served, best))
        neither = float(((best == 0) & (served == 0)).mean())
        found_so = float((served[best == 0] > 0).mean())
        rows.append([of.label, *map(plain, shown), f"{neither:.0%}", f"{found_so:.1%}"])
    head = ["set", "the model alone", "the scorer alone", "served", "the better of both, row by row"]
    return table([*head, "rows whose target none lists", "of rows that neither part finds, served finds"], rows)


def groups() -> str:
    """Served lists by how often a target was chosen, and by the history's length."""
    rows = []
    for of in found().values():
        kept, setting, alone = slices(of.methods[SERVED][0].path.name), of.setting, of.methods[ALONE][1]
        for place, (group, held) in enumerate(kept[setting]["target popularity"].items()):
            other = kept[alone]["target popularity"][group]["NDCG@10"]["value"]
            scorer = kept["scorer"]["target popularity"][group]["NDCG@10"]["value"]
            served = held["NDCG@10"]["value"]
            rows.append(["" if place else of.label, group, f"{held['rows']:,}", *map(plain, (served, other, scorer))])
    return table(["set", "targets", "rows", "served", "the model alone", "the scorer alone"], rows)
