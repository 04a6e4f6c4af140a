"""Whose request runs next: callers get equal shares by cost, and each caller's most urgent request goes first.

A fair queue by virtual time (Goyal, Vin and Cheng, "Start-time fair queuing", 1996): a caller's account holds what the
caller has been served, and the lowest account goes next. A new caller begins at the present virtual time, so that
nobody saves up a share or waits behind another's backlog. A request of ordinary cost is served in one go, so callers
with ordinary requests are served in order of arrival; a heavier request competes anew after each ordinary request's
worth.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

NOBODY = ""
"""The caller of work without a client, such as a warm-up or an evaluation."""

_FORGET_AT = 1024


@dataclass(slots=True, eq=False, kw_only=True)
class Turn:
    """One request's claim on the model.

    Attributes:
        callers: who asked first, and everybody who asked the same meanwhile. The request runs at the first one's turn,
            and is charged to that caller.
        deadline: the earliest of its callers', in seconds of the event loop's clock.
        cost: what it is expected to cost, in ordinary requests (`igd_core.search.cost`), > 0.
        spent: what the model has spent on it so far, in the same unit; 0 if the engine does not measure it.
        complete: whether the search has ended, so that ``spent`` is its cost.
    """

    callers: tuple[str, ...] = (NOBODY,)
    deadline: float = math.inf
    cost: float = 1.0
    spent: float = 0.0
    complete: bool = False

    @property
    def left(self) -> float:
        """The cost that is still expected."""
        return max(0.0, self.cost - self.spent)

    def join(self, caller: str, deadline: float) -> None:
        """Add a caller who asks the same."""
        self.deadline = min(self.deadline, deadline)
        if caller not in self.callers:
            self.callers += (caller,)


class Accounts:
    """What each caller has been served, in ordinary requests of virtual time; idle callers are forgotten.

    Of very many, those that are ahead most are remembered.
    """

    def __init__(self) -> None:
        self._used: dict[str, float] = {}
        self._now = 0.0

    def __len__(self) -> int:
        return len(self._used)

    def rank(self, caller: str, left: float) -> float:
        """The caller with the lowest rank goes first. ``left``: cost of its next request; at most 1 counts."""
        return self._used.get(caller, self._now) + min(left, 1.0)

    def begin(self, caller: str) -> None:
        """A caller without requests makes one: it begins at the present virtual time."""
        self._used[caller] = max(self._used.get(caller, 0.0), self._now)

    def serve(self, caller: str) -> None:
        """A caller's turn has come: virtual time moves on to its account."""
        self._now = max(self._now, self._used.get(caller, 0.0))
        if len(self._used) > _FORGET_AT:
            ahead = [account for account in self._used.items() if account[1] > self._now]
            # Where very many callers ask once each, all are ahead by little: those that are least are let off.
            self._used = dict(heapq.nlargest(_FORGET_AT // 2, ahead, key=lambda account: account[1]))

    def charge(self, caller: str, cost: float) -> None:
        """Charge what was served; negative to refund what was charged too much."""
        self._used[caller] = self._used.get(caller, self._now) + cost


@dataclass(slots=True, eq=False, kw_only=True)
class Ticket(Generic[T]):
    """An entry in the queue; ``waiting`` in the lines of ``callers`` until it is popped or removed."""

    entry: T
    turn: Turn
    order: int
    callers: tuple[str, ...]
    waiting: bool = True


@dataclass(slots=True, eq=False)
class _Line(Generic[T]):
    """The entries of one caller: a heap by deadline, then age. Those that no longer wait are dropped when met."""

    heap: list[tuple[float, int, int, Ticket[T]]] = field(default_factory=list)
    length: int = 0
    cost: float = 0.0

    def head(self) -> Ticket[T]:
        while not self.heap[0][-1].waiting:
            heapq.heappop(self.heap)
        return self.heap[0][-1]

    def first(self, fits: Callable[[Ticket[T]], bool]) -> Ticket[T] | None:
        found = (place for place in self.heap if place[-1].waiting and fits(place[-1]))
        return min(found, default=(None,))[-1]


class FairQueue(Generic[T]):
    """Waiting entries, by caller. Not for concurrent use by several threads."""

    def __init__(self) -> None:
        self.accounts = Accounts()
        self._lines: dict[str, _Line[T]] = {}
        self._length = 0
        self._pushed = 0

    def __len__(self) -> int:
        return self._length

    def add(self, entry: T, turn: Turn, *, order: int | None = None) -> Ticket[T]:
        """Add an entry; of two with the same deadline the lower ``order`` goes first, then the older."""
        order = self._pushed if order is None else order
        ticket = Ticket(entry=entry, turn=turn, order=order, callers=turn.callers)
        self._length += 1
        for caller in ticket.callers:
            self._push(caller, turn.deadline, ticket)
        return ticket

    def join(self, ticket: Ticket[T], caller: str, deadline: float) -> None:
        """Let an entry also be served at the turn of ``caller``, or by an earlier deadline, while it waits."""
        if not ticket.waiting:  # its turn has come
            return
        if caller in ticket.callers:
            heapq.heappush(self._lines[caller].heap, self._key(deadline, ticket))
        else:
            ticket.callers += (caller,)
            self._push(caller, deadline, ticket)

    def pop(self, may: Callable[[str], bool] | None = None) -> tuple[str, Ticket[T]] | None:
        """Remove the entry whose turn it is, and return its caller and it; None if ``may`` allows no caller."""
        chosen = self._first(may)
        if chosen is None:
            return None
        _, caller, ticket = chosen
        self.accounts.serve(caller)
        self.remove(ticket)
        return caller, ticket

    def pop_beside(self, fits: Callable[[Ticket[T]], bool]) -> tuple[str, Ticket[T]] | None:
        """Remove the first entry that can be served together with the last popped one; None if none ``fits``.

        Those that do not fit keep their places, and virtual time stays where the popped one's turn has put it.
        """
        chosen = self._first(None, fits)
        if chosen is None:
            return None
        _, caller, ticket = chosen
        self.remove(ticket)
        return caller, ticket

    def best(self) -> tuple[float, Ticket[T]] | None:
        """What `pop` would return, and its rank, without taking it."""
        chosen = self._first(None)
        return None if chosen is None else (chosen[0], chosen[2])

    def _first(
        self, may: Callable[[str], bool] | None, fits: Callable[[Ticket[T]], bool] | None = None
    ) -> tuple[float, str, Ticket[T]] | None:
        best: tuple[float, float, int] | None = None
        chosen: tuple[float, str, Ticket[T]] | None = None
        for caller, line in self._lines.items():
            if may is not None and not may(caller):
                continue
            ticket = line.head() if fits is None else line.first(fits)
            if ticket is not None:
                rank = self.accounts.rank(caller, ticket.turn.left)
                key = (rank, ticket.turn.deadline, ticket.order)
                if best is None or key < best:
                    best, chosen = key, (rank, caller, ticket)
        return chosen

    def remove(self, ticket: Ticket[T]) -> bool:
        """Remove a waiting entry; False if it was not waiting."""
        if not ticket.waiting:
            return False
        ticket.waiting = False
        self._length -= 1
        for caller in ticket.callers:
            line = self._lines[caller]
            line.length -= 1
            line.cost -= ticket.turn.cost
            if not line.length:
                del self._lines[caller]
        return True

    def clear(self) -> list[T]:
        """Remove all entries, and return them."""
        tickets = {id(place[-1]): place[-1] for line in self._lines.values() for place in line.heap}
        return [ticket.entry for ticket in tickets.values() if self.remove(ticket)]

    def waiting_of(self, caller: str) -> int:
        """How many entries of a caller wait."""
        line = self._lines.get(caller)
        return 0 if line is None else line.length

    def last_of_longest(self) -> tuple[str, Ticket[T]] | None:
        """The caller with the most entries, and the one of them that would be served last; None if nothing waits."""
        if not self._lines:
            return None
        caller, line = max(self._lines.items(), key=lambda named: named[1].length)
        return caller, max(place for place in line.heap if place[-1].waiting)[-1]

    def ahead_of(self, turn: Turn) -> float:
        """Cost of what would be served before a new entry: the caller's more urgent ones, and others' shares."""
        caller = turn.callers[0]
        line = self._lines.get(caller)
        own = 0.0
        if line is not None:
            before = {place[-1] for place in line.heap if place[0] <= turn.deadline}
            own = sum(ticket.turn.cost for ticket in before if ticket.waiting)
        share = own + turn.cost
        return own + sum(min(line.cost, share) for name, line in self._lines.items() if name != caller)

    def _push(self, caller: str, deadline: float, ticket: Ticket[T]) -> None:
        line = self._lines.get(caller)
        if line is None:
            line = self._lines[caller] = _Line()
            self.accounts.begin(caller)
        heapq.heappush(line.heap, self._key(deadline, ticket))
        line.length += 1
        line.cost += ticket.turn.cost

    def _key(self, deadline: float, ticket: Ticket[T]) -> tuple[float, int, int, Ticket[T]]:
        self._pushed += 1  # no two are equal, so tickets are never compared
        return deadline, ticket.order, self._pushed, ticket


class Meter:
    """A moving average of what an ordinary request costs in an engine's own measure (seconds, tokens)."""

    def __init__(self, first_guess: float) -> None:
        """``first_guess`` is used until the first request has ended."""
        self._unit = first_guess
        self._known = False

    def units(self, amount: float) -> float:
        """An amount in ordinary requests."""
        return amount / self._unit

    def observe(self, amount: float, cost: float) -> None:
        """Note that a request expected to cost ``cost`` ordinary ones took ``amount``, > 0."""
        unit = amount / cost
        self._unit = self._unit + _GAIN * (unit - self._unit) if self._known else unit
        self._known = True


_GAIN = 1 / 16
