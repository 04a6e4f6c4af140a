"""Catalogues of any size that look like real ones: recombined words of real titles, and a Zipf-like popularity.

A first-order Markov chain over title words keeps what a prefix tree feels: a few openings start most titles, common
word pairs recur, and titles part after a shared beginning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from igd_core.datasets.items_file import read_items
from igd_core.datasets.movielens import read_movielens
from igd_core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    WordRows: TypeAlias = NDArray[np.int32]

MEAN_WORDS = 6.4
"""Words a title, before repeats are dropped (short ones repeat most, so larger catalogues have longer titles).

For about 12 SmolLM2 tokens: 1.76 a word in Video Games titles, 1.68 in MovieLens-100K's."""

_MAX_WORDS = 20
_PAD = -1
_ROUND_MARGIN = 1.05  # about 1 % of the walks of a large catalogue repeat an earlier one
_MIN_YIELD = 0.01


def real_titles(items: Path | None = None) -> Sequence[str]:
    """Titles to recombine, cleaned: of an items file, or of the MovieLens-100K films in the ``recbole`` wheel.

    Raises:
        DataError: the file is missing or has no ``title`` column, or none was given and the wheel is not installed.
        CatalogueError: an item of the file cannot stand in a catalogue.
    """
    if items is not None:
        return read_items(items, on_empty="skip").catalogue.titles
    return read_movielens(year_in_title=False).catalogue.titles


@dataclass(frozen=True, slots=True, kw_only=True)
class WordChain:
    """First-order Markov chain over title words, in compressed sparse rows.

    State ``len(words)`` stands between two titles: it ends the one before and begins the next. A transition seen twice
    is stored twice, so that a uniform draw within a row follows the observed frequencies.

    Attributes:
        words: the distinct words, sorted.
        row_start: ``(len(words) + 2,)`` int64; state s is followed by ``successor[row_start[s]:row_start[s + 1]]``.
        successor: ``(num_transitions,)`` int32 states.
    """

    words: tuple[str, ...]
    row_start: NDArray[np.int64]
    successor: NDArray[np.int32]

    @classmethod
    def from_titles(cls, titles: Sequence[str]) -> WordChain:
        """Count the word pairs of ``titles``, which must each hold a word.

        Raises:
            DataError: there is no title.
        """
        if not titles:
            raise DataError("no titles to recombine")
        split = [title.split() for title in titles]
        words = sorted({word for title in split for word in title})
        id_of = {word: number for number, word in enumerate(words)}
        boundary = len(words)
        stream = np.fromiter(
            (state for title in split for state in (boundary, *map(id_of.__getitem__, title))), dtype=np.int32
        )
        following = np.roll(stream, -1)  # the last title is followed by the boundary that opens the first
        row_start = np.zeros(boundary + 2, dtype=np.int64)
        np.cumsum(np.bincount(stream, minlength=boundary + 1), out=row_start[1:])
        return cls(words=tuple(words), row_start=row_start, successor=following[np.argsort(stream, kind="stable")])

    def walk(self, lengths: NDArray[np.int64], rng: np.random.Generator) -> WordRows:
        """One walk of ``lengths[i]`` words for each i; a walk that reaches a title's end goes on with another title.

        Returns:
            ``(len(lengths), lengths.max())`` int32 word ids, padded with -1.
        """
        boundary = len(self.words)
        state = np.full(len(lengths), boundary, dtype=np.int32)
        rows = np.full((len(lengths), int(lengths.max())), _PAD, dtype=np.int32)
        for step in range(rows.shape[1]):
            state = self._step(state, rng)
            ended = np.flatnonzero(state == boundary)
            state[ended] = self._step(state[ended], rng)
            live = lengths > step
            rows[live, step] = state[live]
        return rows

    def _step(self, state: NDArray[np.int32], rng: np.random.Generator) -> NDArray[np.int32]:
        start = self.row_start[state]
        width = self.row_start[state + 1] - start
        drawn: NDArray[np.int32] = self.successor[start + (rng.random(len(state)) * width).astype(np.int64)]
        return drawn


