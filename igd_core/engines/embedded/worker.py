"""The thread that runs the model, so that no forward pass blocks the event loop; callers get fair shares of it.

Calls that wait at the same moment share a pass, where the model allows it. Nobody waits for company: what is alone when
its turn comes runs alone, at once.
"""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from igd_core.engines.embedded.parts import Outcome
from igd_core.errors import EngineClosed
from igd_core.search.fairness import FairQueue, Meter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from igd_core.engines.embedded.parts import Part
    from igd_core.search.fairness import Ticket, Turn

T = TypeVar("T")

_ORDINARY_S = 0.1  # until the first request has ended
# A search pauses for a millisecond or two between calls. If a heavy call began in each pause, a light request would
# take as long as all of them: the thread waits a little instead, if the other request is twice as heavy.
# For the same reason a call rides along in another's pass only if its request is less than twice as heavy.
_PATIENCE_S = 0.01
_HEAVIER = 2.0
_ALIKE = 1e-6  # ranks that differ by less differ by rounding


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed(Generic[T]):
    """A call's result, and its times.

    Attributes:
        queue_s: seconds that it waited.
        run_s: seconds that its pass took.
        share_s: its share of those, by tokens: what its caller is charged.
    """

    value: T
    queue_s: float
    run_s: float
    share_s: float


@dataclass(slots=True, kw_only=True)
class PassCounts:
    """Passes so far, the parts that they had, and the tokens fed."""

    passes: int = 0
    parts: int = 0
    tokens: int = 0


@dataclass(slots=True, kw_only=True)
class _Call:
    turn: Turn
    submitted: float
    part: Part[Any, Any]
    future: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop


@dataclass(slots=True, kw_only=True)
class _Taken:
    """A call whose turn has come.

    Attributes:
        caller: who pays.
        charged: in advance, in ordinary requests.
        share_s: seconds of the pass that it was; 0 if it was cancelled before.
    """

    caller: str
    call: _Call
    charged: float
    share_s: float = 0.0


@dataclass(slots=True, kw_only=True)
class _Settled:
    """What the callers of one event loop get from a pass."""

    values: list[tuple[asyncio.Future[Any], Timed[Any]]] = field(default_factory=list)
    errors: list[tuple[asyncio.Future[Any], Exception]] = field(default_factory=list)

    def __call__(self) -> None:
        for future, value in self.values:
            if not future.done():
                future.set_result(value)
        for future, error in self.errors:
            if not future.done():
                future.set_exception(error)


