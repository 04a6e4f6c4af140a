"""Baselines on catalogues small enough to know the answer."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from factories import artifact_of_paths

from igd_core.datasets.interactions import Interactions
from igd_core.datasets.rows import HistoryRows
from igd_core.datasets.sequences import read_training, training_sequences
from igd_core.datasets.sources import DEFAULT_READING
from igd_core.errors import InputError
from igd_core.evaluation.baselines import MostPopular, RepeatHistory, make_ranker, ranked_lists
from igd_core.evaluation.sasrec import SASRec
from igd_core.evaluation.sasrec_settings import SASRecSettings
from igd_core.ids import ItemIndex
from igd_core.scorers.counting import transition_rows
from igd_core.scorers.sparse import SparseScorer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from igd_core.artifact import Artifact
    from igd_core.evaluation.baselines import Ranker
    from igd_core.evaluation.methods import Seen

# Items 1 and 4 share a title.
PATHS = [(5, 0), (6, 0), (7, 0), (8, 0), (6, 0)]


@pytest.fixture
def five() -> Artifact:
    return artifact_of_paths(PATHS, [10, 20, 30, 0, 5])


def _lists(ranker: Ranker, artifact: Artifact, *histories: Sequence[int], seen: Seen = "allowed") -> list[list[int]]:
    rows = [[ItemIndex(item) for item in history] for history in histories]
    return list(ranked_lists(ranker, rows, artifact, depth=4, seen=seen))


def test_the_most_popular_are_one_item_a_title(five: Artifact) -> None:
    assert _lists(MostPopular(five), five, [0], []) == [[2, 1, 0, 3]] * 2


def test_counts_of_items_that_share_a_title_add_up(tmp_path: Path) -> None:
    many = artifact_of_paths([(5, 0), (6, 0), (6, 0), (6, 0), (7, 0)], [30, 11, 12, 10, 20])
    assert _lists(MostPopular(many), many, []) == [[2, 0, 4]]
    sequences = [np.array(items, dtype=np.int32) for items in ([0, 4], [0, 4], [0, 1], [0, 2], [0, 3])]
    ranker = make_ranker("transitions", many, sequences, seed=0, scratch=tmp_path)
    assert _lists(ranker, many, [0]) == [[2, 4, 0]]
    rows = transition_rows(sequences, num_items=5, most=5)
    scored = replace(many, scorer=SparseScorer(rows=rows, decay=0.0, backoff=0.01, fingerprint=""))
    ranker = make_ranker("scorer", scored, None, seed=0, scratch=tmp_path)
    assert _lists(ranker, scored, [0]) == [[2, 4, 0]]
    assert _lists(RepeatHistory(many), many, [1, 2, 3, 4]) == [[4, 3, 0]]  # a place in a history does not


def test_the_most_popular_titles_are_those_that_answer_without_a_model(artifact: Artifact) -> None:
    (listed,) = ranked_lists(MostPopular(artifact), [[]], artifact, depth=50, seen="allowed")
    trie = artifact.trie
    leaf_of = {
        int(item): leaf
        for leaf in range(trie.num_leaves)
        for item in trie.leaf_items[slice(*trie.leaf_start[leaf : leaf + 2])]
    }
    assert [leaf_of[item] for item in listed] == artifact.popular_leaves()[:50].tolist()


def test_seen_items_are_left_out_with_all_that_read_like_them(five: Artifact) -> None:
    assert _lists(MostPopular(five), five, [2], seen="excluded") == [[1, 0, 3]]
    assert _lists(MostPopular(five), five, [4, 2], seen="excluded") == [[0, 3]]  # items 1 and 4 share a path


def test_a_history_is_repeated_latest_first_then_the_most_popular(five: Artifact) -> None:
    assert _lists(RepeatHistory(five), five, [4, 0, 3], [0, 3, 0]) == [[3, 0, 4, 2], [0, 3, 2, 1]]


def test_transitions_count_what_followed(five: Artifact, tmp_path: Path) -> None:
    sequences = [np.array(items, dtype=np.int32) for items in ([0, 3, 1], [0, 3], [0, 1], [2, 0])]
    ranker = make_ranker("transitions", five, sequences, seed=0, scratch=tmp_path)
    assert _lists(ranker, five, [2, 0], [3], [4], []) == [[3, 1, 2, 0], [1, 2, 0, 3], [2, 1, 0, 3], [2, 1, 0, 3]]


def test_the_artifacts_scorer_backs_off_to_popularity_and_is_refused_where_there_is_none(
    five: Artifact, tmp_path: Path
) -> None:
    rows = transition_rows([np.array([0, 3, 0, 3, 0, 4], np.int32)], num_items=5, most=5)
    scored = replace(five, scorer=SparseScorer(rows=rows, decay=0.0, backoff=1.0, fingerprint=""))
    ranker = make_ranker("scorer", scored, None, seed=0, scratch=tmp_path)
    assert _lists(ranker, scored, [2, 0], [1], []) == [[3, 4, 2, 0], [2, 1, 0, 3], [2, 1, 0, 3]]
    np.testing.assert_allclose(ranker.scores([[ItemIndex(0)], []]).sum(axis=1), 1.0)
    with pytest.raises(InputError, match="the artifact holds no item scorer"):
        make_ranker("scorer", five, None, seed=0, scratch=tmp_path)


def test_neighbours_are_by_cosine(five: Artifact, tmp_path: Path) -> None:
    baskets = [[0, 3], [0, 3], [0, 2], [1, 2], [1, 2], [2, 4]]
    sequences = [np.array(items, dtype=np.int32) for items in baskets]
    ranker = make_ranker("itemknn", five, sequences, seed=0, scratch=tmp_path)
    chosen = np.zeros((len(baskets), 5))
    for person, items in enumerate(baskets):
        chosen[person, items] = 1.0
    norm = np.linalg.norm(chosen, axis=0)
    cosine = chosen.T @ chosen / np.outer(norm, norm)
    history = [ItemIndex(0), ItemIndex(1), ItemIndex(1)]
    np.testing.assert_allclose(ranker.scores([history, []]), [cosine[0] + cosine[1], np.zeros(5)], atol=1e-6)


def test_bpr_finds_what_people_of_one_taste_chose_and_the_seed_decides(five: Artifact, tmp_path: Path) -> None:
    """Two groups that share no item: whoever chose one item of a group is told the group's other items first."""
    rng = np.random.default_rng(0)
    groups = ([0, 3], [1, 2, 4])
    sequences = [rng.permutation(groups[person % 2]).astype(np.int32)[:2] for person in range(200)]
    ranker, again, other = (make_ranker("bpr", five, sequences, seed=seed, scratch=tmp_path) for seed in (0, 0, 1))
    histories = [[ItemIndex(item)] for item in range(5)]
    scores = ranker.scores([*histories, []])
    for item, row in enumerate(scores[:-1]):
        group = groups[0] if item in groups[0] else groups[1]
        assert {int(at) for at in np.argsort(-row)[: len(group)]} == set(group)
    assert np.isfinite(scores).all()
    np.testing.assert_array_equal(scores, again.scores([*histories, []]))
    assert not np.array_equal(scores, other.scores([*histories, []]))


