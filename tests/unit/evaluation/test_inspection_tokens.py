"""The paper's analysis: log-probabilities by plain forward passes, shares by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from oracles import path_scores

from igd_core.engines.embedded.engine import TreeEngine
from igd_core.errors import DataError, EngineError
from igd_core.evaluation.bootstrap import Resampling
from igd_core.evaluation.inspection_tokens import TargetTokens, alpha_effect, compare_lists, score_targets, token_bias
from igd_core.evaluation.rows import EvaluationRows
from igd_core.ids import ItemIndex, LeafIndex

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from igd_core.artifact import Artifact
    from igd_core.engines.embedded.checkpoint import Checkpoint

RESAMPLING = Resampling(resamples=200)


def _rows(histories: Sequence[Sequence[int]], target: Sequence[int]) -> EvaluationRows:
    return EvaluationRows(
        number=np.arange(len(target)),
        histories=tuple(tuple(ItemIndex(item) for item in history) for history in histories),
        target=np.array(target),
        dropped_from_histories=0,
        sha256="0" * 64,
    )


@pytest.mark.parametrize("kind", ["llama-fp32", "qwen3-fp32"])
def test_every_targets_tokens_are_scored_as_one_plain_pass_scores_them(
    kind: str, artifact: Artifact, checkpoint_of: Callable[[str], Checkpoint]
) -> None:
    checkpoint = checkpoint_of(kind)
    rows = _rows([[1], [2, 3, 4, 5], [], [7] * 9, [8]], [10, 30, 31, -1, 99])
    tokens = score_targets(checkpoint, artifact, rows)
    for row in (0, 1, 2, 4):
        leaf = LeafIndex(int(artifact.leaf_of_item[rows.target[row]]))
        path = tuple(artifact.trie.path(leaf))
        with torch.inference_mode():
            expected = path_scores(checkpoint.model, artifact.prompt(rows.histories[row]), path, [1.0] * len(path))
        np.testing.assert_allclose(tokens.logprob[tokens.row == row], expected, atol=1e-4)
        assert tokens.position[tokens.row == row].tolist() == list(range(1, len(path) + 1))
        edges = artifact.trie.edges_to(artifact.trie.leaf_node[leaf])
        assert tokens.zero[tokens.row == row].tolist() == [
            bool(artifact.gains.information_gain[edge] == 0) for edge in edges
        ]
    assert 3 not in tokens.row
    assert np.flatnonzero(tokens.end).tolist() == [*(np.flatnonzero(np.diff(tokens.row))), len(tokens.row) - 1]


def test_shares_are_sums_over_all_tokens() -> None:
    tokens = TargetTokens(
        row=np.array([4, 4, 4, 7]),
        position=np.array([1, 2, 3, 1]),
        zero=np.array([False, True, True, False]),
        end=np.array([False, False, True, True]),
        logprob=np.array([-4.0, -0.5, -1.5, -2.0]),
    )
    bias = token_bias(tokens, RESAMPLING)
    assert bias.tokens == 4
    assert bias.zero_share.value == 0.5
    assert bias.zero_logprob.value == -1.0
    assert bias.zero_logprob_before_end.value == -0.5
    assert bias.positive_logprob.value == -3.0
    assert bias.zero_loss_share.value == 0.25
    assert bias.zero_share.low == 0.0
    assert bias.zero_share.high == pytest.approx(2 / 3)


def test_what_alpha_moves_is_counted_by_row() -> None:
    plain = np.array([[1, 2, 3], [1, 2, 3], [1, 2, 3], [1, 2, 3], [1, 2, -1], [1, 2, 3]])
    weighted = np.array([[1, 2, 3], [2, 1, 3], [2, 1, 3], [1, 2, 5], [1, 2, -1], [1, 4, 5]])
    effect = compare_lists(plain, weighted, np.array([9, 2, 1, 5, -1, 3]), alpha=0.3, resampling=RESAMPLING)
    assert (effect.rows, effect.same_list) == (5, 1)
    assert (effect.entered, effect.left, effect.up, effect.down) == (1, 1, 1, 1)
    assert effect.shared == pytest.approx((3 + 3 + 3 + 2 + 1) / 15)
    assert effect.ndcg_difference.value == pytest.approx(effect.ndcg_weighted.value - effect.ndcg_plain.value)


async def test_alpha_zero_changes_nothing(artifact: Artifact, checkpoint_of: Callable[[str], Checkpoint]) -> None:
    engine = TreeEngine(checkpoint_of("llama-fp32"))
    await engine.load(artifact)
    rows = _rows([[1], [2, 3]], [10, 30])
    none = await alpha_effect(engine, artifact, rows, alpha=0.0, beams=5, resampling=RESAMPLING)
    some = await alpha_effect(engine, artifact, rows, alpha=0.9, beams=5, resampling=RESAMPLING)
    await engine.close()
    assert (none.same_list, none.shared) == (2, 1.0)
    assert some.same_list < 2


def test_rows_that_cannot_be_scored_are_refused(artifact: Artifact, checkpoint_of: Callable[[str], Checkpoint]) -> None:
    checkpoint = checkpoint_of("llama-fp32")
    with pytest.raises(DataError, match="none of the rows"):
        score_targets(checkpoint, artifact, _rows([[1]], [-1]))
    positions = checkpoint.model.config.max_position_embeddings
    checkpoint.model.config.max_position_embeddings = 8
    try:
        with pytest.raises(EngineError, match="the model takes 8"):
            score_targets(checkpoint, artifact, _rows([[1]], [2]))
    finally:
        checkpoint.model.config.max_position_embeddings = positions