class ModelThread:
    """Runs one pass at a time: next, the most urgent call of the caller who has had the least time.

    What waits then, and fits, is computed in the same pass (`Passes`), in the order in which it would have been taken
    by itself. Each call is charged with its share of the time, by tokens. Between callers with ordinary requests the
    older request goes first: taking turns would make every request finish as late as the last (see
    `igd_core.search.fairness`).
    """

    def __init__(self, name: str) -> None:
        self._calls: FairQueue[_Call] = FairQueue()
        self._meter = Meter(_ORDINARY_S)
        self._token_s = 0.0  # what a token took in the last pass
        self._thinking: dict[Turn, tuple[str, float]] = {}  # between two calls: who paid the last, and its end
        self._changed = threading.Condition()
        self._passing = threading.Lock()  # held while a pass is run
        self._engines = 0
        self._closed = False
        self.counts = PassCounts()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    @property
    def closed(self) -> bool:
        """Whether new calls are refused."""
        return self._closed

    @property
    def waiting(self) -> int:
        """Calls queued, without the running ones."""
        return len(self._calls)

    async def call(self, turn: Turn, order: int, part: Part[Any, T]) -> Timed[T]:
        """Compute a part on the thread, for the request of this ``turn``. A call cancelled while it waits never runs.

        Of a caller's requests with the same deadline, the lower ``order`` goes first.

        Raises:
            EngineClosed: the thread has been closed.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Timed[T]] = loop.create_future()
        call = _Call(turn=turn, submitted=time.monotonic(), part=part, future=future, loop=loop)
        with self._changed:
            if self._closed:
                raise EngineClosed("the engine is closed")
            self._thinking.pop(turn, None)
            self._calls.add(call, turn, order=order)
            self._changed.notify()
        return await future

    def finished(self, turn: Turn, seconds: float) -> None:
        """A request has ended. If it is complete, its ``seconds`` of the model tell what an ordinary request takes."""
        with self._changed:
            self._thinking.pop(turn, None)
            if turn.complete and seconds > 0:
                self._meter.observe(seconds, turn.cost)

    def join(self) -> None:
        """Become one of the engines that run on this thread."""
        with self._changed:
            self._engines += 1

    def leave(self, release: Callable[[], None]) -> None:
        """Stop being one of them: call ``release`` while no pass is run; the last one to leave closes the thread."""
        with self._changed:
            self._engines -= 1
            last = not self._engines
        if last:
            self.close()
        with self._passing:
            release()

    def close(self) -> None:
        """Refuse new calls, end waiting ones with EngineClosed, and wait for the running ones."""
        with self._changed:
            self._closed = True
            abandoned = self._calls.clear()
            self._changed.notify()
        _deliver([(call, EngineClosed("the engine is closed")) for call in abandoned])
        self._thread.join()

    def _next(self) -> list[_Taken]:
        """The calls of the next pass; none when the thread has been closed."""
        with self._changed:
            while not len(self._calls) and not self._closed:
                self._changed.wait()
            while not self._closed and (wait_s := self._worth_waiting_s()) > 0:
                self._changed.wait(wait_s)
            return self._take()

    def _take(self) -> list[_Taken]:
        chosen = self._calls.pop()
        if chosen is None:
            return []
        first = chosen[1]
        passes, tokens, begins = first.entry.part.passes, 0, False

        def fits(ticket: Ticket[_Call]) -> bool:
            part = ticket.entry.part
            return (
                part.passes is passes
                and tokens + part.tokens <= passes.most_tokens
                and not (begins and part.begins)
                and ticket.turn.cost < _HEAVIER * first.turn.cost
                and not ticket.entry.future.cancelled()
            )

        taken = []
        while chosen is not None:
            caller, call = chosen[0], chosen[1].entry
            tokens += call.part.tokens
            begins |= call.part.begins
            charged = self._meter.units(call.part.tokens * self._token_s)
            self._calls.accounts.charge(caller, charged)  # so that the next comes from whoever then has had least
            taken.append(_Taken(caller=caller, call=call, charged=charged))
            chosen = self._calls.pop_beside(fits)
        return taken

    def _worth_waiting_s(self) -> float:
        """Seconds to wait for the next call of a request that comes before all that wait, and is much lighter."""
        oldest = time.monotonic() - _PATIENCE_S
        self._thinking = {turn: ended for turn, ended in self._thinking.items() if ended[1] > oldest}
        best = self._calls.best() if self._thinking else None
        if best is None:
            return 0.0
        rank, first = best
        return max(
            (
                ended - oldest
                for turn, (caller, ended) in self._thinking.items()
                if _HEAVIER * turn.cost <= first.turn.cost
                and self._calls.accounts.rank(caller, turn.left) <= rank + _ALIKE
            ),
            default=0.0,
        )

    def _work(self) -> None:
        while self._pass(self._next()):
            pass  # and a waiting thread keeps nothing of the last requests alive

    def _pass(self, taken: Sequence[_Taken]) -> bool:
        """Run the calls that were taken, charge them and wake their callers; False if there are none."""
        running = [each for each in taken if not each.call.future.cancelled()]
        started = time.monotonic()
        with self._passing:
            outcomes = _run([each.call.part for each in running])
        ended = time.monotonic()
        for each, share_s in zip(running, _shares(outcomes, ended - started), strict=True):
            each.share_s = share_s
        self._settle(taken, ended)
        self._count(outcomes, ended - started)
        results = [_result(*pair, started, ended) for pair in zip(running, outcomes, strict=True)]
        _deliver([(each.call, result) for each, result in zip(running, results, strict=True)])
        return bool(taken)

    def _settle(self, taken: Sequence[_Taken], ended: float) -> None:
        """Replace what callers were charged in advance by what was spent on them."""
        with self._changed:
            for each in taken:
                spent = self._meter.units(each.share_s)
                self._calls.accounts.charge(each.caller, spent - each.charged)
                self._thinking[each.call.turn] = each.caller, ended
                each.call.turn.spent += spent

    def _count(self, outcomes: Sequence[Outcome[Any]], seconds: float) -> None:
        tokens = sum(outcome.tokens for outcome in outcomes)
        self.counts.passes += bool(outcomes)
        self.counts.parts += len(outcomes)
        self.counts.tokens += tokens
        if tokens:
            self._token_s = seconds / tokens


def _run(parts: Sequence[Part[Any, Any]]) -> Sequence[Outcome[Any]]:
    if not parts:
        return []
    try:
        return parts[0].passes.run([part.what for part in parts])
    except Exception as error:  # noqa: BLE001 - whatever it was, it belongs to the callers
        return [Outcome(error=error) for _ in parts]


def _result(taken: _Taken, outcome: Outcome[Any], started: float, ended: float) -> Timed[Any] | Exception:
    if outcome.error is not None:
        return outcome.error
    queue_s = started - taken.call.submitted
    return Timed(value=outcome.value, queue_s=queue_s, run_s=ended - started, share_s=taken.share_s)


def _shares(outcomes: Sequence[Outcome[Any]], seconds: float) -> list[float]:
    """Seconds of a pass that each part is charged: by tokens, evenly if none were fed."""
    tokens = sum(outcome.tokens for outcome in outcomes)
    return [seconds * (outcome.tokens / tokens if tokens else 1 / len(outcomes)) for outcome in outcomes]


def _deliver(results: Sequence[tuple[_Call, Timed[Any] | Exception]]) -> None:
    """Wake those who wait, all of an event loop in one go: so their next calls come together, too."""
    by_loop: dict[asyncio.AbstractEventLoop, _Settled] = {}
    for call, result in results:
        settled = by_loop.setdefault(call.loop, _Settled())
        if isinstance(result, Exception):
            settled.errors.append((call.future, result))
        else:
            settled.values.append((call.future, result))
    for loop, settled in by_loop.items():
        try:
            loop.call_soon_threadsafe(settled)
        except RuntimeError:
            continue  # the callers' event loop has ended; nobody waits
