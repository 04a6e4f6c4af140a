"""Baselines: rankers without a language model, evaluated on the same rows.

Each one scores items; `ranked_lists` masks seen items, scores titles and ranks them. Where several items share a title,
counts and probabilities add up, as the search's prior and its answers by popularity have it; of other scores the best
item's is the title's. Equal scores rank by popularity, so a ranker that knows nothing about a history gives the most
popular titles.
"""

from __future__ import annotations

import importlib
import itertools
import warnings
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from igd_core.errors import InputError
from igd_core.evaluation.metrics import NONE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from igd_core.artifact import Artifact
    from igd_core.evaluation.methods import Seen
    from igd_core.evaluation.sasrec_settings import SASRecSettings
    from igd_core.ids import ItemIndex

BASELINES = ("popular", "repeat", "scorer", "transitions", "itemknn", "bpr", "sasrec")
ADDING_UP = ("popular", "scorer", "transitions")
"""Those whose scores of items that share a title add up (`Ranker.adds_up`)."""
NEED_TRAINING = ("transitions", "itemknn", "bpr", "sasrec")
OF_IMPLICIT = {"itemknn": "implicit.nearest_neighbours", "bpr": "implicit.bpr"}
"""Baselines that another library makes, and where."""
_BLOCK_SCORES = 1 << 23


class Ranker(Protocol):
    """A baseline: scores all items after a history."""

    @property
    def adds_up(self) -> bool:
        """Whether the sum of several items' scores says how likely it is that one of them is chosen."""
        ...

    def scores(self, histories: Sequence[Sequence[ItemIndex]]) -> NDArray[np.float64]:
        """``(histories, num_items)`` float64, higher is better, finite."""
        ...


class MostPopular:
    """The same list for every user: titles by training interactions."""

    adds_up = True

    def __init__(self, artifact: Artifact) -> None:
        self._frequency = artifact.catalogue.frequency.astype(np.float64)

    def scores(self, histories: Sequence[Sequence[ItemIndex]]) -> NDArray[np.float64]:
        """Training interactions of each item."""
        return np.tile(self._frequency, (len(histories), 1))


class RepeatHistory:
    """The history's items, the latest first, then the most popular items."""

    adds_up = False

    def __init__(self, artifact: Artifact) -> None:
        self._num_items = len(artifact.catalogue)

    def scores(self, histories: Sequence[Sequence[ItemIndex]]) -> NDArray[np.float64]:
        """Position of each item's last occurrence in the history, 0 where it does not occur."""
        scores = np.zeros((len(histories), self._num_items))
        for row, history in enumerate(histories):
            for place, item in enumerate(history, start=1):
                scores[row, item] = place
        return scores


class LastItemTransitions:
    """First-order Markov chain: how often each item followed the history's last item in training, then popularity."""

    adds_up = True

    def __init__(self, artifact: Artifact, sequences: Sequence[NDArray[np.int32]]) -> None:
        self._num_items = len(artifact.catalogue)
        self._followers: dict[int, dict[int, int]] = {}
        for sequence in sequences:
            for item, follower in itertools.pairwise(sequence.tolist()):
                counts = self._followers.setdefault(item, {})
                counts[follower] = counts.get(follower, 0) + 1

    def scores(self, histories: Sequence[Sequence[ItemIndex]]) -> NDArray[np.float64]:
        """Count of each transition from the last item."""
        scores = np.zeros((len(histories), self._num_items))
        for row, history in enumerate(histories):
            followers = self._followers.get(history[-1], {}) if history else {}
            scores[row, list(followers)] = list(followers.values())
        return scores


class ArtifactScorer:
    """The item scorer that the artifact holds, without a model."""

    adds_up = True

    def __init__(self, artifact: Artifact) -> None:
        """Raises InputError where it holds none."""
        if artifact.scorer is None:
            raise InputError("baseline 'scorer': the artifact holds no item scorer; `igd build --scorer` makes one")
        self._scorer = artifact.scorer
        counted = artifact.catalogue.frequency + 1.0
        self._background = counted / counted.sum()

    def scores(self, histories: Sequence[Sequence[ItemIndex]]) -> NDArray[np.float64]:
        """Probability of each item."""
        scores = np.empty((len(histories), len(self._background)))
        for row, history in enumerate(histories):
            mass = self._scorer.mass(history)
            scores[row] = mass.background * self._background
            if mass.items is None:
                scores[row] += mass.mass
            else:
                np.add.at(scores[row], mass.items, mass.mass)
        return scores


def require_library(name: str) -> None:
    """See to it that a baseline can be made, before work that would be lost.

    Raises:
        InputError: implicit, or what it needs, is not installed.
    """
    if name not in OF_IMPLICIT:
        return
    try:
        importlib.import_module(OF_IMPLICIT[name])
    except ImportError as error:  # also of what it needs: pip's --no-deps leaves that out
        raise InputError(f"baseline {name}: {error} (pip install 'igd-recommender[eval]')") from None


class ItemNeighbours:
    """Item-based nearest neighbours with cosine similarity, from the library implicit."""

    adds_up = False

    def __init__(self, artifact: Artifact, sequences: Sequence[NDArray[np.int32]], *, neighbours: int = 200) -> None:
        """Count which items the same users chose.

        Args:
            artifact: the catalogue.
            sequences: what each user chose in training.
            neighbours: most similar items kept for an item.

        Raises:
            InputError: implicit, or what it needs, is not installed.
        """
        require_library("itemknn")
        from implicit.nearest_neighbours import CosineRecommender

        model = CosineRecommender(K=neighbours, num_threads=1)
        _fit(model, sequences, len(artifact.catalogue))
        self._similarity = model.similarity

    def scores(self, histories: Sequence[Sequence[ItemIndex]]) -> NDArray[np.float64]:
        """Sum of each item's similarities to the items of the history."""
        scores = np.zeros((len(histories), self._similarity.shape[0]))
        for row, history in enumerate(histories):
            if history:
                scores[row] = np.asarray(self._similarity[sorted(set(history))].sum(axis=0)).ravel()
        return scores


