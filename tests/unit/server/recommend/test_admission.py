from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from igd_server.api.problems import OVERLOADED, finding_of, response_of
from igd_server.observe.metrics import Metrics
from igd_server.recommend.admission import Admission, Overloaded
from virtual_time import VirtualTimeLoop, run_in_virtual_time

from igd_core.errors import DeadlineExceeded
from igd_core.search.fairness import NOBODY, FairQueue, Turn

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    Slot = Callable[[float], AbstractAsyncContextManager[float]]
    Work = Callable[[], Awaitable[None]]

MAX_RUNNING = 8
SERVICE_S = 0.05
DEADLINE_S = 0.5
SLOW_SHARE_S = DEADLINE_S / 6


async def settle() -> None:
    """Let everything run that can without time passing."""
    for _ in range(10):
        await asyncio.sleep(0)


async def hold(admission: Admission, release: asyncio.Event, *, timeout_s: float = 60.0) -> float:
    async with admission.slot(timeout_s) as waited_s:
        await release.wait()
        return waited_s


# --- overload ---------------------------------------------------------------------------------------------------------


def independent_workers(rng: random.Random) -> Work:
    """Eight recommendations do not hinder each other; a few take four times as long as most."""

    async def work() -> None:
        await asyncio.sleep(SERVICE_S * rng.choice([0.5, 0.75, 0.75, 1.0, 2.0]))

    return work


def one_shared_worker(_: random.Random) -> Work:
    """What one takes depends on how many run, as with a model that decodes them in turns: four rounds each."""
    worker = asyncio.Lock()

    async def work() -> None:
        for _ in range(4):
            async with worker:
                await asyncio.sleep(SERVICE_S / MAX_RUNNING / 4)

    return work


def slow_shared_worker(_: random.Random) -> Work:
    """As many at once as there are slots take 1.3 times as long as they may: SLOW_SHARE_S each, in turns of a tenth."""
    worker = asyncio.Lock()

    async def work() -> None:
        for _ in range(10):
            async with worker:
                await asyncio.sleep(SLOW_SHARE_S / 10)

    return work


async def goodput(
    slot: Slot,
    make_work: Callable[[random.Random], Work],
    *,
    load: float,
    seconds: float,
    capacity: float = MAX_RUNNING / SERVICE_S,  # a second; the first two workers take SERVICE_S on average
) -> float:
    """Answers in time, as a share of what can be done at all, when ``load`` times as much is asked for."""
    rng = random.Random(4)
    work = make_work(rng)
    loop = asyncio.get_running_loop()
    in_time = 0

    async def client() -> None:
        nonlocal in_time
        deadline = loop.time() + DEADLINE_S
        with contextlib.suppress(Overloaded, DeadlineExceeded, TimeoutError):
            async with slot(DEADLINE_S), asyncio.timeout_at(deadline):
                await work()
                in_time += 1

    async with asyncio.TaskGroup() as group:
        while loop.time() < seconds:
            group.create_task(client())
            await asyncio.sleep(rng.expovariate(load * capacity))
    return in_time / (capacity * seconds)


@pytest.mark.parametrize("make_work", [independent_workers, one_shared_worker])
@pytest.mark.parametrize("max_waiting", [16, 100_000])
def test_at_three_times_its_capacity_a_server_does_nine_tenths_of_what_it_can(
    make_work: Callable[[random.Random], Work], max_waiting: int
) -> None:
    admission = Admission(MAX_RUNNING, max_waiting)
    assert run_in_virtual_time(goodput(admission.slot, make_work, load=3, seconds=12)) >= 0.9
    assert (admission.running, admission.waiting) == (0, 0)
    assert sum(admission.rejected.values()) > 0


def test_without_admission_the_same_load_leaves_few_answered_in_time() -> None:
    @contextlib.asynccontextmanager
    async def first_come_first_served(_: float) -> AsyncIterator[float]:
        async with semaphore:
            yield 0.0

    async def run() -> float:
        return await goodput(first_come_first_served, independent_workers, load=3, seconds=12)

    semaphore = asyncio.Semaphore(MAX_RUNNING)
    assert run_in_virtual_time(run()) < 0.2


