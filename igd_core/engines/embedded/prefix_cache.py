"""Key-value caches of recent prompts; a new prompt reuses the longest common prefix."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptKV:
    """Keys and values of a prompt.

    Attributes:
        ids: ``(length,)`` int64 token ids.
        adapter: the model computed them with this adapter; None for the model itself.
        layers: per layer, keys and values of shape ``(1, kv_heads, length, head_dim)``; never written to.
    """

    ids: NDArray[np.int64]
    layers: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    adapter: str | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(tensor.nbytes for pair in self.layers for tensor in pair)

    def prefix(self, length: int) -> PromptKV:
        """The first ``length`` tokens, as views."""
        return PromptKV(
            ids=self.ids[:length],
            layers=tuple((k[:, :, :length], v[:, :, :length]) for k, v in self.layers),
            adapter=self.adapter,
        )


class PrefixCache:
    """Least recently used prompts within a byte budget. One thread uses it.

    Every prompt of a catalogue begins with the same instruction, and a returning user's with most of the last history.
    So the longest common prefix over the few prompts that fit is all the structure needed (64 prompts: 0.1 ms).
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[tuple[str | None, bytes], PromptKV] = OrderedDict()
        self.nbytes = 0

    def longest(self, ids: Sequence[int], adapter: str | None = None) -> PromptKV | None:
        """Longest cached proper prefix of ``ids`` under ``adapter``: at least the last token is left to compute."""
        wanted = np.asarray(ids, dtype=np.int64)[:-1]
        best_key, best = None, 0
        for key, entry in self._entries.items():
            if entry.adapter != adapter:
                continue
            length = _common_prefix(entry.ids, wanted)
            if length > best:
                best_key, best = key, length
        if best_key is None:
            return None
        self._entries.move_to_end(best_key)
        return self._entries[best_key].prefix(best)

    def add(self, prompt: PromptKV) -> None:
        """Keep a prompt unless it exceeds the budget; drop the least recently used ones that exceed it then."""
        size = prompt.nbytes
        key = (prompt.adapter, prompt.ids.tobytes())
        if size > self._max_bytes or key in self._entries:
            return
        while self.nbytes + size > self._max_bytes:
            self.nbytes -= self._entries.popitem(last=False)[1].nbytes
        self._entries[key] = prompt
        self.nbytes += size

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self.nbytes = 0


def _common_prefix(a: NDArray[np.int64], b: NDArray[np.int64]) -> int:
    shorter = min(len(a), len(b))
    different = np.flatnonzero(a[:shorter] != b[:shorter])
    return int(different[0]) if len(different) else shorter
