"""SmolLM2 tuned over children and over the vocabulary, on equal rows and steps: `losses.py WORK MODEL --out OUT`.

Of MovieLens-100K, and of each folder in the variable IGD_LOSS_DATA (items.csv, train.csv, valid.csv, test.csv; paths
are separated as in PATH). Every weight, one pass, as in docs/research/accuracy.md. A run that was made is not made
again. OUT gets each evaluation's ranks, in folders that `python -m docs.research.kept --add` takes; what is printed is
NDCG@10 by set, loss and seed, of the model alone and of the lists that are served, as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

IGD = (sys.executable, "-m", "igd_core")
LOSSES = ("children", "vocabulary")
GAMMA = "0.7"


@dataclass(frozen=True, slots=True, kw_only=True)
class Set:
    """A data set with its artifact.

    Attributes:
        name: in the names of what is kept.
        rows: folder of train.csv, valid.csv and test.csv.
        artifact: with the usual item scorer.
        seen: whether lists may hold what was seen.
    """

    name: str
    rows: Path
    artifact: Path
    seen: str


def main() -> int:
    """Build, tune side by side, evaluate one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("model")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--train-rows", default="0", help="of each set (default: all)")
    parser.add_argument("--valid-rows", default="1000")
    parser.add_argument("--test-rows", default="1000")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--at-once", type=int, default=6, help="trainings side by side (default: %(default)s)")
    given = parser.parse_args()
    work = given.work / "losses"
    sets = [_movielens(work, given.model), *(_given(Path(each), work, given.model) for each in _folders())]
    runs = [(held, loss, seed) for held in sets for loss in LOSSES for seed in given.seeds.split(",")]
    with ThreadPoolExecutor(given.at_once) as pool:
        list(pool.map(lambda run: _tune(*run, work=work, given=given), runs))
    found: dict[str, Any] = {}
    for held, loss, seed in runs:
        found.setdefault(held.name, {}).setdefault(loss, {})[seed] = _evaluate(held, loss, seed, work, given)
    sys.stdout.write(json.dumps(found) + "\n")
    return 0


def _folders() -> list[str]:
    return [each for each in os.environ.get("IGD_LOSS_DATA", "").split(os.pathsep) if each]


def _movielens(work: Path, model: str) -> Set:
    rows, artifact = work / "ml", work / "ml-artifact"
    if not (rows / "test.csv").is_file():
        _igd("data", "prepare", "ml-100k", "--split", "time", "--max-history", "1000", "--out", rows)
    files = ["--items", rows / "items.csv", "--multi", "genres=|", "--interactions", rows / "train_interactions.csv"]
    _build(artifact, model, *files, "--max-history", "20", "--drop-block", "15")
    return Set(name="ml", rows=rows, artifact=artifact, seen="excluded")


def _given(rows: Path, work: Path, model: str) -> Set:
    name = "".join(each for each in rows.name.lower() if each.isalnum())
    _build(work / f"{name}-artifact", model, "--items", rows / "items.csv", "--interactions", rows / "train.csv")
    return Set(name=name, rows=rows, artifact=work / f"{name}-artifact", seen="allowed")


def _build(artifact: Path, model: str, *files: object) -> None:
    if not (artifact / "manifest.json").is_file():
        _igd("build", *files, "--tokenizer", model, "--out", artifact, "--force")


def _tune(held: Set, loss: str, seed: str, *, work: Path, given: argparse.Namespace) -> None:
    run = work / f"{held.name}-{loss}-{seed}"
    rows = ["--train", held.rows / "train.csv", "--valid", held.rows / "valid.csv"]
    sizes = ["--train-rows", given.train_rows, "--valid-rows", given.valid_rows]
    steps = "--epochs 1 --batch 128 --micro-batches 1 --lr 5e-4 --schedule cosine --warmup-steps 50 --weight-decay 0.01"
    said = ["--beta", "1", "--normalise", loss, "--seed", seed, "--precision", given.precision]
    go_on = ["--resume"] if (run / "run.json").is_file() else []
    _igd("tune", "--model", given.model, "--artifact", held.artifact, *rows, *sizes, *steps.split(), *said, *go_on,
         "--out", run)  # fmt: skip


def _evaluate(held: Set, loss: str, seed: str, work: Path, given: argparse.Namespace) -> dict[str, float]:
    """NDCG@10 of the model alone and of what is served; of the latter also the scorer's."""
    name = f"losses-smollm2-{held.name}-{loss}-{seed}"
    made = work / name
    if not (made / "ranks.json").is_file():
        _igd("evaluate", "--model", work / f"{held.name}-{loss}-{seed}" / "model", "--artifact", held.artifact,
             "--rows", held.rows / "test.csv", "--limit", given.test_rows, "--alphas", "0", "--length-penalties", "0",
             "--gammas", f"0,{GAMMA}", "--seen", held.seen, "--dtype", "float32", "--draw", "targets", "--k", "1,5,10",
             "--baselines", "scorer,popular", "--out", made)  # fmt: skip
    kept = given.out / name
    kept.mkdir(parents=True, exist_ok=True)
    shutil.copy(made / "ranks.json", kept / "ranks.json")
    results = json.loads((made / "results.json").read_text("utf-8"))
    values = {each["name"]: each["titles"]["NDCG@10"]["value"] for each in results["methods"]}
    alone = next(value for each, value in values.items() if each.startswith("alpha=") and "gamma=" not in each)
    served = next(value for each, value in values.items() if f"gamma={GAMMA}" in each)
    return {"alone": alone, "served": served, "scorer": values["scorer"]}


def _igd(*words: object) -> None:
    done = subprocess.run([*IGD, *map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"igd {' '.join(map(str, words))}: {done.returncode}\n{done.stderr[-4000:]}")


if __name__ == "__main__":
    raise SystemExit(main())
