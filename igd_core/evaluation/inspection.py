"""Statistics of an information-gain table: how many tokens decide nothing, and which tokens decide the most.

Every figure is a sum over edges weighted by the leaves below them; no loop visits single items.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from igd_core.artifact import Artifact

_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisiveToken:
    """A token, and how much it decides over the whole catalogue.

    Attributes:
        token_id: its id in the vocabulary.
        edges: trie edges that carry it.
        expected_gain: nats; information gain times the prior mass below, summed over its edges.
        mean_gain: nats; mean over its edges.
    """

    token_id: int
    edges: int
    expected_gain: float
    mean_gain: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionGain:
    """Information gain at one token position, from 1, over distinct paths; quantiles 10, 25, 50, 75 and 90 %."""

    position: int
    paths: int
    zero_share: float
    quantiles: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What `igd inspect` reports.

    Attributes:
        tokens_per_path: mean over distinct paths, newline and EOS included.
        zero_share_catalogue: share of zero-IG tokens, each distinct path counted once.
        zero_share_frequency: the same, each path counted as often as its items were chosen.
        decisions_per_path: mean number of tokens with positive IG, over distinct paths.
        most_decisions: the largest number of such tokens in one path.
        first_tokens: number of distinct first tokens.
        decisive_tokens: by falling expected gain.
        positions: by rising position.
    """

    tokens_per_path: float
    zero_share_catalogue: float
    zero_share_frequency: float
    decisions_per_path: float
    most_decisions: int
    first_tokens: int
    decisive_tokens: tuple[DecisiveToken, ...]
    positions: tuple[PositionGain, ...]


def inspect_artifact(artifact: Artifact, *, top: int = 20) -> Inspection:
    """Compute the statistics; keep the ``top`` most decisive tokens."""
    trie, gain = artifact.trie, artifact.gains.information_gain.astype(np.float64)
    first, end = trie.node_first[1:], trie.node_end[1:]
    paths_below = (end - first).astype(np.int64)
    mass = np.concatenate(([0.0], np.cumsum(artifact.leaf_prior)))
    mass_below = mass[end] - mass[first]
    zero = gain == 0
    decisions = _count_on_paths(first[~zero], end[~zero], trie.num_leaves)
    return Inspection(
        tokens_per_path=float(paths_below.sum() / trie.num_leaves),
        zero_share_catalogue=float(paths_below[zero].sum() / paths_below.sum()),
        zero_share_frequency=float(mass_below[zero].sum() / mass_below.sum()),
        decisions_per_path=float(decisions.mean()),
        most_decisions=int(decisions.max()),
        first_tokens=len(trie.children(0)),  # type: ignore[arg-type]
        decisive_tokens=_decisive_tokens(trie.edge_token, gain, mass_below, top),
        positions=tuple(
            _at_position(position, paths_below[begin - 1 : stop - 1], gain[begin - 1 : stop - 1])
            for position, (begin, stop) in enumerate(
                zip(trie.level_start[1:-1].tolist(), trie.level_start[2:].tolist(), strict=True), start=1
            )
        ),
    )


def _count_on_paths(first: NDArray[np.int32], end: NDArray[np.int32], num_leaves: int) -> NDArray[np.int64]:
    """How many of the given leaf ranges cover each leaf."""
    steps = np.bincount(first, minlength=num_leaves + 1) - np.bincount(end, minlength=num_leaves + 1)
    return np.cumsum(steps)[:num_leaves]


def _decisive_tokens(
    token: NDArray[np.int32], gain: NDArray[np.float64], mass_below: NDArray[np.float64], top: int
) -> tuple[DecisiveToken, ...]:
    ids, inverse = np.unique(token, return_inverse=True)
    edges = np.bincount(inverse)
    expected = np.bincount(inverse, weights=gain * mass_below)
    mean = np.bincount(inverse, weights=gain) / edges
    return tuple(
        DecisiveToken(
            token_id=int(ids[i]), edges=int(edges[i]), expected_gain=float(expected[i]), mean_gain=float(mean[i])
        )
        for i in np.argsort(-expected, kind="stable")[:top]
    )


def _at_position(position: int, paths: NDArray[np.int64], gain: NDArray[np.float64]) -> PositionGain:
    order = np.argsort(gain, kind="stable")
    reached = np.cumsum(paths[order])
    at = np.searchsorted(reached, [q * reached[-1] for q in _QUANTILES])
    return PositionGain(
        position=position,
        paths=int(reached[-1]),
        zero_share=float(paths[gain == 0].sum() / reached[-1]),
        quantiles=tuple(gain[order[at]].tolist()),
    )
