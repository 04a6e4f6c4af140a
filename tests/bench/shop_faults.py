"""Faults planted into a shop's exports, and what is said of each: `python tests/bench/shop_faults.py EXPORTS`.

EXPORTS is a folder that tests/bench/shop_exports.py has written. Each fault of tests/planted_faults.py goes into the
middle of a copy, in turn, then all of them into one; `igd start --look` is run on each. Printed: where an editor shows
the fault, whether a message names that line and the value, and the message. Faults of columns that these exports lack
are left out.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from planted_faults import EVENTS, ITEMS, LAST_FAULT, ODDITIES, ROW_FAULTS, Fault, Records  # noqa: E402 - as above

from igd_core.cli.main import main as igd  # noqa: E402

APART = 7


def look(folder: Path) -> str:
    """What `igd start --look` says."""
    said = io.StringIO()
    paths = ["--items", str(folder / ITEMS), "--events", str(folder / EVENTS), "--out", str(folder / "out")]
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        igd(["start", *paths, "--look", "--again"])
    return said.getvalue()


def planted(exports: Path, into: Path, faults: list[Fault]) -> dict[str, int]:
    """Copies of the exports with these faults; the line of each by name."""
    files = {name: Records((exports / name).read_bytes()) for name in (ITEMS, EVENTS)}
    at = {name: len(records.cells) // 2 for name, records in files.items()}
    rows = dict[str, int]()
    for fault in faults:
        fault.plant(files[fault.file], at[fault.file])
        rows[fault.name] = at[fault.file]
        at[fault.file] += APART
    for name, records in files.items():
        (into / name).write_bytes(records.content())
    return {fault.name: files[fault.file].line(rows[fault.name]) + fault.below for fault in faults}


def main() -> int:
    """Plant, look, print; 1 where a fault is not told."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("exports", type=Path, help="folder of artikel.csv and bestellungen.csv")
    exports = parser.parse_args().exports
    if not (exports / ITEMS).exists() or not (exports / EVENTS).exists():
        print(f"{exports}: lacks {ITEMS} or {EVENTS}; tests/bench/shop_exports.py writes them", file=sys.stderr)  # noqa: T201
        return 2
    columns = {name: Records((exports / name).read_bytes()).columns for name in (ITEMS, EVENTS)}
    faults = [each for each in (*ROW_FAULTS, *ODDITIES, LAST_FAULT) if each.column in {*columns[each.file], ""}]
    missed = 0
    for names in (*([fault] for fault in faults), [each for each in faults if each not in ODDITIES]):
        with tempfile.TemporaryDirectory() as folder:
            lines = planted(exports, Path(folder), names)
            began = time.perf_counter()
            said = look(Path(folder))
        seconds = time.perf_counter() - began
        notes = [line.replace(f"{folder}/", "") for line in said.splitlines() if "row " in line]
        print(f"{names[0].name if len(names) == 1 else 'all that refuse the exports'} ({seconds:.1f} s)")  # noqa: T201
        for fault in names:
            place = rf"row {lines[fault.name]}\b|\(line {lines[fault.name]}\)"
            told = re.search(place, said) is not None and (len(names) > 1 or re.search(fault.says, said) is not None)
            missed += not told
            print(f"  {fault.file} line {lines[fault.name]}: {fault.name}: {'told' if told else 'NOT TOLD'}")  # noqa: T201
        print("    " + "\n    ".join(line[:240] for line in notes))  # noqa: T201
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
