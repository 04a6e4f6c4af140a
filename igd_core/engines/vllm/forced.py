"""Cache of forced tokens' log-probabilities, beyond the request that computed them.

vLLM returns no log-probabilities for prompt tokens in its prefix cache. Prompts come back: a user asks again with
another filter, or another k. The log-probabilities of forced tokens are then known from the first time and need no
round of their own.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

CAPACITY = 1 << 17  # about 26 MB; vLLM's cache of 1 GiB holds 23,000 tokens of a 135M model in fp32


def digest(token_ids: Sequence[int], adapter: str | None = None) -> bytes:
    """A hash of 16 bytes of a prompt under an adapter."""
    key = b"" if adapter is None else hashlib.blake2b(adapter.encode(), digest_size=16).digest()
    return hashlib.blake2b(np.asarray(token_ids, dtype=np.int32).tobytes(), digest_size=16, key=key).digest()


class ForcedLogprobs:
    """Log-probability, at temperature 1 and unweighted, of a token after a prompt and a path; a cache.

    It depends on the model and its adapter alone, so versions, filters and weights share it.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._known: OrderedDict[bytes, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def get(self, prompt: bytes, path: Sequence[int]) -> float | None:
        """Log-probability of the last token of ``path``; None if unknown."""
        key = _key(prompt, path)
        if key in self._known:
            self._known.move_to_end(key)
        return self._known.get(key)

    def put(self, prompt: bytes, path: Sequence[int], logprob: float) -> None:
        """Store the log-probability of the last token of ``path``."""
        self._known[_key(prompt, path)] = logprob
        if len(self._known) > self._capacity:
            self._known.popitem(last=False)


def _key(prompt: bytes, path: Sequence[int]) -> bytes:
    return prompt + np.asarray(path, dtype=np.int32).tobytes()
