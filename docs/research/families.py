"""Which of the kept evaluations are trainings of one kind, and what comparing them says."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING

from docs.research.kept import BASELINES, SETTINGS, Drawn, drawn, runs
from igd_core.evaluation.bootstrap import Resampling
from igd_core.evaluation.compare import Comparison, Question, Trial, compare, pair

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

BETAS = ("1", "0.5", "0.2")


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Checkpoints that differ in beta and seed alone, evaluated on the same rows.

    Attributes:
        model: and ``rows``: as the pages call them.
        trials: for each beta the names of its seeds' validation and test runs.
        baselines: the run that holds each baseline.
        among: settings to choose from; empty for every alpha. One alone: nothing was chosen on these rows.
    """

    model: str
    rows: str
    trials: Mapping[str, Sequence[tuple[str, str]]]
    baselines: Mapping[str, str]
    among: tuple[str, ...] = ()

    @property
    def seeds(self) -> int:
        """The most seeds that a beta has."""
        return max(map(len, self.trials.values()))


def _family(model: str, rows: str, stem: str, seeds: str, baselines: Mapping[str, str]) -> Family:
    trials = {b: [(f"{stem}-b{b}-s{s}-valid", f"{stem}-b{b}-s{s}-test") for s in seeds] for b in BETAS}
    return Family(model=model, rows=rows, trials=trials, baselines=baselines)


def _of_other_seeds(rows: str, stem: str, trials: Mapping[str, str]) -> Family:
    """Test rows in both places: nothing is chosen on them, alpha 0.3 is what other validation rows chose."""
    named = {b: [(f"small-vg-b{b}-s{s}-{stem}",) * 2 for s in seeds] for b, seeds in trials.items()}
    return Family(model="small Llama", rows=rows, trials=named, baselines={}, among=("alpha=0.3 lp=0 beams=10",))


ML_BASELINES = dict.fromkeys(("sasrec", "transitions", "itemknn", "popular"), "baselines-ml-test")
_SMOLLM2_VG = dict.fromkeys(BASELINES, "smollm2-vg-b1-s0-test")
FAMILIES = {
    "small-ml": _family("small Llama", "ML", "small-ml", "012", ML_BASELINES),
    "small-vg": _family("small Llama", "VG 2,000", "small-vg", "012", dict.fromkeys(BASELINES, "baselines-vg-test")),
    "small-vg-all": _of_other_seeds("VG all", "all", {"1": "34", "0.5": "3", "0.2": "13"}),
    "small-vg-valid": _of_other_seeds("VG, 4,000 validation rows", "valid", {"1": "34", "0.5": "3", "0.2": "3"}),
    "smollm2-ml": _family("SmolLM2", "ML", "smollm2-ml", "0", ML_BASELINES),
    "smollm2-vg": _family("SmolLM2", "VG 1,000", "smollm2-vg", "0", _SMOLLM2_VG),
    "adapter-ml": _family("adapter", "ML", "adapter-ml", "01", ML_BASELINES),
}
JUDGED = [name for name in FAMILIES if name != "small-vg-valid"]


@cache
def compared(name: str) -> dict[str, Comparison]:
    """What `igd compare --together --draw targets` finds of a family, by beta."""
    family = FAMILIES[name]
    trials = {b: [Trial(valid=runs()[v], test=runs()[t]) for v, t in each] for b, each in family.trials.items()}
    paired = pair(trials, {method: runs()[run] for method, run in family.baselines.items()})
    question = Question(draw="targets", together=True, among=family.among)
    return {each.name: each for each in compare(paired, question, Resampling())}


@cache
def family_drawn(name: str) -> Drawn:
    """The settings that every test run of a family has, by beta."""
    tests = {b: [test for _, test in trials] for b, trials in FAMILIES[name].trials.items()}
    everywhere = [{each.name for each in runs()[test].methods} for test in chain.from_iterable(tests.values())]
    return drawn(tests, [each for each in SETTINGS.values() if all(each in held for held in everywhere)])
