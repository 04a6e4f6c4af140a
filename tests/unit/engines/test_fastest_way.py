"""How many cores compute a pass is chosen by what passes took, with passes of made-up lengths."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from igd_core.engines.embedded.fastest_way import FastestWay

if TYPE_CHECKING:
    from collections.abc import Mapping

WAYS = (0, 1, 2)
orders = st.permutations([1.0, 1.6, 2.5])  # seconds of a pass by each way, up to the noise below


def used(fastest: FastestWay, token_s: Mapping[int, float], passes: int, drawn: Random) -> Counter[int]:
    """How often each way was chosen for passes of 64 to 127 tokens; each takes up to a tenth longer."""
    chosen: Counter[int] = Counter()
    for _ in range(passes):
        tokens = drawn.randint(64, 127)
        way = fastest.choose(tokens, WAYS)
        fastest.took(tokens, way, token_s[way] * (32 + tokens) * drawn.uniform(1, 1.1))
        chosen[way] += 1
    return chosen


@given(order=orders, seed=st.integers(0, 999))
def test_the_fastest_way_is_found_and_others_are_tried_now_and_then(order: list[float], seed: int) -> None:
    drawn, fastest, token_s = Random(seed), FastestWay(), dict(zip(WAYS, order, strict=True))
    best = min(WAYS, key=lambda way: token_s[way])
    assert used(fastest, token_s, 9, drawn) == {0: 3, 1: 3, 2: 3}
    later = used(fastest, token_s, 130, drawn)
    assert {way: count for way, count in later.items() if way != best} == {way: 1 for way in WAYS if way != best}


@given(before=orders, after=orders, seed=st.integers(0, 999))
def test_it_follows_when_another_way_becomes_the_fastest(before: list[float], after: list[float], seed: int) -> None:
    """A slower machine is told by the next passes, a faster way by the next trial of it: every other one tries it."""
    drawn, fastest = Random(seed), FastestWay()
    used(fastest, dict(zip(WAYS, before, strict=True)), 20, drawn)
    used(fastest, token_s := dict(zip(WAYS, after, strict=True)), 140, drawn)
    later = used(fastest, token_s, 60, drawn)
    assert later[min(WAYS, key=lambda way: token_s[way])] >= 59


def test_one_long_pass_changes_nothing() -> None:
    fastest = FastestWay()
    for way, seconds in [(0, 2.0), (1, 1.0)] * 3:
        fastest.took(20, way, seconds)
    fastest.took(20, 1, 100.0)
    assert fastest.choose(20, [0, 1]) == 1


def test_all_cores_must_be_noticeably_faster_than_one() -> None:
    for seconds, expected in ((0.95, 1), (0.85, 2)):
        fastest = FastestWay()
        for _ in range(3):
            fastest.took(20, 1, 1.0)
            fastest.took(20, 2, seconds)
        assert fastest.choose(20, [1, 2]) == expected


def test_long_and_short_passes_have_ways_of_their_own() -> None:
    fastest = FastestWay()
    for way in (0, 1) * 3:
        fastest.took(20, way, 1.0 + 9 * (way == 0))
        fastest.took(200, way, 10.0 + 90 * (way == 1))
    assert fastest.choose(30, [0, 1]) == 1
    assert fastest.choose(130, [0, 1]) == 0


def test_only_what_is_possible_is_chosen() -> None:
    fastest = FastestWay()
    assert fastest.choose(20, [0]) == 0
    for way, seconds in [(0, 2.0), (1, 3.0), (2, 1.0)] * 3:
        fastest.took(20, way, seconds)
    assert fastest.choose(20, [0, 1]) == 0
    assert fastest.choose(20, [0, 1, 2]) == 2
