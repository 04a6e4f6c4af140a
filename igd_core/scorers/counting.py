"""From what people chose in training to weights between items: transitions, or similarities."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from igd_core.scorers.rows import SparseRows

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

_MOST_CHOSEN = 200


def transition_rows(sequences: Sequence[NDArray[np.int32]], *, num_items: int, most: int) -> SparseRows:
    """Count how often each item followed each other one.

    Args:
        sequences: of each person, item rows, oldest first.
        num_items: of the catalogue.
        most: followers kept of an item, the commonest.
    """
    lengths = np.array([len(each) for each in sequences], np.int64)
    items = np.concatenate([np.empty(0, np.int32), *sequences]).astype(np.int64)
    follows = np.ones(len(items), bool)  # not the first of its person
    follows[(lengths.cumsum() - lengths)[lengths > 0]] = False
    at = np.flatnonzero(follows)
    pairs, counts = np.unique(items[at - 1] * num_items + items[at], return_counts=True)
    return SparseRows.strongest(pairs // num_items, pairs % num_items, counts, num_items=num_items, most=most)


def neighbour_rows(sequences: Sequence[NDArray[np.int32]], *, num_items: int, most: int) -> SparseRows:
    """Cosine similarity of the sets of people who chose two items; an item is no neighbour of its own.

    Of a person, the 200 latest choices count, so that one of thousands does not make millions of pairs.

    Args:
        sequences: of each person, item rows, oldest first.
        num_items: of the catalogue.
        most: neighbours kept of an item, the most similar.
    """
    chosen = choice_sets(sequences)
    people = np.bincount(np.concatenate([np.empty(0, np.int32), *chosen]), minlength=num_items)
    sources, targets, weights = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0)]
    for item, choices in chosen_with(chosen, num_items=num_items):
        others, together = np.unique(choices, return_counts=True)
        others, together = others[others != item], together[others != item]
        similarity = together / np.sqrt(people[others] * people[item])
        best = np.lexsort((others, -similarity))[:most]  # at once: all pairs of a large catalogue fit nowhere
        sources.append(np.full(len(best), item))
        targets.append(others[best].astype(np.int64))
        weights.append(similarity[best])
    return SparseRows.strongest(
        np.concatenate(sources), np.concatenate(targets), np.concatenate(weights), num_items=num_items, most=most
    )


def choice_sets(sequences: Sequence[NDArray[np.int32]]) -> list[NDArray[np.int32]]:
    """Of each person the different items among the 200 latest choices, ascending."""
    return [np.unique(each[-_MOST_CHOSEN:]) for each in sequences]


def chosen_with(chosen: Sequence[NDArray[np.int32]], *, num_items: int) -> Iterator[tuple[int, NDArray[np.int32]]]:
    """Each item that was chosen, ascending, and all that its people chose, one behind the other."""
    person = np.repeat(np.arange(len(chosen)), [len(each) for each in chosen])
    items = np.concatenate([np.empty(0, np.int32), *chosen])
    people = np.bincount(items, minlength=num_items)
    by_item = np.argsort(items, kind="stable")
    bounds = np.concatenate(([0], people.cumsum()))
    for item in np.flatnonzero(people).tolist():
        who = person[by_item[bounds[item] : bounds[item + 1]]]
        yield item, np.concatenate([chosen[each] for each in who.tolist()])
