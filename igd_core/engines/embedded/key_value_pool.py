"""Keys and values of many texts in one piece of memory, one slot a token: for passes whose shapes are fixed.

A CUDA graph reads and writes the same addresses each time, so that what differs from pass to pass are numbers of slots.
A text owns its slots until it is dropped; then others get them.
"""

from __future__ import annotations

import weakref
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from igd_core.engines.embedded.prefix_cache import PromptKV

ZEROS = 0
"""The slot that is never written: what is read where there is nothing to read."""
WASTE = 1
"""The slot that is never read: what is written where there is nothing to write."""
_FIRST_SLOTS = 8192


@dataclass(frozen=True, slots=True)
class PooledLayers:
    """A copy of slots, outside of the pool; a `forward.Layers`.

    Attributes:
        both: ``(layers, tokens, 2, heads, width)``, keys before values.
    """

    both: torch.Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        return self.both.nbytes

    def prefix(self, length: int) -> PooledLayers:
        """Those of the first ``length`` tokens, as a view."""
        return PooledLayers(self.both[:, :length])


class KeyValuePool:
    """Slots of one model. Texts are fed by one thread; any thread may drop one."""

    def __init__(
        self, *, layers: int, heads: int, width: int, like: torch.Tensor, first_slots: int = _FIRST_SLOTS
    ) -> None:
        """Room for a few texts; it grows by doubling.

        Args:
            layers: of the model.
            heads: of keys and values.
            width: of a head.
            like: a weight, for device and data type.
            first_slots: tokens at first.
        """
        self.slots = like.new_zeros(layers, first_slots, 2, heads, width)
        """``(layers, slots, 2, heads, width)``, keys before values; another tensor after it grew."""
        self._free = list(range(first_slots - 1, WASTE, -1))
        self._returned: deque[list[int]] = deque()  # by any thread, in the middle of anything: the collector calls it

    @property
    def num_free(self) -> int:
        """Slots that no text owns."""
        return len(self._free) + sum(map(len, self._returned))

    def take(self, count: int) -> list[int]:
        """Slots for new tokens.

        Raises:
            torch.OutOfMemoryError: there is no room to grow; nothing is taken.
        """
        while self._returned:
            self._free += reversed(self._returned.popleft())
        while len(self._free) < count:
            self._grow()
        kept = len(self._free) - count
        taken = self._free[kept:][::-1]
        del self._free[kept:]
        return taken

    def give_back(self, slots: list[int]) -> None:
        """Let others have these; ``slots`` is emptied."""
        self._returned.append(slots.copy())
        slots.clear()

    def write(self, slots: Sequence[int], layers: PooledLayers) -> None:
        """Copy the keys and values of a cached prompt into slots."""
        self.slots.index_copy_(1, self._numbers(slots), layers.both)

    def read(self, slots: Sequence[int]) -> PooledLayers:
        """A copy of what slots hold."""
        return PooledLayers(self.slots.index_select(1, self._numbers(slots)))

    def _numbers(self, slots: Sequence[int]) -> torch.Tensor:
        return torch.tensor(slots, dtype=torch.int64, device=self.slots.device)

    def _grow(self) -> None:
        layers, before, *rest = self.slots.shape
        with torch.inference_mode(mode=False):  # it is written to outside of it too
            grown = self.slots.new_zeros(layers, 2 * before, *rest)
        grown[:, :before] = self.slots
        self.slots = grown
        self._free[:0] = range(2 * before - 1, before - 1, -1)


class PooledText:
    """A prompt and the tree below it: its slots, token after token. A `forward.Running`."""

    def __init__(self, pool: KeyValuePool, prefix: PromptKV | None) -> None:
        self._pool = pool
        self.slots: list[int] = []
        weakref.finalize(self, pool.give_back, self.slots)
        if prefix is not None:
            self.slots += pool.take(len(prefix.ids))
            pool.write(self.slots, cast("PooledLayers", prefix.layers))

    def layers(self, length: int) -> PooledLayers:
        """The first ``length`` tokens, as a copy."""
        return self._pool.read(self.slots[:length])
