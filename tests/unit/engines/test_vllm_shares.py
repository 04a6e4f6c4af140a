"""The numbers that vLLM's queue is told; lower goes first."""

from __future__ import annotations

import math

from igd_core.engines.vllm.shares import EngineShares
from igd_core.search.fairness import Turn


def test_who_has_had_less_goes_first_and_the_more_urgent_of_one_caller() -> None:
    shares = EngineShares()
    heavy = Turn(callers=("heavy",), deadline=1000.0, cost=8.0)
    shares.begin(heavy, 100.0)
    shares.charge(heavy, 2000)  # four ordinary requests
    light = Turn(callers=("light",), deadline=1000.0)
    shares.begin(light, 101.0)
    urgent = Turn(callers=("light",), deadline=102.0)
    shares.begin(urgent, 101.0)
    order = sorted([heavy, light, urgent], key=shares.priority)
    assert order == [urgent, light, heavy]


def test_a_request_that_is_nearly_done_goes_before_a_new_one_of_the_same_caller() -> None:
    shares = EngineShares()
    begun, new = (Turn(callers=("one",), deadline=deadline) for deadline in (50.0, 20.0))
    for turn in (begun, new):
        shares.begin(turn, 10.0)
    begun.spent = 0.75
    assert shares.priority(begun) < shares.priority(new)


def test_numbers_stay_within_what_vllm_can_send_and_start_again_when_nobody_waits() -> None:
    shares = EngineShares()
    turn = Turn(callers=("one",), deadline=math.inf)
    shares.begin(turn, 0.0)
    for _ in range(1000):
        shares.charge(turn, 5_000_000)
    turn.deadline = 1e12
    assert 0 <= shares.priority(turn) < 1 << 63
    turn.deadline = -5.0
    assert shares.priority(turn) >= 0
    shares.end(turn, 0)
    again = Turn(callers=("one",), deadline=10.0, cost=0.5)
    shares.begin(again, 9.0)
    assert shares.priority(again) >> 22 == 8


def test_what_complete_requests_take_is_what_an_ordinary_one_is_thought_to_take() -> None:
    shares = EngineShares()
    turn = Turn(callers=("one",), cost=2.0, complete=True)
    shares.begin(turn, 0.0)
    shares.end(turn, 2000)
    other = Turn(callers=("one",))
    shares.begin(other, 0.0)
    shares.charge(other, 500)
    assert other.spent == 0.5