@pytest.mark.parametrize("load", [1.5, 3])
def test_a_server_too_slow_for_its_slots_uses_fewer_and_still_does_most_of_what_it_can(load: float) -> None:
    admission = Admission(MAX_RUNNING, 64)
    capacity = 1 / SLOW_SHARE_S
    assert (
        run_in_virtual_time(goodput(admission.slot, slow_shared_worker, load=load, seconds=120, capacity=capacity))
        >= 0.75
    )
    assert (admission.running, admission.waiting) == (0, 0)


def test_a_burst_on_an_idle_server_fills_every_slot() -> None:
    async def run() -> None:
        admission = Admission(MAX_RUNNING, 0)
        async with admission.slot(DEADLINE_S):
            await asyncio.sleep(0.4 * DEADLINE_S)
        release = asyncio.Event()
        tasks = [asyncio.create_task(hold(admission, release, timeout_s=DEADLINE_S)) for _ in range(MAX_RUNNING)]
        await settle()
        assert admission.running == MAX_RUNNING
        release.set()
        await asyncio.gather(*tasks)

    run_in_virtual_time(run())


def test_a_request_with_too_little_time_is_refused_beside_others_and_taken_on_alone() -> None:
    async def run() -> None:
        admission = Admission(MAX_RUNNING, 10)
        async with admission.slot(60.0):
            await asyncio.sleep(2.0)
        release = asyncio.Event()
        alone = asyncio.create_task(hold(admission, release, timeout_s=1.0))
        await settle()
        with pytest.raises(Overloaded, match=r"1 run, one more would take 8\.00 s; 3\.00 s are left"):
            async with admission.slot(3.0):  # (2 s + 2 * 1 s) * 2 / 1
                pass
        release.set()
        await alone

    run_in_virtual_time(run())


@pytest.mark.parametrize("make_work", [independent_workers, one_shared_worker])
def test_at_half_its_capacity_a_server_answers_everyone_in_time(make_work: Callable[[random.Random], Work]) -> None:
    admission = Admission(MAX_RUNNING, 64)
    assert run_in_virtual_time(goodput(admission.slot, make_work, load=0.5, seconds=12)) == pytest.approx(0.5, abs=0.05)
    assert not admission.rejected


def test_after_a_stall_that_spoils_the_estimate_the_server_recovers() -> None:
    admission = Admission(MAX_RUNNING, 64)
    stalled = True

    def work_that_stalls(_: random.Random) -> Work:
        async def work() -> None:
            await asyncio.sleep(30 * DEADLINE_S if stalled else SERVICE_S)

        return work

    async def run() -> float:
        nonlocal stalled
        await goodput(admission.slot, work_that_stalls, load=3, seconds=10)
        stalled = False
        # The second begins where the first ended: the loop's clock is at 10 s and more.
        now = asyncio.get_running_loop().time()
        return await goodput(admission.slot, work_that_stalls, load=3, seconds=now + 12) * (now + 12) / 12

    assert run_in_virtual_time(run()) >= 0.9


def drifting_shared_worker(rng: random.Random) -> Work:
    """One model for all, whose speed wanders by a sixth and more over some five deadlines, as on a busy machine."""
    worker = asyncio.Lock()
    loop = asyncio.get_running_loop()
    logarithm, changed_at = 0.0, loop.time()

    async def work() -> None:
        nonlocal logarithm, changed_at
        for _ in range(4):
            async with worker:
                kept = math.exp((changed_at - loop.time()) / (5 * DEADLINE_S))
                logarithm = kept * logarithm + math.sqrt(1 - kept**2) * rng.gauss(0, 0.16)
                changed_at = loop.time()
                await asyncio.sleep(SERVICE_S / MAX_RUNNING / 4 * math.exp(logarithm))

    return work


