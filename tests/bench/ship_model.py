"""Puts the model of a run into the package: ``python tests/bench/ship_model.py demo/run ml-100k-small-llama``.

After ``igd tune --recipe ml-100k-small-llama --out demo``. The losses of single steps stay out; those of the first and
last step and of every validation come along.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import igd_core.tuning.shipped
from igd_core.tuning.record import RECORD
from igd_core.whole_files import replaced_folder, write_json

FILES = (
    "config.json",
    "generation_config.json",
    "igd_prompt.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)


def shortened(record: dict[str, Any]) -> dict[str, Any]:
    """The record, without the losses of most steps."""
    history = record["history"]
    last = max(at for at, entry in enumerate(history) if "loss" in entry)
    kept = [entry for at, entry in enumerate(history) if at in {0, last} or "eval_loss" in entry]
    return {**record, "history": kept}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="folder of a finished run")
    parser.add_argument("recipe", help="its recipe, which names the folder in the package")
    args = parser.parse_args()
    record = json.loads((args.run_dir / RECORD).read_text("utf-8"))
    if record["status"] != "finished":
        raise SystemExit(f"{args.run_dir}: the run is {record['status']}")
    out = Path(igd_core.tuning.shipped.__file__).parent / args.recipe
    with replaced_folder(out) as made:
        for name in FILES:
            shutil.copyfile(args.run_dir / "model" / name, made / name)  # with the usual mode, for all to read
        write_json(made / RECORD, shortened(record))
        for path in made.iterdir():
            path.chmod(0o644)
    print(f"{out}: {sum(path.stat().st_size for path in out.iterdir()):,} bytes")  # noqa: T201


if __name__ == "__main__":
    main()