def test_sasrec_learns_a_cycle_and_the_seed_decides_its_weights() -> None:
    """In training, item i is always followed by i + 1; a model that read only popularity could not know."""
    rng = np.random.default_rng(0)
    cycle = [(np.arange(8) + first) % 12 for first in rng.integers(0, 12, 240)]
    sequences = [sequence.astype(np.int32) for sequence in cycle]
    settings = SASRecSettings(width=16, layers=1, heads=1, dropout=0.0, epochs=30, learning_rate=0.02)
    model = SASRec.train(sequences, num_items=12, seed=1, settings=settings)
    histories = [[ItemIndex((first + step) % 12) for step in range(4)] for first in range(12)]
    scores = model.scores([*histories, []])
    assert scores[:-1].argmax(axis=1).tolist() == [(first + 4) % 12 for first in range(12)]
    assert (scores[-1] == 0).all()
    short = SASRecSettings(width=16, layers=1, heads=1, epochs=1)
    first, again = (SASRec.train(sequences, num_items=12, seed=3, settings=short).scores(histories) for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_what_cannot_be_ranked_is_refused(five: Artifact, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="baseline 'magic': one of popular"):
        make_ranker("magic", five, None, seed=0, scratch=tmp_path)
    with pytest.raises(InputError, match="needs training rows"):
        make_ranker("itemknn", five, None, seed=0, scratch=tmp_path)
    with pytest.raises(InputError, match="1 training sequences"):
        make_ranker("sasrec", five, [np.array([1, 2]), np.array([3])], seed=0, scratch=tmp_path)
    with pytest.raises(InputError, match=r"sasrec: heads is 3, which does not divide a width of 64"):
        SASRecSettings.read({"heads": 3}, where="sasrec")


def _rows(*rows: tuple[list[int], int], users: list[int] | None = None) -> HistoryRows:
    lengths = [len(history) for history, _ in rows]
    return HistoryRows(
        history_start=np.cumsum([0, *lengths]),
        history_item=np.array([item for history, _ in rows for item in history], dtype=np.int32),
        item=np.array([target for _, target in rows], dtype=np.int32),
        user_ids=None if users is None else [str(user) for user in range(max(users) + 1)],
        user=None if users is None else np.array(users, dtype=np.int32),
    )


def test_rows_without_users_are_joined_where_one_goes_on_from_the_other() -> None:
    rows = _rows(([1], 2), ([1, 2], 3), ([2, 3], 4), ([9], 2), ([1], 2))
    assert [sequence.tolist() for sequence in training_sequences(rows)] == [[1, 2, 3, 4], [9, 2], [1, 2]]


def test_rows_of_a_user_are_joined_though_others_stand_between() -> None:
    rows = _rows(([1], 2), ([7], 8), ([1, 2], 3), users=[0, 1, 0])
    assert [sequence.tolist() for sequence in training_sequences(rows)] == [[1, 2, 3], [7, 8]]


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]])
def test_rows_of_a_user_are_joined_by_time_wherever_they_stand(order: list[int]) -> None:
    rows = _rows(([1], 2), ([7], 8), ([1, 2], 3), ([1, 2, 3], 4), users=[0, 1, 0, 0])
    timed = replace(rows, timestamp=np.array([10, 15, 20, 30])).take(np.array(order))
    assert [sequence.tolist() for sequence in training_sequences(timed)] == [[1, 2, 3, 4], [7, 8]]


