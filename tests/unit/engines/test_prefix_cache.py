from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from igd_core.engines.embedded.forward import LayerPairs
from igd_core.engines.embedded.prefix_cache import PrefixCache, PromptKV

BYTES_A_TOKEN = 2 * 2 * 4
PROMPTS = st.lists(st.integers(0, 2), min_size=1, max_size=6)


def prompt(ids: list[int]) -> PromptKV:
    """Two layers with one number a token: the token itself, and its position."""
    keys = torch.tensor(ids, dtype=torch.float32).reshape(1, 1, -1, 1)
    values = torch.arange(len(ids), dtype=torch.float32).reshape(1, 1, -1, 1)
    return PromptKV(ids=np.array(ids), layers=LayerPairs(((keys, values), (keys + 100, values + 100))))


def common(a: list[int], b: list[int]) -> int:
    return next((at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


class Model:
    """A list, oldest use first."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.kept: list[list[int]] = []

    def add(self, ids: list[int]) -> None:
        if len(ids) > self.budget or ids in self.kept:
            return
        while sum(map(len, self.kept)) + len(ids) > self.budget:
            self.kept.pop(0)
        self.kept.append(ids)

    def longest(self, ids: list[int]) -> int:
        """Of several alike the nearest by tokens is used again, the one before rather than the one behind."""
        wanted = ids[:-1]
        best = max((common(kept, wanted) for kept in self.kept), default=0)
        alike = [kept for kept in self.kept if common(kept, wanted) == best]
        if best:
            before = [kept for kept in alike if kept <= wanted]
            used = max(before) if before else min(alike)
            self.kept.remove(used)
            self.kept.append(used)
        return best


@given(budget=st.integers(0, 14), steps=st.lists(st.tuples(st.booleans(), PROMPTS), max_size=30))
def test_the_cache_behaves_as_a_list_with_a_budget(budget: int, steps: list[tuple[bool, list[int]]]) -> None:
    cache, model = PrefixCache(budget * BYTES_A_TOKEN), Model(budget)
    for adds, ids in steps:
        if adds:
            cache.add(prompt(ids))
            model.add(ids)
        else:
            found, expected = cache.longest(ids), model.longest(ids)
            assert (0 if found is None else len(found.ids)) == expected
            if found is not None:
                check_prefix(found, ids)
        assert cache.nbytes == sum(map(len, model.kept)) * BYTES_A_TOKEN <= budget * BYTES_A_TOKEN


def check_prefix(found: PromptKV, ids: list[int]) -> None:
    length = len(found.ids)
    assert found.ids.tolist() == ids[:length]
    assert isinstance(found.layers, LayerPairs)
    for layer, (keys, values) in enumerate(found.layers.pairs):
        assert keys.flatten().tolist() == [token + 100 * layer for token in ids[:length]]
        assert values.flatten().tolist() == [at + 100 * layer for at in range(length)]
    assert found.nbytes == length * BYTES_A_TOKEN


def test_the_last_token_is_always_left_to_compute() -> None:
    cache = PrefixCache(1 << 20)
    cache.add(prompt([1, 2, 3]))
    for wanted, length in (([1, 2, 3], 2), ([1, 2, 3, 4], 3), ([1, 2], 1)):
        found = cache.longest(wanted)
        assert found is not None
        assert len(found.ids) == length
    assert cache.longest([1]) is None
    assert cache.longest([2, 2, 3]) is None


def test_a_prefix_shares_memory_with_its_prompt() -> None:
    whole = prompt([1, 2, 3]).layers
    shorter = whole.prefix(2)
    assert isinstance(whole, LayerPairs)
    assert isinstance(shorter, LayerPairs)
    assert shorter.pairs[0][0].data_ptr() == whole.pairs[0][0].data_ptr()


def test_clearing_forgets_everything() -> None:
    cache = PrefixCache(1 << 20)
    cache.add(prompt([1, 2, 3]))
    cache.clear()
    assert cache.nbytes == 0
    assert cache.longest([1, 2, 3]) is None
