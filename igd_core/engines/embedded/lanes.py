"""Pieces of a pass computed at the same time on a core each.

torch and oneDNN split each step of a pass among the cores, and each step waits for its slowest core: some 400 times a
pass of SmolLM2-135M. But people's trees do not depend on each other, nor do the branches that a round adds to a tree.
So each core computes a share of them from end to end, and the cores wait for each other once. Where a prompt is in the
pass, they wait once a layer: its later tokens read the keys and values of its earlier ones.

Every core then reads all weights. That is why a share has `LEAST_TOKENS` or more, and why this is for few cores.
"""

from __future__ import annotations

import functools
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from igd_core.engines.embedded.forward import Fed

T = TypeVar("T")
Meet: TypeAlias = "Callable[[], object]"

MOST_LANES = 4
"""With more cores they are not used: they were measured on two."""
LEAST_TOKENS = 32
"""Of a lane, on average: two lanes of 20 gain nothing, of 34 a third (tests/bench/passes.py)."""
_UNEVEN = 1.2  # the longest lane over the average, up to which lanes gain
_MOST_UNCUT = 24  # tokens: attention over pieces of 8 to 16 costs more, over 12 to 24 what it costs over all


class Lanes:
    """Threads on which torch uses one core each."""

    def __init__(self, count: int) -> None:
        """Start ``count`` threads. How many torch uses on others stays as it is."""
        self.count = count
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="igd-lane")
        self._running = threading.Lock()  # calls that wait for each other must all have a thread
        threads = torch.get_num_threads()
        self.run([_begin] * count)
        torch.set_num_threads(threads)

    def run(self, calls: Sequence[Callable[[Meet], T]]) -> list[T]:
        """What the calls return, each on a thread; all have ended when it returns or raises.

        Args:
            calls: at most ``count``. Each gets a function that returns once all have called it as often.

        Raises:
            Exception: what the first of the calls that failed raised.
        """
        barrier = threading.Barrier(len(calls))

        def called(call: Callable[[Meet], T]) -> T:
            try:
                return call(barrier.wait)
            except BaseException:
                barrier.abort()
                raise

        with self._running:
            futures = [self._threads.submit(called, call) for call in calls]
            wait(futures)
        errors = [error for future in futures if (error := future.exception()) is not None]
        if errors:
            raise next((error for error in errors if not isinstance(error, threading.BrokenBarrierError)), errors[0])
        return [future.result() for future in futures]


def lanes_here() -> Lanes | None:
    """One for each of torch's threads; None where they are too many, or one."""
    count = torch.get_num_threads()
    return _lanes(count) if 1 < count <= MOST_LANES else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Some tokens, one behind the other, of what is fed to one run.

    Attributes:
        place: of the whole, among what is fed in the pass.
        first: of its tokens, among those of the whole.
        fed: the piece; it sees no slots behind its own.
        follows: whether it sees new tokens before its first.
    """

    place: int
    first: int
    fed: Fed
    follows: bool = False


def pieces_of(place: int, fed: Fed) -> list[Piece]:
    """What is fed, cut into halves, quarters and so on, between two branches where there are some.

    The cuts depend on nothing else in the pass. So attention over each piece does the same whatever else there is, and
    gives the same to the bit.
    """
    new, count = len(fed.tokens), 1
    while new > count * _MOST_UNCUT:
        count *= 2
    if count == 1:
        return [Piece(place=place, first=0, fed=fed)]
    starts = _starts(fed)
    even = np.arange(1, count) * new // count
    nearest = starts[np.abs(starts[:, None] - even).argmin(axis=0)]
    cuts = np.unique([0, *np.where(np.abs(nearest - even) <= new // count // 2, nearest, even), new]).tolist()
    known = set(starts.tolist())
    rows = np.searchsorted(fed.rows.numpy(), cuts).tolist()
    ends = zip(itertools.pairwise(cuts), itertools.pairwise(rows), strict=True)
    return [
        Piece(place=place, first=first, fed=_cut(fed, slice(first, last), slice(*wanted)), follows=first not in known)
        for (first, last), wanted in ends
    ]


def shared_out(tokens: Sequence[int], lanes: int) -> list[list[int]]:
    """The places of pieces with so many tokens, for each lane; nothing if lanes would gain nothing."""
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


def _starts(fed: Fed) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The tokens from which on none sees a new one before it; 0 is one of them."""
    new, seen = fed.visible.shape
    first_seen = fed.visible[:, seen - new :].numpy().argmax(axis=1)  # each sees itself
    first_from_here = np.minimum.accumulate(first_seen[::-1])[::-1]
    return np.flatnonzero(first_from_here >= np.arange(new))


def _cut(fed: Fed, tokens: slice, rows: slice) -> Fed:
    new, seen = fed.visible.shape
    return replace(
        fed,
        tokens=fed.tokens[tokens],
        positions=fed.positions[tokens],
        visible=fed.visible[tokens, : seen - new + tokens.stop],
        rows=fed.rows[rows] - tokens.start,
    )


@functools.cache
def _lanes(count: int) -> Lanes:
    return Lanes(count)


def _begin(meet: Meet) -> None:
    meet()  # so that each thread runs this once
    torch.get_num_threads()  # at its first use a thread takes the process's number; only then does its own last
    torch.set_num_threads(1)