def test_few_of_the_accepted_run_out_of_time_though_the_speed_of_the_model_wanders() -> None:
    admission = Admission(MAX_RUNNING, 100_000)
    ended: Counter[str] = Counter()

    @contextlib.asynccontextmanager
    async def counted(timeout_s: float) -> AsyncIterator[float]:
        try:
            async with admission.slot(timeout_s) as waited_s:
                yield waited_s
                ended["in time"] += 1
        except Overloaded:
            raise
        except BaseException:
            ended["late"] += 1
            raise

    reached = run_in_virtual_time(goodput(counted, drifting_shared_worker, load=3, seconds=120))
    assert reached >= 0.9
    assert ended["late"] < ended["in time"] / 25


def test_most_refusals_come_at_once_and_few_requests_wait_in_vain() -> None:
    admission = Admission(MAX_RUNNING, 100_000)
    in_vain = 0

    @contextlib.asynccontextmanager
    async def counted(timeout_s: float) -> AsyncIterator[float]:
        nonlocal in_vain
        try:
            async with admission.slot(timeout_s) as waited_s:
                yield waited_s
        except DeadlineExceeded:
            in_vain += 1
            raise

    run_in_virtual_time(goodput(counted, independent_workers, load=3, seconds=12))
    assert in_vain < sum(admission.rejected.values()) / 20


# --- one request at a time --------------------------------------------------------------------------------------------


async def test_when_the_queue_is_full_the_next_is_refused_at_once() -> None:
    metrics = Metrics()
    admission = Admission(1, 2, metrics=metrics)
    release = asyncio.Event()
    tasks = [asyncio.create_task(hold(admission, release)) for _ in range(3)]
    await settle()
    with pytest.raises(Overloaded) as caught:
        async with admission.slot(60.0):
            pass
    assert (admission.running, admission.waiting, admission.rejected) == (1, 2, {"queue-full": 1})
    finding = finding_of(caught.value)
    response = response_of(finding.kind, finding.kind.problem(finding.detail, "r"), finding.headers)
    assert (finding.kind, response.status_code) == (OVERLOADED, 503)
    assert int(response.headers["retry-after"]) == caught.value.retry_after_s >= 1
    release.set()
    waits = await asyncio.gather(*tasks)
    assert waits[0] == min(waits)
    text = metrics.render("")[0].decode()
    assert 'igd_rejected_requests_total{reason="queue-full"} 1.0' in text
    assert "igd_admission_wait_seconds_count 3.0" in text


def test_a_wait_longer_than_the_request_has_time_is_refused_at_once() -> None:
    async def run() -> None:
        admission = Admission(2, 100)
        for _ in range(3):  # the pace: 2 s
            async with admission.slot(60.0):
                await asyncio.sleep(2.0)
        release = asyncio.Event()
        tasks = [asyncio.create_task(hold(admission, release)) for _ in range(2 + 3)]
        await settle()
        loop = asyncio.get_running_loop()
        began = loop.time()
        # (3 + 1) * 3.88 s / 2: the mean of 2 s and twice the mean deviation, which begins at half and is 0.94 s by now.
        with pytest.raises(Overloaded, match=r"the queue may take 7\.75 s; 5\.00 s are left") as caught:
            async with admission.slot(5.0):
                pass
        assert loop.time() == began
        assert (caught.value.reason, caught.value.retry_after_s) == ("expected-wait", 4)
        patient = asyncio.create_task(hold(admission, release, timeout_s=20.0))
        await settle()
        assert admission.waiting == 4
        release.set()
        await asyncio.gather(*tasks, patient)

    run_in_virtual_time(run())


def test_clients_that_leave_early_do_not_make_work_look_quick() -> None:
    async def run() -> None:
        admission = Admission(1, 100)
        async with admission.slot(60.0):
            await asyncio.sleep(2.0)
        for _ in range(500):
            with contextlib.suppress(TimeoutError):
                async with admission.slot(60.0), asyncio.timeout(0.001):
                    await asyncio.sleep(2.0)
        release = asyncio.Event()
        holder = asyncio.create_task(hold(admission, release))
        await settle()
        with pytest.raises(Overloaded):
            async with admission.slot(3.0):
                pass
        release.set()
        await holder

    run_in_virtual_time(run())


