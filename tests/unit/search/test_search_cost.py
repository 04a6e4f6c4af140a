"""What a search is expected to cost, against what it does cost on the fake engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from factories import artifact_of_paths

from igd_core.engines.fake import FakeEngine
from igd_core.ids import ItemIndex
from igd_core.search.cost import DecodingCost
from igd_core.search.query import Query
from igd_core.search.recommender import Recommender

if TYPE_CHECKING:
    from igd_core.artifact import Artifact


def rows(count: int) -> list[ItemIndex]:
    return [ItemIndex(row) for row in range(count)]


def test_an_ordinary_request_costs_about_one_and_more_of_anything_costs_more(artifact: Artifact) -> None:
    cost = DecodingCost.of(artifact)
    ordinary = cost.of_search(rows(artifact.manifest.template.max_history), beams=10)
    assert ordinary == pytest.approx(1.0, rel=0.3)  # items have titles of their own lengths
    by_beams = [cost.of_search(rows(5), beams=beams) for beams in (1, 5, 20, 50)]
    assert by_beams == sorted(set(by_beams))
    by_history = [cost.of_search(rows(count), beams=10) for count in (1, 3, 5)]
    assert by_history == sorted(set(by_history))
    assert cost.of_search(rows(5), beams=200, leaves=1) < cost.of_search(rows(5), beams=2)
    assert cost.of_search(rows(5), beams=50, forced=False) < cost.of_search(rows(5), beams=50)


def test_the_prompt_is_counted_to_the_token(artifact: Artifact) -> None:
    cost = DecodingCost.of(artifact)
    for count in (0, 1, 7, 60):
        assert cost._prompt_tokens(rows(count)) == len(artifact.prompt(rows(count)))


def test_weights_are_whole_and_one_up_to_ten_beams(artifact: Artifact) -> None:
    cost = DecodingCost.of(artifact)
    weights = [cost.weight_of(beams) for beams in range(1, 201)]
    assert set(weights[:10]) == {1}
    assert weights == sorted(weights)
    assert weights[-1] > 1


def test_a_catalogue_of_one_path_has_a_cost_too() -> None:
    cost = DecodingCost.of(artifact_of_paths([[5, 6]], [1]))
    assert cost.of_search([], beams=10) > 0
    assert cost.weight_of(200) == 1


async def test_expected_tree_tokens_follow_the_measured_ones(artifact: Artifact) -> None:
    engine = FakeEngine()
    await engine.load(artifact)
    recommender = Recommender(artifact, engine)
    ratios = []
    for beams in (1, 5, 10, 20, 50):
        query = Query(history=rows(3), k=1, beams=beams)
        stats = (await recommender.recommend(query)).stats
        ratios.append((stats.model_tokens - stats.prompt_tokens) / recommender.costs._tree_tokens(beams))
        assert recommender.cost(recommender.resolve(query)) > 0
    assert max(ratios) / min(ratios) < 3, ratios
    assert np.median(ratios) == pytest.approx(1.0, rel=0.6)