def synthetic_titles(source: Sequence[str], *, n: int, seed: int = 0, mean_words: float = MEAN_WORDS) -> list[str]:
    """Make ``n`` distinct titles from the words of ``source``; the same arguments give the same titles.

    Time and memory grow linearly with n (1,000,000 titles: about 6 s and 0.6 GiB on one core).

    Args:
        source: real titles, as from :func:`real_titles`.
        n: how many, at least 1.
        seed: of the random walks.
        mean_words: mean number of words a title, above 1; the count is 1 + Poisson, at most 20.

    Raises:
        DataError: ``source`` has too few words to make n distinct titles.
    """
    chain = WordChain.from_titles(source)
    rng = np.random.default_rng(seed)
    rows: WordRows = np.empty((0, _MAX_WORDS), dtype=np.int32)
    while len(rows) < n:
        missing = n - len(rows)
        drawn = int(missing * _ROUND_MARGIN) + 64
        fresh = _drawn(chain, drawn, mean_words, rng)
        known = len(rows)
        rows = _distinct(np.concatenate([rows, fresh]))[:n]
        if len(rows) < n and len(rows) - known < _MIN_YIELD * drawn:
            raise DataError(f"{len(source)} titles recombine into only {len(rows)} distinct ones; {n} wanted")
    return _spelled(chain.words, rows)


def title_blocks(
    chain: WordChain, *, n: int, block: int, seed: int = 0, mean_words: float = MEAN_WORDS
) -> Iterator[list[str]]:
    """``n`` distinct titles, some at a time, for catalogues that are never in memory; 8 bytes a title are.

    Args:
        chain: of the words of real titles.
        n: how many, at least 1.
        block: about how many at a time.
        seed: of the random walks.
        mean_words: as `synthetic_titles`.

    Raises:
        DataError: the chain has too few words to make n distinct titles.
    """
    rng = np.random.default_rng(seed)
    seen = np.empty(0, dtype=np.uint64)
    while len(seen) < n:
        drawn = min(block, int((n - len(seen)) * _ROUND_MARGIN) + 64)
        rows = _distinct(_drawn(chain, drawn, mean_words, rng))
        digest = _digest(rows)
        at = np.minimum(np.searchsorted(seen, digest), max(len(seen) - 1, 0))
        is_new = seen[at] != digest if len(seen) else np.ones(len(rows), bool)
        kept = np.flatnonzero(is_new)[: n - len(seen)]
        if len(kept) < min(_MIN_YIELD * drawn, n - len(seen)):
            raise DataError(f"{len(chain.words)} words recombine into only {len(seen)} distinct titles; {n} wanted")
        seen = np.sort(np.concatenate([seen, digest[kept]]), kind="stable")  # two sorted runs: it merges them
        yield _spelled(chain.words, rows[kept])


def _drawn(chain: WordChain, n: int, mean_words: float, rng: np.random.Generator) -> WordRows:
    """``(n, _MAX_WORDS)`` word ids of random walks, padded."""
    lengths = np.minimum(1 + rng.poisson(mean_words - 1, size=n), _MAX_WORDS)
    rows = np.full((n, _MAX_WORDS), _PAD, dtype=np.int32)
    walks = chain.walk(lengths, rng)
    rows[:, : walks.shape[1]] = walks
    return rows


def _distinct(rows: WordRows) -> WordRows:
    """Drop repeated rows, keeping first occurrences in order."""
    _, first = np.unique(_digest(rows), return_index=True)
    return rows[np.sort(first)]


def _digest(rows: WordRows) -> NDArray[np.uint64]:
    """A 64-bit polynomial hash of each row, instead of a lexicographic sort of 80-byte rows.

    A collision (chance 3e-8 at a million) only drops one title more.
    """
    digest = np.zeros(len(rows), dtype=np.uint64)
    for column in rows.T:
        digest = digest * np.uint64(0x9E3779B97F4A7C15) + (column + 2).astype(np.uint64)
        digest ^= digest >> np.uint64(29)
    return digest


def _spelled(words: Sequence[str], rows: WordRows) -> list[str]:
    lengths = np.count_nonzero(rows != _PAD, axis=1).tolist()
    padded = [*words, ""]  # index -1
    return [
        " ".join([padded[word] for word in row[:length]]) for row, length in zip(rows.tolist(), lengths, strict=True)
    ]


def zipf_counts(n: int, *, seed: int = 0, exponent: float = 1.0, total_per_item: float = 20.0) -> NDArray[np.int64]:
    """Interaction counts that fall as ``rank ** -exponent``, in random order of items.

    Args:
        n: items, at least 1.
        seed: of the order.
        exponent: of Zipf's law; 0 is uniform.
        total_per_item: mean count before each is rounded down and raised to at least 1, so that no item is cold.

    Returns:
        ``(n,)`` int64, every count at least 1.
    """
    share = np.arange(1, n + 1, dtype=np.float64) ** -exponent
    counts = np.maximum(share * (total_per_item * n / share.sum()), 1.0).astype(np.int64)
    return np.random.default_rng(seed).permutation(counts)
