"""A pass computed by one core, or pieces of it at the same time by a core each.

torch and oneDNN split each step of a pass among the cores, and each step waits for its slowest core, which may have to
be woken first: some 400 times a pass of SmolLM2-135M. A lane is a thread on which torch uses one core. One lane waits
for nobody. Several each compute some of the pass's tokens from end to end, and wait for each other once a layer, when
the keys and values of all new tokens are there; but each of them reads all weights, so they are for few cores.
"""

from __future__ import annotations

import functools
import itertools
import logging
import threading
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from igd_core.engines.embedded.forward import Fed

T = TypeVar("T")
Meet: TypeAlias = "Callable[[], object]"

_log = logging.getLogger(__name__)

MOST_LANES = 4
"""With more cores a pass has one lane at most: several were measured on two."""
LEAST_TOKENS = 16
"""Of a lane, on average, where there are several; with fewer they are not tried: two of 20 gained nothing."""
_UNEVEN = 1.2  # the longest lane over the average, up to which lanes gain
_MOST_UNCUT = 24  # tokens: attention over pieces of 8 to 16 costs more, over 12 to 24 what it costs over all


class Lanes:
    """Threads on which torch uses one core each."""

    def __init__(self, count: int) -> None:
        """Start ``count`` threads. A thread that first asks for torch's number of threads meanwhile may be told 1.

        Raises:
            RuntimeError: the system has no room for more threads.
        """
        self.count = count
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="igd-lane")
        self._running = threading.Lock()  # calls that wait for each other must all have a thread
        found: list[int] = []
        try:
            found += self.run([_begin] * count)
            restoring = threading.Thread(target=torch.set_num_threads, args=(found[0],))
            restoring.start()
        except RuntimeError:
            self._threads.shutdown()
            if found:
                torch.set_num_threads(found[0])
            raise
        restoring.join()

    def run(self, calls: Sequence[Callable[[Meet], T]]) -> list[T]:
        """What the calls return, each on a thread; all have ended when it returns or raises.

        Args:
            calls: at most ``count``. Each gets a function that returns once all have called it as often.

        Raises:
            Exception: what the first of the calls that failed raised.
            RuntimeError: a thread could not be started, or the interpreter is ending.
        """
        barrier = threading.Barrier(len(calls))

        def called(call: Callable[[Meet], T]) -> T:
            try:
                return call(barrier.wait)
            except BaseException:
                barrier.abort()
                raise

        futures: list[Future[T]] = []
        with self._running:
            try:
                futures.extend(self._threads.submit(called, call) for call in calls)
            except BaseException:
                barrier.abort()
                raise
            finally:
                wait(futures)
        error = _first_error(futures)
        if error is None:
            return [future.result() for future in futures]
        try:
            raise error
        finally:
            del error, futures  # the error holds this frame: what it holds would live until the collector runs


def lanes_here() -> Lanes | None:
    """One for each of torch's threads; one in all where they are too many; None where torch has one thread."""
    count = torch.get_num_threads()
    return None if count == 1 else _lanes(count if count <= MOST_LANES else 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Some tokens, one behind the other, of what is fed to one run.

    Attributes:
        place: of the whole, among what is fed in the pass.
        first: of its tokens, among those of the whole.
        fed: the piece; it sees no slots behind its own.
    """

    place: int
    first: int
    fed: Fed


def pieces_of(place: int, fed: Fed) -> list[Piece]:
    """What is fed, cut evenly into halves, quarters and so on.

    The cuts depend on nothing else in the pass. So attention over each piece does the same whatever else there is, and
    gives the same to the bit.
    """
    new, count = len(fed.tokens), 1
    while new > count * _MOST_UNCUT:
        count *= 2
    if count == 1:
        return [Piece(place=place, first=0, fed=fed)]
    cuts = [new * at // count for at in range(count + 1)]
    rows = np.searchsorted(fed.rows.numpy(), cuts).tolist()
    return [
        Piece(place=place, first=first, fed=_cut(fed, slice(first, last), slice(*wanted)))
        for (first, last), wanted in zip(itertools.pairwise(cuts), itertools.pairwise(rows), strict=True)
    ]


def joined(pieces: Sequence[Piece], outputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """``(wanted, width)`` of each whole, from those of its pieces."""
    of_each: dict[int, list[torch.Tensor]] = {}
    for piece, output in zip(pieces, outputs, strict=True):
        of_each.setdefault(piece.place, []).append(output)
    return [each[0] if len(each) == 1 else torch.cat(each) for each in of_each.values()]


def shares_by_lanes(tokens: Sequence[int], lanes: Lanes | None) -> dict[int, list[list[int]]]:
    """By number of lanes, the places of the pieces with so many tokens that each gets.

    0 is none: torch splits each step. Numbers of lanes that cannot get about as much each are left out.
    """
    everything = list(range(len(tokens)))
    if lanes is None:
        return {0: [everything]}
    shares = shared_out(tokens, lanes.count) if lanes.count > 1 else []
    return {0: [everything], 1: [everything], **({lanes.count: shares} if shares else {})}


def shared_out(tokens: Sequence[int], lanes: int) -> list[list[int]]:
    """The places of pieces with so many tokens, for each of some lanes; nothing if there are too few."""
    average = sum(tokens) / lanes
    if average < LEAST_TOKENS:
        return []
    shares: list[list[int]] = [[] for _ in range(lanes)]
    sums = [0] * lanes
    for place in sorted(range(len(tokens)), key=lambda each: -tokens[each]):
        least = sums.index(min(sums))
        shares[least].append(place)
        sums[least] += tokens[place]
    return shares if max(sums) <= _UNEVEN * average else []


def _cut(fed: Fed, tokens: slice, rows: slice) -> Fed:
    new, seen = fed.visible.shape
    return replace(
        fed,
        tokens=fed.tokens[tokens],
        positions=fed.positions[tokens],
        visible=fed.visible[tokens, : seen - new + tokens.stop],
        rows=fed.rows[rows] - tokens.start,
    )


def _first_error(futures: Sequence[Future[Any]]) -> BaseException | None:
    """What the first call that failed raised; others' breaking off only if there is nothing else."""
    errors = [error for future in futures if (error := future.exception()) is not None]
    causes = [error for error in errors if not isinstance(error, threading.BrokenBarrierError)]
    return next(iter(causes + errors), None)


@functools.cache
def _lanes(count: int) -> Lanes | None:
    try:
        return Lanes(count)
    except RuntimeError as error:
        _log.warning("Each step of a pass is split among cores: %d threads could not be started (%s).", count, error)
        return None


def _begin(meet: Meet) -> int:
    """Torch's number of threads in the process, as a thread takes it at its first use; this one's is then 1."""
    found = torch.get_num_threads()
    meet()
    torch.set_num_threads(1)
    return found
