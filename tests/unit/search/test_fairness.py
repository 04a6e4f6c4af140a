"""Shares by cost: the oracle is a simulation of what callers are owed, not of how it is kept."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igd_core.search.fairness import Accounts, FairQueue, Meter, Turn

HEAVY = 7.0


def turn(caller: str, *, cost: float = 1.0, deadline: float = 100.0) -> Turn:
    return Turn(callers=(caller,), cost=cost, deadline=deadline)


def serve(queue: FairQueue[str]) -> tuple[str, str]:
    """The next entry, paid for in full."""
    chosen = queue.pop()
    assert chosen is not None
    caller, ticket = chosen
    queue.accounts.charge(caller, ticket.turn.cost)
    return caller, ticket.entry


@given(
    costs=st.lists(st.lists(st.floats(0.3, 12.0), min_size=60, max_size=60), min_size=2, max_size=5),
    seed=st.integers(0, 100),
)
def test_callers_who_always_want_more_get_equal_shares_by_cost(costs: list[list[float]], seed: int) -> None:
    queue: FairQueue[str] = FairQueue()
    entries = [(f"c{caller}", cost) for caller, of_caller in enumerate(costs) for cost in of_caller]
    random.Random(seed).shuffle(entries)
    for caller, cost in entries:
        queue.add("", turn(caller, cost=cost))
    got = Counter[str]()
    while all(queue.waiting_of(f"c{caller}") for caller in range(len(costs))):
        before = Counter(got)
        caller, _ = serve(queue)
        got[caller] = queue.accounts._used[caller]  # type: ignore[assignment]
        assert got[caller] > before[caller]
        # Nobody is ahead of anybody by more than one request of the heaviest, and an ordinary one.
        assert max(got.values()) - min(got[f"c{each}"] for each in range(len(costs))) <= 12.0 + 1.0 + 1e-6


def test_ordinary_requests_of_many_callers_are_served_in_order_of_arrival() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(20):
        queue.add(str(number), turn(f"c{number}"))
    assert [serve(queue)[1] for _ in range(20)] == [str(number) for number in range(20)]


def test_a_newcomer_goes_before_anothers_backlog_and_the_backlog_goes_on_between_hers() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(8):
        queue.add(f"heavy {number}", turn("heavy", cost=HEAVY))
    assert serve(queue)[1] == "heavy 0"
    served = []
    for number in range(40):
        queue.add(f"light {number}", turn("light"))
        served.append(serve(queue)[1])
    heavy = [place for place, entry in enumerate(served) if entry.startswith("heavy")]
    assert served[:6] == [f"light {number}" for number in range(6)]
    assert heavy, "nor does the heavy one starve"
    assert max(b - a for a, b in itertools.pairwise(heavy)) <= HEAVY + 1


def test_who_was_idle_has_saved_nothing_up() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.add("", turn("idle"))
    serve(queue)
    for _ in range(50):
        queue.add("busy", turn("busy"))
        serve(queue)
    for _ in range(10):
        queue.add("busy", turn("busy"))
        queue.add("idle", turn("idle"))
    assert Counter(serve(queue)[1] for _ in range(10))["busy"] >= 4


def test_of_a_callers_requests_the_most_urgent_goes_first_then_the_oldest() -> None:
    queue: FairQueue[str] = FairQueue()
    for name, deadline, order in [("late", 9.0, 1), ("young", 5.0, 4), ("old", 5.0, 2), ("soon", 1.0, 3)]:
        queue.add(name, turn("c", deadline=deadline), order=order)
    assert [serve(queue)[1] for _ in range(4)] == ["soon", "old", "young", "late"]
    assert queue.pop() is None


def test_what_another_waits_for_too_is_served_once_at_the_first_ones_turn_and_expense() -> None:
    queue: FairQueue[str] = FairQueue()
    backlog = [queue.add(f"b{number}", turn("backlog", cost=HEAVY)) for number in range(5)]
    serve(queue)
    queue.join(backlog[4], "joiner", 50.0)
    assert queue.waiting_of("joiner") == 1
    assert serve(queue) == ("joiner", "b4")
    assert (len(queue), queue.waiting_of("joiner"), queue.waiting_of("backlog")) == (3, 0, 3)
    queue.join(backlog[3], "backlog", 1.0)  # it has become urgent
    assert serve(queue) == ("backlog", "b3")
    assert [serve(queue)[1] for _ in range(2)] == ["b1", "b2"]
    assert not queue.remove(backlog[3])
    assert queue.pop() is None


@pytest.mark.parametrize("caller", ["a", "b"])
def test_an_entry_whose_turn_has_come_is_not_joined_any_more(caller: str) -> None:
    queue: FairQueue[str] = FairQueue()
    popped = queue.add("first", turn("a"))
    serve(queue)
    queue.join(popped, caller, 1.0)
    assert queue.pop() is None
    queue.add("second", turn("b"))
    assert [queue.waiting_of(each) for each in "ab"] == [0, 1]
    assert serve(queue) == ("b", "second")
    assert queue.pop() is None


def test_a_turn_keeps_its_callers_and_the_earliest_deadline() -> None:
    shared = turn("a", deadline=5.0)
    shared.join("b", 3.0)
    shared.join("b", 9.0)
    assert (shared.callers, shared.deadline) == (("a", "b"), 3.0)
    shared.spent = 0.4
    assert shared.left == pytest.approx(0.6)
    shared.spent = 2.0
    assert shared.left == 0.0


def test_only_some_callers_may_be_passed_over() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.add("first", turn("a"))
    queue.add("second", turn("b"))
    chosen = queue.pop(lambda caller: caller == "b")
    assert chosen is not None
    assert chosen[1].entry == "second"
    assert queue.pop(lambda caller: caller == "b") is None


def test_what_goes_before_a_newcomer_is_her_own_urgent_work_and_others_shares_meanwhile() -> None:
    queue: FairQueue[str] = FairQueue()
    assert queue.ahead_of(turn("me")) == 0
    for _ in range(4):
        queue.add("", turn("heavy", cost=HEAVY))
    queue.add("", turn("other"))
    assert queue.ahead_of(turn("me")) == 2.0  # one of the heavy caller's, and the other's
    queue.add("", turn("me", cost=2.0, deadline=1.0))
    queue.add("", turn("me", cost=2.0, deadline=900.0))
    assert queue.ahead_of(turn("me")) == 2.0 + 3.0 + 1.0
    assert queue.ahead_of(turn("heavy", cost=HEAVY)) == 4 * HEAVY + 4.0 + 1.0


def test_the_last_of_the_longest_line_is_found_and_clearing_returns_everything_once() -> None:
    queue: FairQueue[str] = FairQueue()
    assert queue.last_of_longest() is None
    queue.add("x", turn("a"))
    kept = [queue.add(name, turn("b", deadline=deadline)) for name, deadline in [("p", 3.0), ("q", 7.0), ("r", 5.0)]]
    queue.join(kept[0], "a", 4.0)
    found = queue.last_of_longest()
    assert found is not None
    assert (found[0], found[1].entry) == ("b", "q")
    queue.remove(kept[1])
    found = queue.last_of_longest()
    assert found is not None
    assert found[1].entry in {"x", "r"}  # two wait in either line
    assert sorted(queue.clear()) == ["p", "r", "x"]
    assert len(queue) == 0


def test_callers_of_long_ago_are_forgotten() -> None:
    accounts = Accounts()
    for number in range(5000):
        accounts.begin(str(number))
        accounts.serve(str(number))
        accounts.charge(str(number), 1.0)
        accounts.begin("other")
        accounts.charge("other", 1.0)
        accounts.serve("other")
    assert len(accounts) < 2000


def test_a_meter_learns_what_an_ordinary_request_costs() -> None:
    meter = Meter(0.1)
    assert meter.units(0.2) == pytest.approx(2.0)
    meter.observe(14.0, 7.0)
    assert meter.units(2.0) == pytest.approx(1.0)
    for _ in range(200):
        meter.observe(4.0, 1.0)
    assert meter.units(4.0) == pytest.approx(1.0, rel=0.01)
