"""Batches of fixed sizes, so that a CUDA graph can repeat their pass: what differs is copied into buffers before.

Texts of a pass that feed about as many tokens are rows of one batch. Texts, tokens and slots are filled up to the next
of a few sizes. What was filled up reads zeros, writes where nobody reads, and is masked.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from igd_core.engines.embedded.key_value_pool import WASTE, ZEROS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from igd_core.engines.embedded.forward import Feed

_LEAST = {"texts": 1, "new": 8, "seen": 128, "wanted": 8}
_MOST_BATCH = 8192  # tokens of one shape, what is filled up included

# Of all models of the process. A recording begins with waiting for the whole device, which breaks one that runs in
# another thread, whatever its mode; and what attention may choose from is set for the process.
LAUNCHING = threading.Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of a batch: texts, new tokens of each, slots that each reads, tokens whose logits are wanted of all."""

    texts: int
    new: int
    seen: int
    wanted: int

    @classmethod
    def around(cls, feeds: Sequence[Feed]) -> Shape:
        """The smallest that holds them."""
        return cls(
            texts=filled_up("texts", len(feeds)),
            new=filled_up("new", max(len(feed.fed.tokens) for feed in feeds)),
            seen=filled_up("seen", max(feed.fed.visible.shape[1] for feed in feeds)),
            wanted=filled_up("wanted", sum(len(feed.fed.rows) for feed in feeds)),
        )

    @property
    def num_numbers(self) -> int:
        """All `Numbers` together."""
        return self.texts * (3 * self.new + self.seen) + self.wanted


def filled_up(what: str, count: int) -> int:
    """The next power of two or three quarters of one, and no less than the least."""
    least = _LEAST[what]
    power = max(least, 1 << (count - 1).bit_length())
    less = power * 3 // 4
    return less if less >= max(count, least) else power


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """What differs from pass to pass, as views of one array, so that one copy brings it to the device.

    Attributes:
        tokens, positions: ``(texts, new)``.
        written: ``(texts, new)``, the slot of each new token.
        seen: ``(texts, seen)``, the slots of each text.
        wanted: ``(wanted,)``, tokens whose logits are wanted, by their place among all of the batch.
    """

    tokens: Any
    positions: Any
    written: Any
    seen: Any
    wanted: Any

    @classmethod
    def of(cls, flat: Any, shape: Shape) -> Numbers:  # noqa: ANN401 - an array or a tensor
        """Views of an array or a tensor of ``shape.num_numbers``."""
        new, seen = shape.texts * shape.new, shape.texts * shape.seen
        cuts = (0, *accumulate((new, new, new, seen, shape.wanted)))
        parts = [flat[start:end] for start, end in pairwise(cuts)]
        return cls(
            **{
                name: part.reshape(shape.texts, -1)
                for name, part in zip(("tokens", "positions", "written", "seen"), parts[:4], strict=True)
            },
            wanted=parts[4],
        )


class Batch:
    """A shape's buffers, and how its pass is run: kernel by kernel, or as a graph of them."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        self.shape = shape
        self._flat = torch.zeros(shape.num_numbers, dtype=torch.int64, device=device)
        self.numbers = Numbers.of(self._flat, shape)
        self.visible = torch.zeros(shape.texts, shape.new, shape.seen, dtype=torch.bool, device=device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._found: torch.Tensor | None = None

    def put(self, feeds: Sequence[Feed], slots: Sequence[list[int]]) -> None:
        """Copy the tokens of texts, and the slots of each, its new ones included, to the device."""
        shape = self.shape
        flat = np.zeros(shape.num_numbers, dtype=np.int64)
        numbers = Numbers.of(flat, shape)
        numbers.written[:], numbers.seen[:] = WASTE, ZEROS
        visible = np.zeros((shape.texts, shape.new, shape.seen), dtype=np.bool_)
        visible[:, :, 0] = True  # a row that sees nothing has no softmax
        wanted: list[NDArray[np.int64]] = []
        for text, (feed, own) in enumerate(zip(feeds, slots, strict=True)):
            new = len(feed.fed.tokens)
            numbers.tokens[text, :new], numbers.positions[text, :new] = feed.fed.tokens, feed.fed.positions
            numbers.written[text, :new], numbers.seen[text, : len(own)] = own[len(own) - new :], own
            visible[text, :new, : len(own)] = feed.fed.visible.numpy()
            wanted.append(text * shape.new + feed.fed.rows.numpy())
        places = np.concatenate(wanted)
        numbers.wanted[: len(places)] = places
        self._flat.copy_(torch.from_numpy(flat))
        self.visible.copy_(torch.from_numpy(visible))

    @property
    def is_graph(self) -> bool:
        """Whether it has been recorded."""
        return self._found is not None

    def run(self, compute: Callable[[Batch], torch.Tensor]) -> torch.Tensor:
        """What ``compute`` finds; once it is a graph, memory that any graph of the model may write to later."""
        if self._graph is not None and self._found is not None:
            self._graph.replay()
            return self._found
        with LAUNCHING:
            return compute(self)

    def record(self, compute: Callable[[Batch], torch.Tensor], recorder: Recorder) -> None:
        """Make a graph of what `run` did kernel by kernel before.

        Raises:
            RuntimeError: a kernel cannot be recorded, or memory is short.
        """
        # Whatever fails, the thread's stream and device are as before: torch.cuda.graph does not see to that.
        with LAUNCHING, torch.cuda.device(self._flat.device), torch.cuda.stream(torch.cuda.current_stream()):
            recorder.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(recorder.stream):
                compute(self)  # cuBLAS makes what it needs for a thread and a stream, which no recording may
            self._graph = torch.cuda.CUDAGraph()  # kept if it fails: torch's allocator goes on asking it
            # Other threads may use the device meanwhile: that is no error of this one.
            with torch.cuda.graph(
                self._graph, pool=recorder.memory, stream=recorder.stream, capture_error_mode="thread_local"
            ):
                found = compute(self)
            self._found = found


class Recorder:
    """Where a model's graphs are recorded: a stream of its own, and memory that they share.

    They are dropped together: torch frees cuBLAS's workspace of a stream with the first of its graphs that is dropped,
    though others use it (pytorch/pytorch#193402).
    """

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)  # one of 32 that torch hands out in turn
        self.begin_anew()

    def begin_anew(self) -> None:
        """Once all graphs have been dropped: torch takes no recording into memory that none uses."""
        self.memory: Any = torch.cuda.graph_pool_handle()


def alike(feeds: Sequence[Feed]) -> list[list[int]]:
    """Groups of feeds that go into one batch: of about as many new tokens, and not too many together."""
    by_size: dict[int, list[int]] = {}
    for at, feed in enumerate(feeds):
        by_size.setdefault(filled_up("new", len(feed.fed.tokens)), []).append(at)
    groups = []
    for size, places in sorted(by_size.items()):
        most = max(1, _MOST_BATCH // size)
        groups += [places[start : start + most] for start in range(0, len(places), most)]
    return groups
