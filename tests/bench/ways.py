"""The own forward on a CPU, computed in one way and no other: to compare ways that give the same to the bit."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from igd_core.engines.embedded.fastest_way import FastestWay
from igd_core.engines.embedded.llama import LlamaForward

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

MOST = {"steps": 0, "one-core": 1, "lanes": 1_000}
"""Lanes, by way: none, and all torch's threads split each step; one; as many as can be."""


class UpTo(FastestWay):
    """The most lanes that are possible and allowed."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def choose(self, tokens: int, ways: Sequence[int]) -> int:  # noqa: ARG002 - whatever it was
        return max(way for way in ways if way <= self._most)


def forward_by(way: str, model: PreTrainedModel) -> LlamaForward:
    """A model's own forward, by ``steps``, ``one-core`` or ``lanes``."""
    return LlamaForward(model, fastest=functools.partial(UpTo, MOST[way]))
