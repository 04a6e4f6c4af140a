from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from igd_core.errors import InputError
from igd_core.evaluation.ranks import MethodRanks, RankedRun
from igd_core.retune.verdict import judge

if TYPE_CHECKING:
    from igd_core.retune.verdict import Rule

ROWS = 400
RNG = np.random.default_rng(0)
SAME = RNG.integers(0, 11, ROWS)


def run(ranks: np.ndarray, rows_sha256: str = "a") -> RankedRun:
    method = MethodRanks(name="alpha=0 lp=0 beams=10", seen="excluded", known_as="D3", depth=10, titles=ranks)
    identity = {"rows_sha256": rows_sha256, "rows": ROWS}
    return RankedRun(path=Path("ranks.json"), identity=identity, methods=[method], rows=np.arange(ROWS))


@pytest.mark.parametrize(
    ("served", "retuned", "rule", "publish", "why"),
    [
        (SAME, SAME, "not-certainly-worse", True, "not certainly worse"),
        (SAME, SAME, "certainly-better", False, "not certainly better"),
        (np.full(ROWS, 5), np.full(ROWS, 1), "certainly-better", True, "certainly better"),
        (np.full(ROWS, 1), np.full(ROWS, 5), "not-certainly-worse", False, "certainly worse"),
        (SAME, np.roll(SAME, 1), "not-certainly-worse", True, "not certainly worse"),
    ],
)
def test_the_rule_decides_by_the_paired_interval(
    served: np.ndarray, retuned: np.ndarray, rule: Rule, publish: bool, why: str
) -> None:
    verdict = judge(run(served), run(retuned), rule=rule, least_rows=200)
    assert (verdict.publish, verdict.rows) == (publish, ROWS)
    assert verdict.why.endswith(f": {why}")
    assert verdict.difference.low <= verdict.difference.value <= verdict.difference.high
    assert verdict.difference.value == pytest.approx(verdict.retuned.value - verdict.served.value)


def test_few_rows_publish_nothing_however_good() -> None:
    verdict = judge(run(np.full(ROWS, 5)), run(np.full(ROWS, 1)), rule="not-certainly-worse", least_rows=ROWS + 1)
    assert not verdict.publish
    assert "too few rows to say, at least 401 are asked for" in verdict.why


def test_models_that_were_asked_for_other_rows_are_not_compared() -> None:
    with pytest.raises(InputError):
        judge(run(SAME), run(SAME, rows_sha256="b"), rule="not-certainly-worse", least_rows=1)