def test_a_request_whose_time_runs_out_in_the_queue_is_told_then() -> None:
    async def run() -> None:
        admission = Admission(1, 10)
        release = asyncio.Event()
        holder = asyncio.create_task(hold(admission, release))
        await settle()
        with pytest.raises(DeadlineExceeded):
            async with admission.slot(0.25):
                pass
        assert asyncio.get_running_loop().time() == pytest.approx(0.25)
        assert (admission.running, admission.waiting) == (1, 0)
        release.set()
        assert await holder == 0.0
        assert admission.running == 0

    run_in_virtual_time(run())


def test_a_turn_that_comes_too_late_to_be_worth_it_goes_to_the_next() -> None:
    async def run() -> None:
        admission = Admission(1, 10)
        async with admission.slot(60.0):
            await asyncio.sleep(2.0)
        release = asyncio.Event()
        holder = asyncio.create_task(hold(admission, release))
        await settle()
        hasty = asyncio.create_task(hold(admission, release, timeout_s=8.0))
        patient = asyncio.create_task(hold(admission, release, timeout_s=60.0))
        await asyncio.sleep(7.0)  # 1 s is left for work that takes 2 s
        release.set()
        await asyncio.gather(holder, patient)
        with pytest.raises(DeadlineExceeded, match="too little time was left"):
            await hasty
        assert await patient == pytest.approx(7.0)
        assert asyncio.get_running_loop().time() == pytest.approx(9.0)

    run_in_virtual_time(run())


async def test_a_refused_request_leaves_no_trace_and_an_error_inside_gives_the_slot_back() -> None:
    admission = Admission(1, 0)

    async def fail_inside() -> None:
        async with admission.slot(1.0):
            assert admission.running == 1
            with pytest.raises(Overloaded):
                async with admission.slot(1.0):
                    pass
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        await fail_inside()
    assert (admission.running, admission.waiting) == (0, 0)


@pytest.mark.parametrize("ticks", range(5))
async def test_a_client_that_leaves_as_its_turn_comes_passes_the_turn_on(ticks: int) -> None:
    admission = Admission(1, 5)
    releases = [asyncio.Event() for _ in range(3)]
    first, leaving, last = (asyncio.create_task(hold(admission, release)) for release in releases)
    await settle()
    releases[0].set()
    for _ in range(ticks):
        await asyncio.sleep(0)
    leaving.cancel()
    await settle()
    assert leaving.cancelled()
    assert (admission.running, admission.waiting) == (1, 0)
    releases[2].set()
    await asyncio.gather(first, last)
    assert admission.running == 0


# --- several callers --------------------------------------------------------------------------------------------------

HEAVY = 7.0


def turn(caller: str, *, cost: float = 1.0, deadline: float = 1000.0) -> Turn:
    return Turn(callers=(caller,), cost=cost, deadline=deadline)


@dataclass
class FairWorker:
    """A model that does one thing at a time, a unit of cost in SERVICE_S / MAX_RUNNING, callers by fair share."""

    queue: FairQueue[asyncio.Event] = field(default_factory=FairQueue)
    busy: bool = False

    async def work(self, turn: Turn) -> None:
        rounds = max(4, round(4 * turn.cost))
        for _ in range(rounds):
            mine = asyncio.Event()
            ticket = self.queue.add(mine, turn)
            self.serve()
            try:
                await mine.wait()
                await asyncio.sleep(SERVICE_S / MAX_RUNNING * turn.cost / rounds)
            finally:  # also of a client that leaves
                if not self.queue.remove(ticket):
                    self.queue.accounts.charge(turn.callers[0], turn.cost / rounds)
                    turn.spent += turn.cost / rounds
                    self.busy = False
                    self.serve()

    def serve(self) -> None:
        chosen = None if self.busy else self.queue.pop()
        if chosen is not None:
            self.busy = True
            chosen[1].entry.set()