@pytest.mark.parametrize(
    ("later", "earlier", "joined"),
    [("1700000020", "1700000010", [0, 1, 3]), ("2", "1", [0, 2, 3, 1]), ("soon", "now", [0, 2, 3, 1])],
)
def test_times_that_cannot_be_read_order_nothing_and_that_is_said(
    tmp_path: Path, later: str, earlier: str, joined: list[int]
) -> None:
    catalogue = artifact_of_paths([(5, 0), (6, 0), (7, 0), (8, 0)], [1, 1, 1, 1]).catalogue
    ids = list(catalogue.item_ids)
    lines = ["user_id,history_item_ids,item_id,timestamp", f"u,{ids[0]} {ids[2]},{ids[3]},{later}"]
    lines.append(f"u,{ids[0]},{ids[1]},{earlier}")
    (tmp_path / "train.csv").write_text("\n".join(lines), encoding="utf-8")
    read = read_training(tmp_path / "train.csv", catalogue, on_unknown="error", reading=DEFAULT_READING)
    (sequence,) = training_sequences(read.data)
    assert sequence.tolist() == joined
    assert any("as they stand" in note for note in read.notes) == (len(later) < 10)


def test_rows_of_one_time_are_joined_as_they_stand() -> None:
    rows = _rows(([1], 5), ([1], 2), ([1], 3), users=[0, 0, 0])
    (sequence,) = training_sequences(replace(rows, timestamp=np.array([20, 10, 10])))
    assert sequence.tolist() == [1, 2, 3, 5]


def test_interactions_are_put_in_time_order() -> None:
    data = Interactions(
        user_ids=["a", "b"],
        user=np.array([0, 1, 0], dtype=np.int32),
        item=np.array([5, 6, 4], dtype=np.int32),
        timestamp=np.array([20, 5, 10]),
        rating=None,
    )
    assert [sequence.tolist() for sequence in training_sequences(data)] == [[4, 5], [6]]
