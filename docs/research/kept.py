"""The ranks that the figures of docs/research are made of, in ``ranks.npz``.

``python -m docs.research.kept --unpack DIR`` writes each evaluation as the folder that ``igd compare`` reads;
``--add DIR`` takes the ranks of an ``igd evaluate`` run in, under the folder's name.

``--add`` keeps of a run named in `SLICED` also what `igd evaluate` says of parts of its rows, in ``slices.json``.

``ranks.npz`` holds integers alone, no pickle: for each evaluation the rank of each row's target by each method
(``(methods, rows)`` uint8, 0: not listed); for each sample of a file its rows (as steps from one to the next) and which
of them ask for the same title; and an index in JSON. Evaluations of one sample share its arrays.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from igd_core.evaluation.bootstrap import Interval, Resampling
from igd_core.evaluation.compare import Question
from igd_core.evaluation.ranks import RANKS_FILE, MethodRanks, RankedRun, read_ranks, to_ranks_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

KEPT = Path(__file__).with_name("ranks.npz")
D3 = "alpha=0 lp=0 beams=10"
BIGREC = "alpha=0 lp=1 beams=10"
ALONE = f"{D3} forced=0"
SETTINGS = {
    "alpha 0 (D3)": D3,
    **{f"alpha {alpha}": f"alpha={alpha} lp=0 beams=10" for alpha in ("0.1", "0.2", "0.3", "0.4")},
    "alpha 0, length penalty 1 (BIGRec)": BIGREC,
    "alpha 0, decisions alone": ALONE,
    "alpha 0.2, decisions alone": "alpha=0.2 lp=0 beams=10 forced=0",
}
SLICES = KEPT.with_name("slices.json")
SLICED = re.compile(r"(sets-[a-z0-9]+|demo-ml)-test")
"""Names of evaluations whose parts are kept too."""
WHOLE = ("demo-", "mixed-", "sets-")
"""Begin the names of evaluations that are kept with every method."""
BASELINES = ("sasrec", "transitions", "itemknn", "repeat", "popular")
_NDCG = Question(draw="targets")


@cache
def runs() -> dict[str, RankedRun]:
    """Every evaluation in `KEPT`, by name."""
    with np.load(KEPT, allow_pickle=False) as held:
        samples = {name: held[name].astype(np.int64) for name in held.files if "/" in name}
        index = json.loads(held["index"].tobytes())
        return {
            name: RankedRun(
                path=KEPT / name,
                identity=run["identity"],
                methods=[
                    MethodRanks(**said, titles=titles.astype(np.int64))
                    for said, titles in zip(run["methods"], held[name], strict=True)
                ],
                rows=samples[f"{_sample(run['identity'])}/steps"].cumsum(),
                targets=samples[f"{_sample(run['identity'])}/targets"],
            )
            for name, run in index.items()
        }


@cache
def slices(name: str) -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    """Of a kept evaluation, by method, slicing and group: ``rows``, and HR@10 and NDCG@10 with their intervals."""
    held: dict[str, dict[str, Any]] = json.loads(SLICES.read_text("utf-8"))
    return held[name]


def keep_slices(folders: Iterable[Path]) -> None:
    """Take what `igd evaluate` says of parts of its rows into `SLICES`."""
    held = json.loads(SLICES.read_text("utf-8")) if SLICES.exists() else {}
    for folder in folders:
        if SLICED.fullmatch(folder.name):
            methods = json.loads((folder / "results.json").read_text("utf-8"))["methods"]
            held[folder.name] = {each["name"]: each["slices"] for each in methods}
    SLICES.write_text(json.dumps(held, indent=1, sort_keys=False) + "\n", "utf-8")


def keep(every: Mapping[str, RankedRun]) -> None:
    """Write `KEPT`, with the methods that a page shows."""
    arrays: dict[str, NDArray[Any]] = {}
    index = {}
    for name, run in sorted(every.items()):
        known = {*SETTINGS.values(), *BASELINES}
        shown = [each for each in run.methods if each.name in known or name.startswith(WHOLE)]
        said = [{"name": m.name, "seen": m.seen, "known_as": m.known_as, "depth": m.depth} for m in shown]
        index[name] = {"identity": dict(run.identity), "methods": said}
        arrays[name] = np.stack([each.titles for each in shown]).astype(np.uint8)
        if run.rows is not None and run.targets is not None:
            arrays[f"{_sample(run.identity)}/steps"] = np.diff(run.rows, prepend=0).astype(np.uint16)
            arrays[f"{_sample(run.identity)}/targets"] = run.targets.astype(np.uint16)
    arrays["index"] = np.frombuffer(json.dumps(index).encode(), dtype=np.uint8)
    np.savez_compressed(KEPT, **arrays)  # type: ignore[arg-type]  # its flags are keywords, too


def _sample(identity: Mapping[str, Any]) -> str:
    return f"{identity['rows_sha256'][:12]}-{identity['limit']}-{identity['seed']}"


class Drawn:
    """Columns of values on the same rows, drawn together, so that their differences are paired."""

    def __init__(self, columns: Mapping[str, NDArray[np.float64]], targets: NDArray[np.int64]) -> None:
        self._at = {name: place for place, name in enumerate(columns)}
        values = np.column_stack(list(columns.values()))
        self._means = values.mean(axis=0)
        self._draws = Resampling(groups=targets).means(values)

    def value(self, name: str) -> Interval:
        """Of one column."""
        return Interval.of(float(self._means[self._at[name]]), self._draws[:, self._at[name]])

    def less(self, name: str, other: str) -> Interval:
        """Of the difference of two."""
        one, two = self._at[name], self._at[other]
        return Interval.of(float(self._means[one] - self._means[two]), self._draws[:, one] - self._draws[:, two])


def targets_of(run: RankedRun) -> NDArray[np.int64]:
    """A number for the title that each row asks for."""
    if run.targets is None:
        raise ValueError(f"{run.path} does not say which rows ask for the same title")
    return run.targets


def values(run: str | RankedRun, method: str, question: Question = _NDCG) -> NDArray[np.float64]:
    """The metric of each row."""
    held = runs()[run] if isinstance(run, str) else run
    return question.values(held.of(method, question.seen))


def drawn(tests: Mapping[str, Sequence[str]], settings: Iterable[str], *others: tuple[str, str]) -> Drawn:
    """Columns ``NAME SETTING``, the mean over a name's runs; and those of ``others``, ``RUN METHOD``."""
    columns = {
        f"{name} {setting}": np.mean([values(run, setting) for run in group], axis=0)
        for name, group in tests.items()
        for setting in settings
    }
    columns |= {f"{run} {method}": values(run, method) for run, method in others}
    return Drawn(columns, targets_of(runs()[next(iter(tests.values()))[0]]))


def unpack(folder: Path) -> None:
    """Write each kept evaluation as a folder below ``folder``."""
    for name, run in runs().items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / RANKS_FILE).write_text(json.dumps(to_ranks_json(run)), "utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Turn ranks into folders, or folders into ranks."""
    parser = argparse.ArgumentParser(description="The ranks that the figures of docs/research are made of.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--unpack", type=Path, metavar="DIR", help="write the folders that igd compare reads")
    what.add_argument("--add", type=Path, nargs="+", metavar="DIR", help="take the ranks of these runs in")
    args = parser.parse_args(arguments)
    if args.unpack:
        unpack(args.unpack)
    else:
        keep((runs() if KEPT.exists() else {}) | {folder.name: read_ranks(folder) for folder in args.add})
        keep_slices(args.add)
    return 0


if __name__ == "__main__":
    sys.exit(main())
