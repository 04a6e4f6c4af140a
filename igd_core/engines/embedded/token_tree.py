"""A prompt and a tree of tokens below it, each computed once; all calls of the model go through this.

A round's new tokens are one sequence. A 4-D mask lets each see the prompt and its own ancestors; its position is its
depth; its keys and values stay in the cache. Several trees may grow in one pass (`grow`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from igd_core.engines.embedded.forward import Fed, Feed
from igd_core.ids import ROOT, NodeId

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from igd_core.engines.embedded.forward import Forward, Layers
    from igd_core.engines.embedded.prefix_cache import PromptKV


@dataclass(frozen=True, slots=True, kw_only=True)
class NewTokens:
    """Nodes to compute, parents before children; the lists are of equal length.

    Attributes:
        nodes: any numbers except the root's.
        parents: of each; the root is the prompt's last token.
        tokens: of each, in the model's vocabulary.
    """

    nodes: Sequence[NodeId]
    parents: Sequence[NodeId]
    tokens: Sequence[int]


class TokenTree:
    """A prompt and the nodes computed under it: their keys and values, and each node's slot among them."""

    def __init__(self, forward: Forward, prompt_ids: Sequence[int], prefix: PromptKV | None = None) -> None:
        """Begin with the cache of an earlier prompt: ``prefix`` is a proper prefix of this one."""
        self._forward = forward
        self._running = forward.begin(prefix, len(prompt_ids))
        self._prompt = prompt_ids
        self._length = 0 if prefix is None else len(prefix.ids)
        # A node and its ancestors as bits, by their places behind the prompt, which is visible to all.
        self._seen: dict[NodeId, int] = {ROOT: 0}

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return self._length

    @property
    def prompt_left(self) -> int:
        """Tokens of the prompt that have not been fed."""
        return max(0, len(self._prompt) - self._length)

    def compute(self, new: NewTokens, wanted: Sequence[bool]) -> torch.Tensor:
        """`grow` this tree alone: ``(number wanted, vocabulary)`` logits."""
        return grow([Growth(tree=self, new=new, wanted=wanted)])[0]

    def prompt_layers(self) -> Layers:
        """Keys and values of the prompt alone, once it has been computed, in the form of `PromptKV`."""
        return self._running.layers(len(self._prompt))

    def _feed(self, growth: Growth) -> Feed:
        """What is fed of the prompt, and the new nodes."""
        prompt = self._prompt[self._length : self._length + growth.num_prompt_tokens]
        tokens = [*prompt, *growth.new.tokens]
        visible, positions = self._place(len(prompt), growth.new)
        rows = torch.from_numpy(np.flatnonzero(growth.wanted) + len(tokens) - len(growth.wanted))
        next_tokens = None if growth.next_tokens is None else torch.from_numpy(growth.next_tokens)
        fed = Fed(tokens=tokens, positions=positions, visible=visible, rows=rows, next_tokens=next_tokens)
        return Feed(running=self._running, fed=fed)

    def _place(self, prompt_tokens: int, new: NewTokens) -> tuple[torch.Tensor, list[int]]:
        """Give new tokens their cache slots; returns what each sees, ``(new, cached + new)`` bool, and its position."""
        prompt_length = len(self._prompt)
        count, fed = prompt_tokens + len(new.nodes), self._length + prompt_tokens
        visible = np.zeros((count, self._length + count), dtype=np.bool_)
        visible[:prompt_tokens, :fed] = np.tri(prompt_tokens, fed, self._length, dtype=np.bool_)
        positions = list(range(self._length, fed))
        if new.nodes:
            seen = self._see(new, fed - prompt_length)
            positions += [prompt_length + each.bit_count() - 1 for each in seen]
            visible[prompt_tokens:, :prompt_length] = True
            visible[prompt_tokens:, prompt_length:] = _bits(seen, self._length + count - prompt_length)
        return torch.from_numpy(visible), positions

    def _see(self, new: NewTokens, place: int) -> list[int]:
        """What each new node sees of the tree, where the first of them has this place."""
        found = []
        for own, (node, parent) in enumerate(zip(new.nodes, new.parents, strict=True), start=place):
            seen = self._seen[node] = self._seen[parent] | 1 << own
            found.append(seen)
        return found


def _bits(numbers: Sequence[int], count: int) -> NDArray[np.bool_]:
    """The lowest ``count`` bits of each number, the lowest first: ``(len(numbers), count)``."""
    width = (count + 7) // 8
    packed = np.frombuffer(b"".join(number.to_bytes(width, "little") for number in numbers), dtype=np.uint8)
    return np.unpackbits(packed.reshape(len(numbers), width), axis=1, count=count, bitorder="little").view(np.bool_)


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """What a pass adds to a tree: what is left of its prompt, and new nodes; or a part of the prompt alone.

    Attributes:
        tree: what grows.
        new: the nodes to compute.
        wanted: whether the logits of each of the last ``len(wanted)`` tokens fed are wanted (the prompt's among them).
        next_tokens: ``(n,)`` int64, ascending; the tokens of which logits are wanted. None: the whole vocabulary's.
        most_prompt_tokens: of the prompt, at most so many; fewer than are left only without new nodes and wanted
            logits. None: all that are left.
    """

    tree: TokenTree
    new: NewTokens
    wanted: Sequence[bool] | NDArray[np.bool_]
    next_tokens: NDArray[np.int64] | None = None
    most_prompt_tokens: int | None = None

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt to feed; 0 once it has been fed."""
        left = self.tree.prompt_left
        return left if self.most_prompt_tokens is None else min(left, self.most_prompt_tokens)

    @property
    def num_tokens(self) -> int:
        """Tokens to feed."""
        return self.num_prompt_tokens + len(self.new.nodes)


def grow(growths: Sequence[Growth]) -> list[torch.Tensor]:
    """Feed what is new of several trees in one forward pass; if it fails, all trees stay as they were.

    Args:
        growths: at least one, of different trees of one forward; several only if its `most_tokens` is not 0.

    Returns:
        For each ``(number wanted, vocabulary)`` logits, or ``(number wanted, n)`` of its ``next_tokens``; rows in the
        order of its tokens.
    """
    feeds = [growth.tree._feed(growth) for growth in growths]
    logits = growths[0].tree._forward.feed(feeds)
    for growth, feed in zip(growths, feeds, strict=True):
        growth.tree._length += len(feed.fed.tokens)
    return logits
