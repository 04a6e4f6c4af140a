"""The paper's analysis: log-probabilities by plain forward passes, shares by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from oracles import next_tokens, path_scores

from igd_core.datasets.row_places import RowPlaces
from igd_core.engines.embedded.engine import TreeEngine
from igd_core.errors import DataError, EngineError
from igd_core.evaluation.bootstrap import Resampling
from igd_core.evaluation.inspection_tokens import TargetTokens, alpha_effect, compare_lists, score_targets, token_bias
from igd_core.evaluation.methods import DecodingSetting
from igd_core.evaluation.rows import EvaluationRows
from igd_core.ids import ItemIndex, LeafIndex
from igd_core.search.normalisation import Normalisation

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
        row=np.arange(len(target)) + 2,
        places=RowPlaces(),
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


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_over_children_a_decision_is_scored_among_its_siblings_and_a_forced_token_not_at_all(
    temperature: float, artifact: Artifact, checkpoint_of: Callable[[str], Checkpoint]
) -> None:
    checkpoint, trie = checkpoint_of("llama-fp32"), artifact.trie
    rows = _rows([[1], [2, 3, 4, 5], [7] * 9, [8]], [10, 30, -1, 99])
    scored = Normalisation(normalise="children", temperature=temperature)
    tokens = score_targets(checkpoint, artifact, rows, scored)
    paths = [tuple(trie.path(LeafIndex(leaf))) for leaf in range(trie.num_leaves)]
    forced = 0
    for row in (0, 1, 3):
        path, prompt = paths[artifact.leaf_of_item[rows.target[row]]], artifact.prompt(rows.histories[row])
        with torch.inference_mode():
            logits = checkpoint.model(input_ids=torch.tensor([[*prompt, *path]]), use_cache=False).logits[0].double()
        logprobs, positions = [], []
        for at, token in enumerate(path):
            among = next_tokens(paths, path[:at])
            if len(among) == 1:
                forced += 1
                continue
            own = logits[len(prompt) + at - 1] / temperature
            logprobs.append(float(own[token] - own[among].logsumexp(0)))
            positions.append(at + 1)
        np.testing.assert_allclose(tokens.logprob[tokens.row == row], logprobs, atol=1e-4)
        assert tokens.position[tokens.row == row].tolist() == positions
    assert 2 not in tokens.row
    assert (tokens.scored, tokens.left_out) == (scored, forced)
    bias = token_bias(tokens, RESAMPLING)
    assert (bias.scored, bias.left_out, bias.tokens) == (scored, forced, len(tokens.logprob))


def test_the_vocabularys_scores_have_the_temperature_too(
    artifact: Artifact, checkpoint_of: Callable[[str], Checkpoint]
) -> None:
    checkpoint, rows = checkpoint_of("llama-fp32"), _rows([[1]], [10])
    tokens = score_targets(checkpoint, artifact, rows, Normalisation(temperature=2.0))
    path = tuple(artifact.trie.path(LeafIndex(int(artifact.leaf_of_item[10]))))
    with torch.inference_mode():
        expected = path_scores(checkpoint.model, artifact.prompt([ItemIndex(1)]), path, [1.0] * len(path), 2.0)
    np.testing.assert_allclose(tokens.logprob, expected, atol=1e-4)
    assert tokens.left_out == 0


def test_tokens_that_are_not_there_have_no_mean() -> None:
    tokens = TargetTokens(
        row=np.array([0, 1]),
        position=np.array([1, 1]),
        zero=np.array([False, False]),
        end=np.array([False, False]),
        logprob=np.array([-4.0, -2.0]),
    )
    bias = token_bias(tokens, RESAMPLING)
    assert np.isnan([bias.zero_logprob.value, bias.zero_logprob.low, bias.zero_logprob_before_end.high]).all()
    assert (bias.zero_share.value, bias.zero_loss_share.value) == (0.0, 0.0)


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
    none, some = [
        await alpha_effect(
            engine,
            artifact,
            rows,
            DecodingSetting(alpha=alpha, length_penalty=0.0, beams=5, seen="allowed"),
            RESAMPLING,
        )
        for alpha in (0.0, 0.9)
    ]
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