def test_batches_of_heavy_requests_leave_ordinary_callers_their_answers_and_get_their_own_share() -> None:
    admission, worker = Admission(MAX_RUNNING, 64), FairWorker()
    answered, asked = Counter[str](), Counter[str]()

    async def client(turn: Turn, timeout_s: float) -> None:
        caller, loop = turn.callers[0], asyncio.get_running_loop()
        asked[caller] += 1
        turn.deadline = loop.time() + timeout_s
        with contextlib.suppress(Overloaded, DeadlineExceeded, TimeoutError):
            async with admission.slot(timeout_s, turn), asyncio.timeout_at(turn.deadline):
                await worker.work(turn)
                answered[caller] += 1

    async def ordinary(name: str) -> None:
        loop = asyncio.get_running_loop()
        while loop.time() < 20.0:
            await client(turn(name), DEADLINE_S)
            await asyncio.sleep(0.02)

    async def run() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(ordinary("one"))
            group.create_task(ordinary("other"))
            loop = asyncio.get_running_loop()
            while loop.time() < 20.0:  # three times what the model could do, from one client
                for _ in range(32):
                    group.create_task(client(turn("heavy", cost=HEAVY), 2.0))
                await asyncio.sleep(32 * HEAVY * SERVICE_S / MAX_RUNNING / 3)

    run_in_virtual_time(run())
    for name in ("one", "other"):
        assert answered[name] >= 0.95 * asked[name], (answered, asked)
        assert asked[name] > 300
    capacity = 20.0 * MAX_RUNNING / SERVICE_S
    assert HEAVY * answered["heavy"] >= (capacity - answered["one"] - answered["other"]) * 0.75, answered
    assert (admission.running, admission.waiting) == (0, 0)
    assert not admission._held
    assert not admission._tickets


async def test_a_caller_who_holds_nothing_finds_a_slot_though_another_holds_them_all() -> None:
    admission, release = Admission(4, 10), asyncio.Event()

    async def enter(caller: str) -> None:
        async with admission.slot(60.0, turn(caller)):
            await release.wait()

    tasks = [asyncio.create_task(enter("many")) for _ in range(6)]
    await settle()
    assert (admission.running, admission.waiting) == (4, 2)
    tasks += [asyncio.create_task(enter("few")) for _ in range(2)]
    await settle()
    assert (admission.running, admission.waiting) == (5, 3), "one slot more for four, for her first"
    release.set()
    await asyncio.gather(*tasks)
    assert admission.running == 0


async def test_in_a_full_queue_who_has_most_makes_room_for_others() -> None:
    admission, release, served = Admission(1, 4), asyncio.Event(), list[str]()

    async def enter(caller: str, name: str) -> None:
        async with admission.slot(60.0, turn(caller)):
            served.append(name)
            await release.wait()

    tasks = [asyncio.create_task(enter("many", f"m{number}")) for number in range(5)]
    await settle()
    tasks += [asyncio.create_task(enter("few", f"f{number}")) for number in range(4)]
    await settle()
    assert [task.done() for task in tasks] == [False, False, False, True, True, False, False, False, True]
    for task in (tasks[3], tasks[4], tasks[8]):
        assert isinstance(task.exception(), Overloaded)
    assert admission.waiting == 4
    assert admission.rejected == {"queue-full": 3}
    release.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert served == ["m0", "f0", "m1", "f1", "m2", "f2"]


def test_of_a_callers_requests_the_most_urgent_is_served_first() -> None:
    async def run() -> list[float]:
        admission, served = Admission(1, 10), list[float]()

        async def enter(deadline: float) -> None:
            async with admission.slot(60.0, turn("c", deadline=deadline)):
                await asyncio.sleep(0.1)
                served.append(deadline)

        await asyncio.gather(*(enter(deadline) for deadline in (50.0, 40.0, 20.0, 30.0)))
        return served

    assert run_in_virtual_time(run()) == [50.0, 20.0, 30.0, 40.0]


