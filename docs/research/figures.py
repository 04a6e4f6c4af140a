"""The figures of docs/research that come from ranks: ``python -m docs.research.figures`` writes them into the pages.

``--check`` only looks. Each page holds blocks between ``<!-- generated: NAME -->`` and ``<!-- end -->``; the rest of it
is written by hand. Intervals draw the titles that test rows ask for.
"""

from __future__ import annotations

import argparse
import re
import sys
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from docs.research import demo, losses, mixtures, prompts, second, sets
from docs.research.families import BETAS, FAMILIES, JUDGED, ML_BASELINES, compared, family_drawn
from docs.research.kept import ALONE, BIGREC, D3, SETTINGS, Drawn, drawn, runs, values
from docs.research.tables import between, by_seed, effect, plain, table, verdict
from igd_core.evaluation.bootstrap import Interval, Resampling
from igd_core.evaluation.compare import Question, Trial, compare, pair
from igd_core.evaluation.pairing import on_same_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence


PAGES = Path(__file__).parent
_BLOCK = re.compile(r"(<!-- generated: ([a-z0-9-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


# verdicts.md.


def paper() -> str:
    """The paper's claims."""
    rows: list[list[str]] = []

    def claim(title: str, found: Iterable[tuple[str, str, Interval]], *, tuned: bool) -> None:
        for place, (name, words, interval) in enumerate(found):
            family = FAMILIES[name]
            said = verdict(interval, seeds=family.seeds if tuned else None)
            shown = f"{words}: {effect(interval)}" if words else effect(interval)
            if not interval.low and not interval.high:
                shown = "validation rows choose alpha 0"
            rows.append(["" if place else title, f"{family.model}, {family.rows}", shown, _seeds(name), said])

    for beta in ("0.5", "0.2"):
        title = f"**IGD-Tuning helps**: beta {beta} less beta 1, at alpha 0"
        found = ((name, "", compared(name)[beta].tuning) for name in JUDGED)
        claim(title, [(name, words, each) for name, words, each in found if each], tuned=True)
    title = "**IGD-Decoding helps**: alpha as validation rows choose, less alpha 0, beta 1"
    claim(title, [(name, _alpha(name, "1"), compared(name)["1"].decoding) for name in JUDGED], tuned=False)
    title = "**Both help most**: beta 0.5 and its alpha, less beta 1 at alpha 0"
    found = ((name, _alpha(name, "0.5"), compared(name)["0.5"].both) for name in JUDGED)
    claim(title, [(name, words, each) for name, words, each in found if each], tuned=True)
    title = "**No length penalty is better**: D3 less BIGRec, beta 1"
    known = [name for name in JUDGED if name != "small-vg-all"]
    claim(title, [(name, "", family_drawn(name).less(f"1 {D3}", f"1 {BIGREC}")) for name in known], tuned=False)
    return table(["claim", "model, rows", "effect (interval)", "seeds", "verdict"], rows)


def ours() -> str:
    """Decisions alone, and the bullet."""
    rows = []
    for beta in BETAS:
        for name in JUDGED:
            gained = family_drawn(name).less(f"{beta} {ALONE}", f"{beta} {D3}")
            first = f"**Decisions alone** less full scores, beta {beta}" if name == JUDGED[0] else ""
            model = f"{FAMILIES[name].model}, {FAMILIES[name].rows}"
            rows.append([first, model, effect(gained), _seeds(name), verdict(gained)])
    for place, (beta, gained) in enumerate(bullets().items()):
        first = "" if place else "**A bullet in front of every line** less none"
        rows.append([first, f"small Llama, ML, beta {beta}", effect(gained), "1", verdict(gained, seeds=1)])
    return table(["claim", "model, rows", "effect (interval)", "seeds", "verdict"], rows)


def baselines() -> str:
    """Each family as validation rows choose it, less the baselines."""
    rows = []
    for name in JUDGED:
        if name != "small-vg-all":
            beta, found = max(compared(name).items(), key=lambda item: item[1].validated)
            less = [effect(found.against[each].difference) for each in ("transitions", "sasrec", "popular")]
            family = FAMILIES[name]
            rows.append([f"{family.model}, {family.rows}, beta {beta}, {_alpha(name, beta)}", *less, _seeds(name)])
    head = ["model, as validation rows choose it", "less last-item transitions", "less SASRec", "less most-popular"]
    return table([*head, "seeds"], rows)


def bullets() -> dict[str, Interval]:
    """What a bullet adds to NDCG@10 at alpha 0, by beta."""
    pairs = {"1": "s0", "0.5": "s0", "0.2": "s1"}
    names = {b: (f"small-ml-b{b}-{s}-test", f"nobullet-ml-b{b}-{s}-test") for b, s in pairs.items()}
    both = drawn({run: [run] for run in chain.from_iterable(names.values())}, [D3])
    return {b: both.less(f"{new} {D3}", f"{old} {D3}") for b, (new, old) in names.items()}


def _seeds(name: str) -> str:
    return "others" if FAMILIES[name].among else str(FAMILIES[name].seeds)


def _alpha(name: str, beta: str) -> str:
    return compared(name)[beta].chosen[0].split()[0].replace("=", " ")


# accuracy.md.


def settings(name: str) -> str:
    """NDCG@10 and HR@10 of each setting, by beta: the mean, and each seed's."""
    family = FAMILIES[name]
    rows = []
    for metric, labels in (("NDCG@10", list(SETTINGS)), ("HR@10", [*SETTINGS][:3:2])):
        for label in labels:
            found = [
                [values(test, SETTINGS[label], Question(metric=metric)).mean() for _, test in family.trials[b]]
                for b in BETAS
            ]
            rows.append([label if metric == "NDCG@10" else f"HR@10, {label}", *map(by_seed, found)])
    return table(["NDCG@10", *(f"beta {b}" for b in BETAS)], rows)


def comparison(name: str) -> str:
    """What `compared` says, a quantity a row."""
    found = compared(name)
    rows = [
        ["alpha 0", *(between(each.plain) for each in found.values())],
        ["each seed's", *(" ".join(map(plain, each.plain_by_seed)) for each in found.values())],
        ["setting", *(_alpha(name, beta) for beta in found)],
        ["with it", *(between(each.best) for each in found.values())],
        *(
            []
            if FAMILIES[name].among
            else [["on validation rows", *(plain(each.validated) for each in found.values())]]
        ),
        ["decoding adds", *(effect(each.decoding) for each in found.values())],
        ["tuning adds to beta 1", *(effect(each.tuning) if each.tuning else "" for each in found.values())],
        ["both add to beta 1", *(effect(each.both) if each.both else "" for each in found.values())],
    ]
    rows += [
        [f"less {base}, {plain(found['1'].against[base].value.value)}"]
        + [effect(each.against[base].difference) for each in found.values()]
        for base in found["1"].against
    ]
    return table(["NDCG@10", *(f"beta {beta}" for beta in found)], rows)


def additions() -> str:
    """What a setting adds to alpha 0 of the same models."""
    labels = ["alpha 0.2", "alpha 0.4", "alpha 0, length penalty 1 (BIGRec)", "alpha 0, decisions alone"]
    rows = []
    for name in JUDGED:
        if name != "small-vg-all":
            for label in labels:
                less = [family_drawn(name).less(f"{b} {SETTINGS[label]}", f"{b} {D3}") for b in BETAS]
                rows.append([f"{FAMILIES[name].model}, {FAMILIES[name].rows}: {label}", *map(effect, less)])
    return table(["less alpha 0", *(f"beta {b}" for b in BETAS)], rows)


def weights() -> str:
    """One pass, and other weights of a token: seed 0, 2,000 rows of Video Games."""
    named = {
        "four passes: beta 1": "b1-s0",
        "beta 0.5": "b0.5-s0",
        "beta 0.2": "b0.2-s0",
        'weighting `position`, 0.2 (the paper\'s rival "Pos")': "b0.2-s0-position",
        "weighting `gain`, 0.2 (ours, smooth in the gain)": "b0.2-s0-gain",
        "one pass: beta 1": "b1-s0-1ep",
        "one pass: beta 0.5": "b0.5-s0-1ep",
        "one pass: beta 0.2": "b0.2-s0-1ep",
    }
    found = drawn({label: [f"small-vg-{run}-test"] for label, run in named.items()}, [D3, ALONE])
    rows = []
    for label in named:
        base = f"{'one pass' if 'one pass' in label else 'four passes'}: beta 1"
        less = "" if label == base else effect(found.less(f"{label} {D3}", f"{base} {D3}"))
        alone = effect(found.less(f"{label} {ALONE}", f"{label} {D3}"))
        rows.append([label, plain(found.value(f"{label} {D3}").value), less, alone])
    return table(["NDCG@10, alpha 0", "", "less beta 1", "decisions alone add"], rows)


def adapter() -> str:
    """An adapter of SmolLM2, with each setting, and what needs no model."""
    run, base = "adapter-ml-b0.2-s1-test", "baselines-ml-test"
    names = {label: (run, name) for label, name in SETTINGS.items()} | {name: (base, name) for name in ML_BASELINES}
    found = drawn({run: [run]}, SETTINGS.values(), *((base, name) for name in ML_BASELINES))
    rows = []
    for label, (held, name) in names.items():
        hits = [plain(values(held, name, Question(metric=f"HR@{k}")).mean()) for k in (1, 5, 10)]
        key = f"{held} {name}"
        less = ["" if key == other else effect(found.less(key, other)) for other in (f"{run} {D3}", f"{base} popular")]
        rows.append([label, *hits, between(found.value(key)), *less])
    return table(["", "HR@1", "HR@5", "HR@10", "NDCG@10", "less alpha 0", "less popular"], rows)


def drawing() -> str:
    """One effect, drawn over rows and over titles; and SmolLM2 less the small Llama on the rows that both ranked."""
    family = FAMILIES["small-vg"]
    trials = {"1": [Trial(valid=runs()[v], test=runs()[t]) for v, t in family.trials["1"]]}
    by_rows = compare(pair(trials), Question(together=True), Resampling())[0].decoding
    rows = [
        ["small Llama, VG 2,000, beta 1: alpha 0.3 adds, over rows", effect(by_rows)],
        ["the same, over titles", effect(compared("small-vg")["1"].decoding)],
    ]
    gamepad = [runs()["smollm2-vg-b0.5-s0-test"]]
    odd = SETTINGS["alpha 0.2, decisions alone"]
    columns = {name: values(gamepad[0], name) for name in (D3, odd)}
    for over, targets in (("rows", np.arange(len(columns[D3]))), ("titles", gamepad[0].targets)):
        assert targets is not None  # noqa: S101 - every kept sample has them
        label = f"SmolLM2, VG 1,000, beta 0.5: alpha 0.2 by decisions alone adds, over {over}"
        rows.append([label, effect(Drawn(columns, targets).less(odd, D3))])
    small = [runs()[f"small-vg-b1-s{seed}-test"] for seed in "012"]
    for beta in ("1", "0.5"):
        same = on_same_rows([*small, runs()[f"smollm2-vg-b{beta}-s0-test"]]).runs
        columns = {"small": np.mean([values(run, D3) for run in same[:-1]], axis=0), "large": values(same[-1], D3)}
        targets = same[-1].targets
        assert targets is not None  # noqa: S101 - as above
        label = f"SmolLM2, beta {beta}, less the small Llama, beta 1: alpha 0, VG 1,000, over titles"
        rows.append([label, effect(Drawn(columns, targets).less("large", "small"))])
    return table(["NDCG@10", "effect (interval)"], rows)


def by_training() -> str:
    """Two trainings that differ in the seed alone, and what each seed of the demo's recipe says of beta."""
    tests = {f"beta {b}, seed {s}": [f"adapter-ml-b{b}-s{s}-test"] for b in BETAS for s in "01"}
    found = drawn(tests, [D3])
    pairs = [(f"beta {b}, seed {s}", f"beta 1, seed {s}") for s in "01" for b in ("0.5", "0.2")]
    pairs += [(f"beta {b}, seed 1", f"beta {b}, seed 0") for b in BETAS]
    rows = [[f"{one} less {two}", effect(found.less(f"{one} {D3}", f"{two} {D3}"))] for one, two in pairs]
    return table(["adapter, ML, alpha 0", "effect (interval)"], rows)


BLOCKS: dict[str, Callable[[], str]] = {
    "paper": paper,
    "ours": ours,
    "baselines": baselines,
    "additions": additions,
    "weights": weights,
    "adapter": adapter,
    "demo": demo.compared,
    "demo-chosen": demo.chosen,
    "demo-claims": demo.claims,
    "sets": sets.claims,
    "sets-ceilings": sets.ceilings,
    "sets-every": sets.every,
    "sets-gammas": sets.gammas,
    "sets-books": sets.books,
    "sets-bookswarm": sets.books_kept,
    "sets-bookschosen": sets.books_chosen,
    "sets-groups": sets.groups,
    "sets-mean": sets.mean_in_search,
    "sets-second": second.trainings,
    "sets-alphas": second.alphas,
    "sets-lists": second.by_lists,
    "sets-rows": second.by_rows,
    "sets-width": second.by_width,
    "sets-three": second.three_parts,
    "mixed": mixtures.mixed_block,
    "mixture": mixtures.mixture,
    "gammas": mixtures.gammas,
    "losses": mixtures.losses_block,
    "losses-sets": losses.by_set,
    "mixed-over": losses.mixed_over,
    "mixed-losses": losses.served_by_set,
    "losses-smollm2": losses.smollm2,
    "prompts": prompts.genres,
    "drawing": drawing,
    "by-training": by_training,
    **{f"settings-{name}": partial(settings, name) for name, family in FAMILIES.items() if not family.among},
    **{f"compare-{name}": partial(comparison, name) for name in FAMILIES},
}


def pages() -> dict[Path, str]:
    """Each page with blocks, as it should be."""
    return {
        path: _BLOCK.sub(lambda block: f"{block[1]}{BLOCKS[block[2]]()}{block[3]}", path.read_text("utf-8"))
        for path in sorted(PAGES.glob("*.md"))
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the pages, or look at them."""
    parser = argparse.ArgumentParser(description="The figures of docs/research that come from ranks.")
    parser.add_argument("--check", action="store_true", help="only look")
    args = parser.parse_args(arguments)
    stale = {path: text for path, text in pages().items() if path.read_text("utf-8") != text}
    for path, text in stale.items():
        if args.check:
            sys.stdout.write(f"{path.name}: stale: run python -m docs.research.figures\n")
        else:
            path.write_text(text, "utf-8")
    return int(bool(stale) and args.check)


if __name__ == "__main__":
    sys.exit(main())
