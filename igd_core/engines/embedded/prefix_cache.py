"""Key-value caches of recent prompts; a new prompt reuses the longest common prefix."""

from __future__ import annotations

from bisect import bisect, bisect_left, insort
from collections import OrderedDict, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from igd_core.engines.embedded.forward import Layers


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptKV:
    """Keys and values of a prompt.

    Attributes:
        ids: ``(length,)`` int64 token ids.
        adapter: the model computed them with this adapter; None for the model itself.
        layers: as the forward that computed them gave them; never written to.
    """

    ids: NDArray[np.int64]
    layers: Layers
    adapter: str | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        return self.layers.nbytes

    def prefix(self, length: int) -> PromptKV:
        """The first ``length`` tokens, as views."""
        return PromptKV(ids=self.ids[:length], layers=self.layers.prefix(length), adapter=self.adapter)


class PrefixCache:
    """Least recently used prompts within a byte budget. One thread uses it.

    Every prompt of a catalogue begins with the same instruction, and a returning user's with most of the last history.
    In the order of their tokens, the prompt with the longest common prefix stands right before or behind a wanted one.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[tuple[str | None, tuple[int, ...]], PromptKV] = OrderedDict()
        self._ordered: defaultdict[str | None, list[tuple[int, ...]]] = defaultdict(list)  # the keys of each adapter
        self.nbytes = 0

    def longest(self, ids: Sequence[int], adapter: str | None = None) -> PromptKV | None:
        """Longest cached proper prefix of ``ids`` under ``adapter``: at least the last token is left to compute."""
        wanted, ordered = tuple(ids[:-1]), self._ordered[adapter]
        at, tokens = bisect(ordered, wanted), np.array(wanted, dtype=np.int64)
        best_key, best = None, 0
        for key in ordered[max(at - 1, 0) : at + 1]:
            length = _common_prefix(self._entries[adapter, key].ids, tokens)
            if length > best:
                best_key, best = (adapter, key), length
        if best_key is None:
            return None
        self._entries.move_to_end(best_key)
        return self._entries[best_key].prefix(best)

    def add(self, prompt: PromptKV) -> None:
        """Keep a prompt unless it exceeds the budget; drop the least recently used ones that exceed it then."""
        size = prompt.nbytes
        key = (prompt.adapter, tuple(prompt.ids.tolist()))
        if size > self._max_bytes or key in self._entries:
            return
        while self.nbytes + size > self._max_bytes:
            (adapter, ids), dropped = self._entries.popitem(last=False)
            ordered = self._ordered[adapter]
            del ordered[bisect_left(ordered, ids)]
            self.nbytes -= dropped.nbytes
        self._entries[key] = prompt
        insort(self._ordered[prompt.adapter], key[1])
        self.nbytes += size

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self._ordered.clear()
        self.nbytes = 0


def _common_prefix(a: NDArray[np.int64], b: NDArray[np.int64]) -> int:
    shorter = min(len(a), len(b))
    different = np.flatnonzero(a[:shorter] != b[:shorter])
    return int(different[0]) if len(different) else shorter
