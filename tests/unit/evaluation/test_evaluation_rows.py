"""Rows are sampled by seed, unknown targets are misses only when asked for, and slices hold every row once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from factories import artifact_of_paths

from igd_core.errors import DataError, EngineError, InputError
from igd_core.evaluation import shard
from igd_core.evaluation.journal import Journal
from igd_core.evaluation.rows import leaf_frequency, read_rows, slicings

if TYPE_CHECKING:
    from pathlib import Path

    from igd_core.artifact import Artifact

# Items 0 and 1 share a path. 7, 8 branch at the root; 5 follows 7 with two children.
PATHS = [(7, 5, 0), (7, 5, 0), (7, 6, 0), (8, 0)]


@pytest.fixture
def four() -> Artifact:
    return artifact_of_paths(PATHS, [60, 10, 25, 0])


def _file(directory: Path, *rows: str, header: str = "history_item_ids,item_id") -> Path:
    path = directory / "rows.csv"
    path.write_text("\n".join([header, *rows, ""]), encoding="utf-8")
    return path


def test_a_sample_is_of_its_size_in_file_order_and_the_seed_decides_it(four: Artifact, tmp_path: Path) -> None:
    path = _file(tmp_path, *(f"{row % 4},{(row + 1) % 4}" for row in range(50)))
    sample = read_rows(path, four, limit=10, seed=1)
    assert len(sample) == 10
    assert (np.diff(sample.number) > 0).all()
    assert sample.target.tolist() == [(row + 1) % 4 for row in sample.number.tolist()]
    assert [history[0] for history in sample.histories] == [row % 4 for row in sample.number.tolist()]
    assert sample.number.tolist() == read_rows(path, four, limit=10, seed=1).number.tolist()
    assert sample.number.tolist() != read_rows(path, four, limit=10, seed=2).number.tolist()
    assert len(read_rows(path, four, limit=500)) == 50


def test_an_unknown_target_is_an_error_or_a_miss(four: Artifact, tmp_path: Path) -> None:
    path = _file(tmp_path, "1,77", "0 1,2", "0 99,3")
    with pytest.raises(DataError, match=r"(?s)not in the catalogue of 4 items: 1 row: row 2 '77'.*: row 4 '99'"):
        read_rows(path, four)
    rows = read_rows(path, four, on_unknown="miss")
    assert rows.target.tolist() == [-1, 2, 3]
    assert rows.histories == ((), (0, 1), (0,))
    assert (rows.dropped_from_histories, rows.unknown_in_file) == (1, 1)
    assert rows.target_leaf(four)[0] == -1


def test_rows_keep_their_places_and_a_sample_its_rows_whatever_the_catalogue_lacks(
    four: Artifact, tmp_path: Path
) -> None:
    path = _file(tmp_path, *(f"{row % 4},{(row + 1) % 4}" for row in range(40)))
    two = artifact_of_paths(PATHS[:2], [1, 1])  # lacks every other pair of targets
    assert read_rows(path, two, on_unknown="miss").number.tolist() == list(range(40))
    for seed in range(5):
        known, partly = (read_rows(path, each, limit=9, seed=seed, on_unknown="miss") for each in (four, two))
        assert partly.number.tolist() == known.number.tolist()
        expected = [(row + 1) % 4 if (row + 1) % 4 < 2 else -1 for row in partly.number.tolist()]
        assert partly.target.tolist() == expected
        assert (partly.row == partly.number + 2).all(), "a csv file's header is row 1"
        histories = [((row % 4,) if row % 4 < 2 else ()) if (row + 1) % 4 < 2 else () for row in partly.number.tolist()]
        assert list(partly.histories) == histories


def test_a_sample_of_known_targets_is_the_one_of_earlier_releases(four: Artifact, tmp_path: Path) -> None:
    path = _file(tmp_path, *(f"{row % 4},{(row + 1) % 4}" for row in range(50)))
    drawn = np.sort(np.random.default_rng(3).permutation(50)[:7]).tolist()
    for on_unknown in ("error", "miss"):
        assert read_rows(path, four, limit=7, seed=3, on_unknown=on_unknown).number.tolist() == drawn


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("user_id,item_id,timestamp\nu,1,5\n", "single interactions"),
        ("history_item_ids,item_id\n", "rows"),
        ("history_item_ids\n0\n", "item_id"),
    ],
)
def test_files_that_hold_no_rows_to_evaluate_are_refused(
    four: Artifact, tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_rows(path, four)


def test_a_limit_below_one_is_refused(four: Artifact, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="limit 0"):
        read_rows(_file(tmp_path, "0,1"), four, limit=0)


def test_targets_of_one_title_are_one_group_and_unknown_ones_are_apart(four: Artifact, tmp_path: Path) -> None:
    rows = read_rows(_file(tmp_path, "0,3", "0,1", "1,77", "2,0", "0,3", "1,77"), four, on_unknown="miss")
    assert rows.target_groups(four).tolist() == [0, 1, 2, 1, 0, 3]


def test_a_repeat_is_of_the_title_not_of_the_item(four: Artifact, tmp_path: Path) -> None:
    rows = read_rows(_file(tmp_path, "0 2,1", "0 3,2", "2 2,2"), four)
    assert rows.repeats(four).tolist() == [True, False, True]


def test_slices_say_what_they_are_called(four: Artifact, tmp_path: Path) -> None:
    path = _file(tmp_path, "0,1", "0 1 2,2", "0 1 2 3 0 1 2 3 0 1,3", "0,99", ",1")
    rows = read_rows(path, four, on_unknown="miss")
    by_title = {each.title: [each.names[group] for group in each.group.tolist()] for each in slicings(rows, four)}
    assert by_title == {
        "history length": ["1", "2-4", "10 or more", "not in the catalogue", "0"],
        # 70 of 95 interactions are of the first title; the second begins behind two thirds of them; the last has none.
        "target popularity": ["head", "tail", "cold", "not in the catalogue", "head"],
        "decisions": ["0-2", "0-2", "0-2", "not in the catalogue", "0-2"],
    }


def test_popularity_is_of_the_title(four: Artifact) -> None:
    assert leaf_frequency(four).tolist() == [70, 25, 0]


def test_decisions_are_counted_as_in_the_trie(artifact: Artifact, tmp_path: Path) -> None:
    rows = read_rows(_file(tmp_path, *(f"item-0,item-{row}" for row in range(150))), artifact)
    slicing = slicings(rows, artifact)[2]
    trie = artifact.trie
    for row in range(150):
        parents = [
            int(trie.parents(np.array([edge + 1]))[0])
            for edge in trie.edges_to(trie.leaf_node[artifact.leaf_of_item[row]])
        ]
        decisions = sum(len(trie.children(parent)) > 1 for parent in parents)  # type: ignore[arg-type]
        name = slicing.names[slicing.group[row]]
        assert name == ("0-2" if decisions < 3 else "6 or more" if decisions > 5 else str(decisions))


async def test_a_row_that_cannot_be_decoded_is_named_as_a_spreadsheet_shows_it(
    four: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing:
        def __init__(self, *_: object, **__: object) -> None:
            pass

        async def answer(self, _: object) -> None:
            raise EngineError("no numbers")

    monkeypatch.setattr(shard, "RowDecoder", Failing)
    rows = read_rows(_file(tmp_path, "0,99", "0,1"), four, on_unknown="miss")
    header = {"methods": [{"name": "m", "known_as": "", "seen": "allowed", "depth": 1}]}
    with (
        Journal(tmp_path / "rows.jsonl", header) as journal,
        pytest.raises(EngineError, match=r"^rows: row 3: no numb"),
    ):
        await shard.ShardRun(journal, rows, shard.Shard(), concurrency=1).decode(None, four, [])  # type: ignore[arg-type]
