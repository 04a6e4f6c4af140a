"""Random catalogues for hypothesis: token paths that share prefixes, and priors from even to extreme."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from factories import artifact_of_paths, flat
from hypothesis import strategies as st

from igd_core.catalogue.trie import TokenTrie

if TYPE_CHECKING:
    from oracles import Path

    from igd_core.artifact import Artifact

EOS_ID = 0


def token_paths(*, max_items: int = 24, max_length: int = 6, alphabet: int = 3) -> st.SearchStrategy[list[Path]]:
    """Prefix-free paths of few tokens, each ended by EOS; whole paths may stand several times."""
    path = st.lists(st.integers(1, alphabet), max_size=max_length).map(lambda tokens: (*tokens, EOS_ID))
    return st.lists(path, min_size=1, max_size=max_items)


def frequencies(count: int) -> st.SearchStrategy[list[int]]:
    """Interaction counts, not all 0: cold items, even ones, and extreme ratios."""
    one = st.one_of(st.integers(0, 20), st.sampled_from([0, 1, 10**9]))
    return st.lists(one, min_size=count, max_size=count).filter(any)


@dataclass(frozen=True, slots=True, kw_only=True)
class PathsAndPrior:
    """A random catalogue: item i has ``paths[i]`` and was chosen ``counts[i]`` times."""

    paths: list[Path]
    counts: list[int]

    @property
    def prior(self) -> list[float]:
        total = sum(self.counts)
        return [count / total for count in self.counts]

    def trie(self) -> TokenTrie:
        return TokenTrie.build(*flat(self.paths))

    def artifact(self) -> Artifact:
        return artifact_of_paths(self.paths, self.counts)


@st.composite
def catalogues(draw: st.DrawFn, *, max_items: int = 24, max_length: int = 6) -> PathsAndPrior:
    """Paths and counts that go together."""
    paths = draw(token_paths(max_items=max_items, max_length=max_length))
    return PathsAndPrior(paths=paths, counts=draw(frequencies(len(paths))))


@st.composite
def item_lists(draw: st.DrawFn, num_items: int) -> tuple[list[int] | None, list[int]]:
    """An allow list (or None) and a block list; both may repeat items."""
    rows = st.lists(st.integers(0, num_items - 1), max_size=2 * num_items)
    return draw(st.none() | rows), draw(rows)


def leaf_prior(catalogue: PathsAndPrior, trie: TokenTrie) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Prior of each leaf, summed in a loop."""
    prior = catalogue.prior
    return np.array([sum(prior[item] for item in trie.items_of(leaf)) for leaf in range(trie.num_leaves)])  # type: ignore[arg-type]