class BayesianRanking:
    """Matrix factorisation with Bayesian personalised ranking (Rendle et al., arXiv 1205.2618), from implicit.

    A history is the mean of its items' factors: the people of evaluation rows need not be those of training.
    """

    adds_up = False

    def __init__(self, artifact: Artifact, sequences: Sequence[NDArray[np.int32]], *, seed: int) -> None:
        """Learn 100 factors in 100 passes, as the library does by default; one thread, so that the seed decides.

        Raises:
            InputError: implicit, or what it needs, is not installed.
        """
        require_library("bpr")
        from implicit.bpr import BayesianPersonalizedRanking

        model = BayesianPersonalizedRanking(random_state=seed, num_threads=1, use_gpu=False)
        _fit(model, sequences, len(artifact.catalogue))
        factors = np.asarray(model.item_factors, dtype=np.float64)
        self._factors, self._bias = factors[:, :-1], factors[:, -1]  # implicit keeps the bias as the last factor

    def scores(self, histories: Sequence[Sequence[ItemIndex]]) -> NDArray[np.float64]:
        """Product with each item's factors, and its bias."""
        people = np.zeros((len(histories), self._factors.shape[1]))
        for row, history in enumerate(histories):
            if history:
                people[row] = self._factors[sorted(set(history))].mean(axis=0)
        return people @ self._factors.T + self._bias


def _fit(model: Any, sequences: Sequence[NDArray[np.int32]], num_items: int) -> None:  # noqa: ANN401  # untyped library
    """Show one of implicit's models who chose what; an item chosen twice counts once."""
    from scipy.sparse import csr_matrix

    person = np.repeat(np.arange(len(sequences)), [len(sequence) for sequence in sequences])
    items = np.concatenate(list(sequences))
    chosen = csr_matrix((np.ones(len(items)), (person, items)), shape=(len(sequences), num_items))
    chosen.data[:] = 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # implicit warns about a matrix format that it makes itself
        model.fit(chosen, show_progress=False)


_OF_ARTIFACT: Mapping[str, Callable[[Artifact], Ranker]] = {
    "popular": MostPopular,
    "repeat": RepeatHistory,
    "scorer": ArtifactScorer,
}


def make_ranker(
    name: str,
    artifact: Artifact,
    sequences: Sequence[NDArray[np.int32]] | None,
    *,
    seed: int,
    scratch: Path,
    sasrec: SASRecSettings | None = None,
) -> Ranker:
    """Make a baseline by name, and train it if it learns.

    Args:
        name: one of `BASELINES`.
        artifact: the catalogue and its frequencies.
        sequences: of training, as `training_sequences` makes them; None if there are none.
        seed: for random numbers in training.
        scratch: folder for training's own files (sasrec's losses).
        sasrec: None for its defaults.

    Raises:
        InputError: no such baseline, one that learns without training rows, or a library that is not installed.
    """
    if name not in BASELINES:
        raise InputError(f"baseline {name!r}: one of {', '.join(BASELINES)}")
    if name in _OF_ARTIFACT:
        return _OF_ARTIFACT[name](artifact)
    if sequences is None:
        raise InputError(f"baseline {name!r}: needs training rows, --train FILE")
    if name == "transitions":
        return LastItemTransitions(artifact, sequences)
    if name == "itemknn":
        return ItemNeighbours(artifact, sequences)
    if name == "bpr":
        return BayesianRanking(artifact, sequences, seed=seed)
    from igd_core.evaluation.sasrec import SASRec

    return SASRec.train(sequences, num_items=len(artifact.catalogue), seed=seed, scratch=scratch, settings=sasrec)


def ranked_lists(
    ranker: Ranker, histories: Sequence[Sequence[ItemIndex]], artifact: Artifact, *, depth: int, seen: Seen
) -> Iterator[list[int]]:
    """The ``depth`` best titles for each history, as the best item of each; a title is seen if any of its items is."""
    trie = artifact.trie
    by_popularity = artifact.popular_leaves()
    owner = np.repeat(np.arange(trie.num_leaves), np.diff(trie.leaf_start))
    block = max(1, _BLOCK_SCORES // len(artifact.catalogue))
    for first in range(0, len(histories), block):
        part = histories[first : first + block]
        scores = ranker.scores(part)
        if seen == "excluded":
            for row, history in enumerate(part):
                scores[row, list(artifact.of_same_path_or_title(history))] = -np.inf
        scores = scores[:, trie.leaf_items]
        best = np.maximum.reduceat(scores, trie.leaf_start[:-1], axis=1)
        titles = np.add.reduceat(scores, trie.leaf_start[:-1], axis=1) if ranker.adds_up else best
        for row in range(len(part)):
            ranked = by_popularity[np.argsort(-titles[row, by_popularity], kind="stable")[:depth]]
            ranked = ranked[np.isfinite(titles[row, ranked])]
            is_best = scores[row] == best[row][owner]
            yield [_shown(leaf, is_best, artifact) for leaf in ranked.tolist()]


def _shown(leaf: int, is_best: NDArray[np.bool_], artifact: Artifact) -> int:
    """The item of a leaf with the best score; the most popular of several."""
    trie = artifact.trie
    places = slice(int(trie.leaf_start[leaf]), int(trie.leaf_start[leaf + 1]))
    items = trie.leaf_items[places][is_best[places]]
    return int(items[np.argmax(artifact.catalogue.frequency[items])]) if len(items) else NONE
