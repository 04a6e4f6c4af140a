"""From lists to figures: levels, cut-offs, differences, slices, and what the table shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from factories import artifact_of_paths

from igd_core.datasets.row_places import RowPlaces
from igd_core.errors import InputError
from igd_core.evaluation.bootstrap import Resampling
from igd_core.evaluation.methods import DecodingSetting, Method, decoding_settings
from igd_core.evaluation.plots import draw_accuracy, draw_slices
from igd_core.evaluation.report import table
from igd_core.evaluation.results import MethodLists, MethodResult, ResultSettings, reference_name, summarise
from igd_core.evaluation.rows import EvaluationRows
from igd_core.ids import ItemIndex

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import ArrayLike

    from igd_core.artifact import Artifact
    from igd_core.evaluation.methods import Seen

PATHS = [(5, 0), (6, 0), (7, 0), (8, 0), (6, 0)]  # items 1 and 4 share a title
SETTINGS = ResultSettings(cutoffs=(1, 2, 5), reference=None, resampling=Resampling(resamples=200, seed=0))


@pytest.fixture
def five() -> Artifact:
    return artifact_of_paths(PATHS, [10, 20, 30, 0, 5])


def _rows(*target: int) -> EvaluationRows:
    return EvaluationRows(
        number=np.arange(len(target)),
        histories=tuple((ItemIndex(0),) * (row % 3 + 1) for row in range(len(target))),
        target=np.array(target),
        dropped_from_histories=0,
        sha256="0" * 64,
        row=np.arange(len(target)) + 2,
        places=RowPlaces(),
    )


def _method(lists: ArrayLike, name: str = "m", known_as: str = "", seen: Seen = "allowed") -> MethodLists:
    return MethodLists(method=Method(name=name, seen=seen), known_as=known_as, items=np.array(lists))


def _values(figures: dict[str, object]) -> dict[str, float]:
    return {name: found.value for name, found in figures.items()}  # type: ignore[attr-defined]


def test_a_title_counts_for_any_of_its_items_an_item_only_for_itself(five: Artifact) -> None:
    """Targets 4, 0, 2 and one unknown; the second list is empty."""
    lists = [[2, 1, -1], [-1, -1, -1], [2, 0, 3], [2, 1, 0]]
    (found,) = summarise([_method(lists)], _rows(4, 0, 2, -1), five, SETTINGS)
    half = 1 / np.log2(3)
    assert _values(dict(found.titles)) == pytest.approx(
        {"HR@1": 0.25, "HR@2": 0.5, "NDCG@1": 0.25, "NDCG@2": (half + 1) / 4}
    )
    assert _values(dict(found.items)) == pytest.approx({"HR@1": 0.25, "HR@2": 0.25, "NDCG@1": 0.25, "NDCG@2": 0.25})
    # Popularity of titles: 10, 25, 30, 0. The first place is title 2 three times, the targets are 25, 10 and 30.
    assert found.lists["popularity_lift@1"].value == pytest.approx(30 / (65 / 3) - 1)
    assert found.lists["coverage@1"].value == 0.25
    assert found.lists["coverage@2"].value == 0.75
    assert found.lists["cold_share@2"].value == 0.0
    assert "HR@5" not in found.titles  # lists are three deep
    assert {name: group["rows"] for name, group in found.slices["target popularity"].items()} == {
        "head": 1,
        "middle": 1,
        "tail": 1,
        "not in the catalogue": 1,
    }
    lengths = found.slices["history length"]
    assert {name: group["rows"] for name, group in lengths.items()} == {"1": 1, "2-4": 2, "not in the catalogue": 1}
    assert lengths["1"]["HR@2"].value == 1.0


def test_differences_are_paired_and_within_one_kind_of_seen(five: Artifact) -> None:
    rng = np.random.default_rng(0)
    target = rng.integers(0, 4, 200)
    worse = np.where(rng.random(200) < 0.5, target, 3)[:, None]
    better = np.where(rng.random(200) < 0.1, target, worse[:, 0])[:, None]
    methods = [
        _method(worse, "alpha=0", "D3"),
        _method(better, "alpha=0.2"),
        _method(worse, "alpha=0", "D3", seen="excluded"),
        _method(worse, "alpha=0.2", seen="excluded"),
    ]
    settings = ResultSettings(cutoffs=(1,), reference=None, resampling=Resampling(resamples=400))
    base, found, _, same = summarise(methods, _rows(*target.tolist()), five, settings)
    assert (base.against, found.against, same.against) == ("", "alpha=0", "alpha=0")
    difference = found.difference["HR@1"]
    assert difference.value == pytest.approx(found.titles["HR@1"].value - base.titles["HR@1"].value)
    assert 0 < difference.low < difference.value
    # Far narrower than unpaired draws would make it.
    assert difference.high - difference.low < 0.7 * (base.titles["HR@1"].high - base.titles["HR@1"].low)
    assert (same.difference["HR@1"].low, same.difference["HR@1"].high) == (0.0, 0.0)
    lines = table([base, found], settings).splitlines()
    assert lines[2].startswith("alpha=0.2 ")
    assert "*" in lines[2]
    assert "*" not in lines[3]


def test_the_reference_is_d3_or_the_most_popular_or_the_first_or_as_told() -> None:
    one = np.zeros((1, 1), dtype=int)
    d3, popular, other = (_method(one, *names) for names in (("a", "D3"), ("popular",), ("z",)))
    assert reference_name([other, popular, d3], None) == "a"
    assert reference_name([other, popular], None) == "popular"
    assert reference_name([other], None) == "z"
    assert reference_name([other, d3], "z") == "z"
    with pytest.raises(InputError, match="reference 'q': one of z, a"):
        reference_name([other, d3], "q")


def test_pictures_are_drawn(five: Artifact, tmp_path: Path) -> None:
    methods = [_method([[2, 1], [0, 3]], "alpha=0", "D3"), _method([[1, 2], [0, 3]], "alpha=0.2", "IGD")]
    results: list[MethodResult] = summarise(methods, _rows(4, 3), five, SETTINGS)
    draw_accuracy(results, 2, tmp_path / "accuracy.png")
    assert draw_slices(results, 2, tmp_path / "slices.png")
    for name in ("accuracy.png", "slices.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


@pytest.mark.parametrize("cutoffs", [(), (0, 1), (5, 1), (5, 5)])
def test_cutoffs_that_make_no_sense_are_refused(cutoffs: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="k: expected rising numbers"):
        ResultSettings(cutoffs=cutoffs, reference=None, resampling=Resampling())


def test_too_few_resamples_are_refused() -> None:
    with pytest.raises(InputError, match="resamples 99"):
        ResultSettings(cutoffs=(1,), reference=None, resampling=Resampling(resamples=99))


def test_settings_are_every_combination_once_and_carry_the_literatures_names() -> None:
    found = decoding_settings(alphas=[0, 0.2, 0.2], length_penalties=[0, 1], beams=[10], seen=["allowed"])
    assert [(each.name, each.known_as) for each in found] == [
        ("alpha=0 lp=0 beams=10", "D3"),
        ("alpha=0.2 lp=0 beams=10", "IGD"),
        ("alpha=0 lp=1 beams=10", "BIGRec"),
        ("alpha=0.2 lp=1 beams=10", ""),
    ]
    assert DecodingSetting(alpha=0.0, length_penalty=0.5, beams=3, seen="allowed").known_as == ""
    forced = DecodingSetting(alpha=0.0, length_penalty=0.0, beams=3, seen="allowed", forced_weight=0.0)
    assert (forced.name, forced.known_as) == ("alpha=0 lp=0 beams=3 forced=0", "")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alphas": []}, "alphas: at least one"),
        ({"alphas": [1.5]}, "alphas: 1.5 is not in 0..1"),
        ({"alphas": [float("nan")]}, "alphas: nan"),
        ({"length_penalties": [-1.0]}, "length-penalties: -1"),
        ({"beams": [0]}, "beams: 0"),
        ({"forced_weights": [2.0]}, "forced-weights: 2"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, list[float]], message: str) -> None:
    given: dict[str, list[float]] = {"alphas": [0.0], "length_penalties": [0.0], "beams": [10]}
    with pytest.raises(InputError, match=message):
        decoding_settings(**(given | changes), seen=["allowed"])  # type: ignore[arg-type]
