"""Chunks of an input: each row in one, rows whose prompts begin alike together, the same chunks every time."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest

import igd_core.batch.plan as plan_module
from igd_core.batch.inputs import ROWS, ReadRows, Rejected
from igd_core.batch.plan import Sorting, Staging
from igd_core.catalogue.prompts import PromptTemplate
from igd_core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TEMPLATE = PromptTemplate(prefix_ids=(1,), max_history=4, drop_block=2)


def batches(count: int, *, size: int = 40) -> Iterator[ReadRows]:
    """Rows with histories of up to nine items out of five."""
    rng = np.random.default_rng(0)
    histories = [rng.integers(0, 5, rng.integers(0, 10)).tolist() for _ in range(count)]
    for start in range(0, count, size):
        part = histories[start : start + size]
        rows = {
            "file": ["a" if start % 80 else "b"] * len(part),
            "row": list(range(start, start + len(part))),
            "user_id": [f"u{row}" for row in range(start, start + len(part))],
            "history": part,
        }
        yield ReadRows(
            rows=pa.table(rows, schema=ROWS),
            rejected=[Rejected(file="a", row=1000 + start, user_id=None, reason="is odd")],
            dropped=1,
        )


def made(folder: Path, *, buckets: int = 1, chunk_rows: int = 7) -> tuple[Any, list[pa.Table]]:
    staging = Staging(folder)
    sorting = Sorting(template=TEMPLATE, buckets=buckets)
    plan = staging.make(batches(200), sorting, run="r", chunk_rows=chunk_rows)
    return plan, [staging.chunk(number) for number in range(plan.chunks)]


def shown(row: dict[str, Any]) -> list[int]:
    return list(TEMPLATE.window(row["history"]))


@pytest.mark.parametrize("buckets", [1, 3])
@pytest.mark.parametrize("run_rows", [50, 1000])
def test_each_row_is_in_one_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, buckets: int, run_rows: int) -> None:
    monkeypatch.setattr(plan_module, "RUN_ROWS", run_rows)
    plan, chunks = made(tmp_path / "s", buckets=buckets)
    assert (plan.rows, plan.answerable, plan.rejected, plan.dropped, plan.chunks) == (205, 200, 5, 5, 29)
    assert [len(chunk) for chunk in chunks] == [7] * 28 + [4]
    wanted = {row["row"]: row for batch in batches(200) for row in batch.rows.to_pylist()}
    found = [row for chunk in chunks for row in chunk.to_pylist()]
    assert Counter(row["row"] for row in found) == Counter(list(wanted))
    assert all(wanted[row["row"]] == row for row in found)
    assert len((tmp_path / "s" / "rejected.jsonl").read_text().splitlines()) == 5
    again, same = made(tmp_path / "again", buckets=buckets)
    assert again == plan
    assert all(one.equals(other) for one, other in zip(chunks, same, strict=True))


def test_rows_are_in_the_order_of_what_their_prompts_show(tmp_path: Path) -> None:
    _, chunks = made(tmp_path / "s")
    keys = [shown(row) for chunk in chunks for row in chunk.to_pylist()]
    assert keys == sorted(keys)
    assert len({tuple(key) for key in keys}) < len(keys)  # some prompts are equal, and so stand side by side


def test_rows_whose_prompts_begin_alike_stand_together_in_any_number_of_buckets(tmp_path: Path) -> None:
    _, chunks = made(tmp_path / "s", buckets=3)
    first = [(shown(row) or [-1])[0] for chunk in chunks for row in chunk.to_pylist()]
    changes = sum(one != other for one, other in pairwise(first))
    assert changes == len(set(first)) - 1


def test_a_plan_is_of_its_run_and_only_there_when_whole(tmp_path: Path) -> None:
    plan, _ = made(tmp_path / "s")
    staging = Staging(tmp_path / "s")
    assert staging.read_plan("r") == plan
    assert staging.read_plan("another") is None
    (tmp_path / "s" / "plan.json").write_text('{"run": "r", "pl', encoding="utf-8")
    assert staging.read_plan("r") is None

    def cut_off() -> Iterator[ReadRows]:
        yield from batches(40)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        staging.make(cut_off(), Sorting(template=TEMPLATE), run="r", chunk_rows=7)
    assert staging.read_plan("r") is None
    assert made(tmp_path / "s")[0] == plan


def test_an_input_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no rows"):
        Staging(tmp_path / "s").make(iter(()), Sorting(template=TEMPLATE), run="r", chunk_rows=7)


def test_larger_inputs_have_more_buckets() -> None:
    assert [Sorting.of(TEMPLATE, size).buckets for size in (0, 100 << 20, 1 << 50)] == [1, 4, 256]
