"""MovieLens-100K as the runs on a card take it: `python tests/device/movielens_files.py DIR MODEL` fills DIR."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

IGD = (sys.executable, "-m", "igd_core")
TEST_ROWS = 500


def main() -> int:
    """Prepare rows, build the artifact, and keep as many test rows as a run has time for."""
    folder, model = Path(sys.argv[1]), sys.argv[2]
    rows, artifact = folder / "ml", folder / "art"
    subprocess.run([*IGD, "data", "prepare", "ml-100k", "--out", str(rows)], check=True)
    built = ["--items", str(rows / "items.csv"), "--multi", "genres=|", "--tokenizer", model, "--out", str(artifact)]
    built += ["--interactions", str(rows / "train_interactions.csv"), "--name", "ml-100k"]
    built += ["--alpha", "0.2", "--no-usual-scorer"]  # as the method is in its paper
    subprocess.run([*IGD, "build", *built], check=True)
    test = rows / "test.csv"
    kept = list(itertools.islice(test.open(encoding="utf-8"), TEST_ROWS + 1))
    test.write_text("".join(kept), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
