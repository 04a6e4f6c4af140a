from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from bench.synthetic import WordChain, real_titles, synthetic_titles, title_blocks, zipf_counts
from hypothesis import given
from hypothesis import strategies as st

from igd_core.errors import DataError

SOURCE = ("The Last of the Wild", "The Wild Bunch", "Night of the Hunter", "Last Night", "Hunter 2", "Wild Night 2")
titles = st.lists(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=5).map(" ".join), min_size=1, max_size=12)


def allowed_pairs(source: Sequence[str]) -> set[tuple[str, str]]:
    """Word pairs that stand in a title, or where one title ends and another begins."""
    split = [title.split() for title in source]
    inside = {pair for words in split for pair in pairwise(words)}
    return inside | {(ending[-1], beginning[0]) for ending in split for beginning in split}


@given(titles, st.integers(0, 2**32 - 1))
def test_every_pair_of_neighbouring_words_is_one_of_the_source(source: Sequence[str], seed: int) -> None:
    chain = WordChain.from_titles(source)
    lengths = np.arange(1, 9)
    rows = chain.walk(lengths, np.random.default_rng(seed))
    firsts = {title.split()[0] for title in source}
    for length, row in zip(lengths, rows.tolist(), strict=True):
        words = [chain.words[word] for word in row[:length]]
        assert row[length:] == [-1] * (8 - length)
        assert words[0] in firsts
        assert set(pairwise(words)) <= allowed_pairs(source)


def test_words_follow_each_other_as_often_as_in_the_source() -> None:
    chain = WordChain.from_titles(["a b", "a b", "a b", "a c"])
    second = chain.walk(np.full(20_000, 2), np.random.default_rng(0))[:, 1]
    assert np.mean(second == chain.words.index("b")) == pytest.approx(0.75, abs=0.02)


def test_titles_are_distinct_and_as_many_as_asked() -> None:
    made = synthetic_titles(SOURCE, n=3000, seed=1)
    assert len(made) == len(set(made)) == 3000
    assert {word for title in made for word in title.split()} <= {word for title in SOURCE for word in title.split()}


def test_titles_depend_on_the_seed_alone() -> None:
    assert synthetic_titles(SOURCE, n=200, seed=3) == synthetic_titles(SOURCE, n=200, seed=3)
    assert synthetic_titles(SOURCE, n=200, seed=3) != synthetic_titles(SOURCE, n=200, seed=4)


def test_a_larger_catalogue_needs_no_longer_titles_than_asked() -> None:
    made = synthetic_titles(real_titles(), n=20_000, mean_words=6.0)
    assert np.mean([len(title.split()) for title in made]) == pytest.approx(6.0, abs=0.3)


def test_a_source_too_small_for_the_catalogue_is_refused() -> None:
    with pytest.raises(DataError, match=r"1 titles recombine into only \d+ distinct ones; 21 wanted"):
        synthetic_titles(["again"], n=21)


def test_titles_in_blocks_are_distinct_over_all_blocks_and_as_many_as_asked() -> None:
    chain = WordChain.from_titles(SOURCE)
    blocks = list(title_blocks(chain, n=3000, block=400, seed=1))
    made = [title for block in blocks for title in block]
    assert len(made) == len(set(made)) == 3000
    assert all(0 < len(block) <= 400 for block in blocks)
    with pytest.raises(DataError, match=r"1 words recombine into only \d+ distinct titles; 21 wanted"):
        list(title_blocks(WordChain.from_titles(["again"]), n=21, block=5))


def test_no_titles_at_all_are_refused() -> None:
    with pytest.raises(DataError, match="no titles"):
        synthetic_titles([], n=1)


def test_real_titles_are_the_films_of_the_wheel_or_the_column_of_a_file(tmp_path: Path) -> None:
    assert len(real_titles()) == 1682
    items = tmp_path / "items.csv"
    items.write_text('item_id,title\n1,"Tom &amp; Jerry"\n2,\n3,Kirby  64\n')
    assert list(real_titles(items)) == ["Tom & Jerry", "Kirby 64"]


def test_a_missing_items_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.csv"):
        real_titles(tmp_path / "nowhere.csv")


def test_counts_fall_as_one_over_the_rank_in_an_order_of_the_seed() -> None:
    counts = zipf_counts(1000, seed=5, total_per_item=200.0)
    ranked = np.sort(counts)[::-1]
    assert ranked[0] == pytest.approx(10 * ranked[9], rel=0.01)
    assert ranked[0] == pytest.approx(100 * ranked[99], rel=0.01)
    assert counts.sum() == pytest.approx(200_000, rel=0.01)
    assert not np.array_equal(counts, zipf_counts(1000, seed=6, total_per_item=200.0))


@given(st.integers(1, 300), st.floats(0.0, 3.0))
def test_no_item_is_cold(n: int, exponent: float) -> None:
    counts = zipf_counts(n, exponent=exponent)
    assert counts.shape == (n,)
    assert counts.min() >= 1