def test_a_heavy_request_is_refused_where_a_light_one_still_has_time() -> None:
    async def run() -> None:
        admission = Admission(1, 10)
        for _ in range(3):
            async with admission.slot(60.0, turn("c")):
                await asyncio.sleep(1.0)
        release = asyncio.Event()
        holders = [asyncio.create_task(hold(admission, release)) for _ in range(2)]
        await settle()
        with pytest.raises(Overloaded, match="the queue may take"):
            async with admission.slot(6.0, turn("", cost=HEAVY)):
                pass
        light = asyncio.create_task(hold(admission, release, timeout_s=6.0))
        await settle()
        assert admission.waiting == 2
        release.set()
        await asyncio.gather(*holders, light)

    run_in_virtual_time(run())


def test_who_asks_the_same_brings_its_turn_forward() -> None:
    async def run() -> list[str]:
        admission, served = Admission(1, 20), list[str]()
        turns = {f"h{number}": turn("heavy", cost=HEAVY) for number in range(6)} | {"l": turn("light")}

        async def enter(name: str) -> None:
            async with admission.slot(600.0, turns[name]):
                await asyncio.sleep(0.1)
                served.append(name)

        tasks = [asyncio.create_task(enter(name)) for name in turns]
        await settle()
        admission.join(turns["h5"], "joiner", 10.0)
        await asyncio.gather(*tasks)
        admission.join(turns["h5"], "late", 10.0)  # it has been served: nothing to bring forward
        return served

    served = run_in_virtual_time(run())
    assert served.index("h5") < served.index("h1"), served


async def test_callers_of_long_ago_are_forgotten_though_nobody_ever_waits() -> None:
    admission = Admission(4, 20)
    for number in range(5000):
        async with admission.slot(600.0, turn(f"address-{number}")):
            pass
    assert len(admission._queue.accounts) < 2000


@pytest.mark.parametrize("joiner", ["first", "other"])
async def test_who_asks_the_same_in_the_moment_in_which_its_turn_comes_changes_nothing(joiner: str) -> None:
    admission, first, second = Admission(1, 20), turn("first"), turn("first")
    release = asyncio.Event()

    async def hold() -> None:
        async with admission.slot(600.0, turn("first")):
            await release.wait()

    async def enter() -> None:
        async with admission.slot(600.0, first):
            pass

    holding, entering = asyncio.create_task(hold()), asyncio.create_task(enter())
    await settle()
    release.set()
    while admission.waiting:  # noqa: ASYNC110 - step by step
        await asyncio.sleep(0)
    admission.join(first, joiner, 10.0)  # it has been handed its slot, and has not taken it yet
    await asyncio.gather(holding, entering)
    async with admission.slot(600.0, second):
        assert (admission.running, admission.waiting) == (1, 0)


def test_a_request_that_its_client_gave_up_is_charged_for_what_was_done() -> None:
    async def run() -> float:
        admission = Admission(2, 10)
        async with admission.slot(60.0, turn("c")):
            await asyncio.sleep(1.0)
        before = admission._queue.accounts._used["c"]
        with contextlib.suppress(TimeoutError):
            async with admission.slot(60.0, turn("c", cost=10.0)), asyncio.timeout(1.0):
                await asyncio.sleep(10.0)
        measured = turn("c", cost=10.0)
        async with admission.slot(60.0, measured):
            measured.spent = 3.0
        return admission._queue.accounts._used["c"] - before

    assert run_in_virtual_time(run()) == pytest.approx(1.0 + 3.0)


# --- any order of arrivals, ends and departures -----------------------------------------------------------------------


@dataclass(eq=False)
class Client:
    number: int
    task: asyncio.Task[None] = field(init=False)
    release: asyncio.Event = field(default_factory=asyncio.Event)
    turn: Turn = field(default_factory=Turn)
    inside: bool = False


