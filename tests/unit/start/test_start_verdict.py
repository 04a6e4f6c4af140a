"""The verdict's rule, on ranks whose differences are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from igd_core.errors import DataError
from igd_core.evaluation.ranks import MethodRanks, RankedRun
from igd_core.start.run import Outcome
from igd_core.start.verdict import judge

ROWS = 400
OURS = "alpha=0 lp=0 beams=40 gamma=0.6"


def run(**ranks: np.ndarray | list[int]) -> RankedRun:
    """Ranks by method, each row of a title of its own; ``ours`` is the served setting, ``alone`` it without gamma."""
    names = {"ours": OURS, "alone": "alpha=0 lp=0 beams=40"}
    methods = [
        MethodRanks(name=names.get(name, name), seen="excluded", known_as="", depth=20, titles=np.array(titles))
        for name, titles in ranks.items()
    ]
    rows = len(methods[0].titles)
    return RankedRun(path=Path("ranks.json"), identity={}, methods=methods, targets=np.arange(rows))


def hits(share: float, rows: int = ROWS, *, first: int = 0) -> np.ndarray:
    """Rank 1 in this share of the rows, from row ``first`` on, else not in the list."""
    titles = np.zeros(rows, np.int64)
    titles[(first + np.arange(round(share * rows))) % rows] = 1
    return titles


def test_lists_that_find_more_on_the_same_rows_are_better() -> None:
    verdict = judge(run(ours=hits(0.4), popular=hits(0.1), transitions=hits(0.2)))
    assert (verdict.says, verdict.best.name, verdict.rows, verdict.needed) == ("better", "transitions", ROWS, None)
    assert verdict.best.less is not None
    assert verdict.best.less.value == pytest.approx(0.2)
    assert verdict.best.less.low > 0.15
    assert verdict.told().startswith("better than last-item transitions, the best of the others: +0.2000 (+0.1")


def test_lists_that_find_less_or_the_same_are_not_better() -> None:
    assert judge(run(ours=hits(0.2), popular=hits(0.4))).says == "not better"
    same = judge(run(ours=hits(0.5), popular=hits(0.5)))  # the interval is a point, and excludes a gain of a tenth
    assert (same.says, same.told()[:28]) == ("not better", "not better than most popular")


def test_a_difference_that_few_rows_cannot_tell_asks_for_so_many_that_do() -> None:
    few = judge(run(ours=hits(0.30, 100), popular=hits(0.25, 100, first=50)))
    assert few.says == "too few rows"
    assert few.needed is not None
    assert 300 < few.needed < 20_000
    assert f"need about {few.needed:,}" in few.told()
    many = few.needed
    assert judge(run(ours=hits(0.30, many), popular=hits(0.25, many, first=many // 2))).says == "better"


def test_a_handful_of_titles_says_nothing_however_clear_they_look() -> None:
    assert judge(run(ours=[1] * 12, popular=[0] * 12)).says == "too few rows"


def test_rows_that_ask_for_one_title_count_together() -> None:
    apart = run(ours=hits(0.4), popular=hits(0.2))
    assert judge(apart).says == "better"
    together = RankedRun(path=apart.path, identity={}, methods=apart.methods, targets=np.arange(ROWS) // 100)
    assert (judge(together).says, judge(together).titles) == ("too few rows", 4)


def test_where_the_scorer_alone_is_best_the_best_without_it_is_told_too() -> None:
    verdict = judge(run(ours=hits(0.4), scorer=hits(0.4), popular=hits(0.1)))
    assert verdict.says == "not better"
    assert verdict.told().startswith("not better than the item scorer alone")
    assert "; on most popular, the best that is not part of them: +0.3000 (" in verdict.told()


def test_lists_that_are_the_scorers_own_are_not_better_than_it() -> None:
    found = run(ours=hits(0.4), scorer=hits(0.3), popular=hits(0.1))
    alone = replace(found.methods[0], name="alpha=0 lp=0 beams=40 gamma=1")
    verdict = judge(replace(found, methods=[alone, *found.methods[1:]]))
    assert (verdict.best.name, verdict.says) == ("popular", "better")
    assert [other.name for other in verdict.others] == ["scorer", "popular"]  # the table shows both
    assert "the model adds nothing to them" in verdict.told()
    assert judge(found).best.name == "scorer"


def test_the_served_setting_is_judged_and_the_model_alone_stands_beside_it() -> None:
    verdict = judge(run(alone=hits(0.1), ours=hits(0.4), popular=hits(0.2)))
    assert verdict.ours.name == OURS
    assert verdict.alone is not None
    assert verdict.alone.value.value == pytest.approx(0.1)
    assert [other.name for other in verdict.others] == ["popular"]
    assert judge(run(alone=hits(0.4), popular=hits(0.2))).alone is None
    with pytest.raises(DataError, match="one served setting and baselines"):
        judge(run(alone=hits(0.4)))


def test_rows_that_are_there_are_offered_and_where_they_are_too_few_that_is_said() -> None:
    few = judge(run(ours=hits(0.30, 100), popular=hits(0.25, 100, first=50)))
    assert few.needed is not None
    told = [
        Outcome(verdict=few, serve=(), test_rows=rows).told().removeprefix(few.told())
        for rows in (100, 150, few.needed)
    ]
    assert told == [
        "",
        "\n50 more test rows are there already: more --minutes use them; more events are needed as well",
        f"\n{few.needed - 100:,} more test rows are there already: more --minutes use them",
    ]