class AnyOrder(RuleBasedStateMachine):
    """Whatever happens: never more than the limit inside, no place lost, and nobody overtakes."""

    @initialize(max_running=st.integers(1, 3), max_waiting=st.integers(0, 5))
    def begin(self, max_running: int, max_waiting: int) -> None:
        self.loop = VirtualTimeLoop()
        self.max_running, self.max_waiting = max_running, max_waiting
        self.admission = Admission(max_running, max_waiting)
        self.clients: list[Client] = []
        self.entered: list[int] = []
        self.most_inside = 0

    async def visit(self, client: Client, timeout_s: float) -> None:
        async with self.admission.slot(timeout_s, client.turn):
            client.inside = True
            self.entered.append(client.number)
            self.most_inside = max(self.most_inside, sum(each.inside for each in self.clients))
            try:
                await client.release.wait()
            finally:
                client.inside = False

    def settle(self) -> None:
        self.loop.run_until_complete(settle())

    @property
    def present(self) -> list[Client]:
        return [client for client in self.clients if not client.task.done()]

    @rule(timeout_s=st.sampled_from([0.0, 0.5, 5.0, 1000.0]))
    def arrive(self, timeout_s: float) -> None:
        client = Client(len(self.clients))
        self.clients.append(client)
        client.task = self.loop.create_task(self.visit(client, timeout_s))
        self.settle()

    @precondition(lambda self: self.present)
    @rule(data=st.data(), ticks=st.integers(0, 4))
    def some_finish_and_some_leave(self, data: st.DataObject, ticks: int) -> None:
        finishing = data.draw(st.lists(st.sampled_from(self.present), unique=True))
        leaving = data.draw(st.lists(st.sampled_from(self.present), unique=True))
        for client in finishing:
            client.release.set()
        for _ in range(ticks):
            self.loop.run_until_complete(asyncio.sleep(0))
        for client in leaving:
            client.task.cancel()
        self.settle()

    @rule(seconds=st.sampled_from([0.1, 1.0, 10.0]))
    def time_passes(self, seconds: float) -> None:
        self.loop.run_until_complete(asyncio.sleep(seconds))
        self.settle()

    @invariant()
    def places_are_neither_lost_nor_given_twice(self) -> None:
        inside = sum(client.inside for client in self.clients)
        queued = len(self.present) - inside
        assert self.most_inside <= self.max_running
        assert (self.admission.running, self.admission.waiting) == (inside, queued)
        assert queued <= self.max_waiting
        assert not queued or inside == self.max_running

    @invariant()
    def nobody_overtakes(self) -> None:
        assert self.entered == sorted(self.entered)

    def teardown(self) -> None:
        if not hasattr(self, "loop"):
            return
        for client in self.present:
            client.task.cancel()
        self.settle()
        assert (self.admission.running, self.admission.waiting) == (0, 0)
        for client in self.clients:
            assert client.task.done()
            if not client.task.cancelled():
                assert isinstance(client.task.exception(), (Overloaded, DeadlineExceeded, type(None)))
        self.loop.close()


class AnyOrderOfTheSame(AnyOrder):
    """The same, while others ask what those ask who wait, run or have just been served."""

    @precondition(lambda self: self.present)
    @rule(data=st.data(), caller=st.sampled_from(["a", "b", NOBODY]), ticks=st.integers(0, 3))
    def join(self, data: st.DataObject, caller: str, ticks: int) -> None:
        """Someone is done, and as many steps of the loop later somebody asks what another asks."""
        joined = data.draw(st.sampled_from(self.clients[-4:]))
        data.draw(st.sampled_from(self.present)).release.set()

        async def ask() -> None:
            for _ in range(ticks):
                await asyncio.sleep(0)
            self.admission.join(joined.turn, caller, self.loop.time() + 5.0)

        self.loop.run_until_complete(ask())
        self.settle()

    @invariant()
    def places_are_neither_lost_nor_given_twice(self) -> None:
        inside = sum(client.inside for client in self.clients)
        assert self.most_inside <= self.max_running + 1  # one for callers who hold none
        assert (self.admission.running, self.admission.waiting) == (inside, len(self.present) - inside)

    @invariant()
    def nobody_overtakes(self) -> None:
        """Whoever is joined may."""

    @invariant()
    def callers_wait_as_often_as_something_of_theirs_does(self) -> None:
        waiting = {caller for ticket in self.admission._tickets.values() for caller in ticket.callers if ticket.waiting}
        assert set(self.admission._queue._lines) == waiting


TestAnyOrder = AnyOrder.TestCase
TestAnyOrderOfTheSame = AnyOrderOfTheSame.TestCase
TestAnyOrderOfTheSame.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
