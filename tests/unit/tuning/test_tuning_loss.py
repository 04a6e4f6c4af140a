from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from factories import artifact_of_paths
from hypothesis import given
from hypothesis import strategies as st

from igd_core.errors import InputError
from igd_core.tuning.examples import gain_of_response
from igd_core.tuning.loss import LossParts, cross_entropy_at, igd_loss
from igd_core.tuning.weights import WEIGHTINGS, TokenWeights, Weighting

BETA = 0.2
# Item 0: 5 7 9 0, item 1: 5 8 0, item 2: 6 0 (EOS is 0). Only 5, 6, 7 and 8 rule anything out.
PATHS = [[5, 7, 9, 0], [5, 8, 0], [6, 0]]


def test_a_forced_token_is_zero_ig_and_a_choice_is_not() -> None:
    artifact = artifact_of_paths(PATHS, [3, 2, 1])
    flags = [(gain_of_response(artifact.trie, artifact.gains, path) == 0).tolist() for path in PATHS]
    assert flags == [[False, False, True, True], [False, False, True], [False, True]]


@pytest.mark.parametrize("response", [[5, 7, 9, 1], [4], [5, 7], [5, 7, 9, 0, 0], [1, 5, 7, 9, 0]])
def test_a_response_outside_the_trie_is_zero_ig_throughout(response: list[int]) -> None:
    artifact = artifact_of_paths(PATHS, [3, 2, 1])
    assert gain_of_response(artifact.trie, artifact.gains, response).tolist() == [0.0] * len(response)


def test_a_choice_between_items_that_were_never_chosen_is_zero_ig() -> None:
    artifact = artifact_of_paths(PATHS, [3, 0, 1])
    assert (gain_of_response(artifact.trie, artifact.gains, PATHS[0]) == 0).tolist() == [False, True, True, True]


def test_the_loss_is_the_value_computed_by_hand_on_a_toy_trie() -> None:
    artifact = artifact_of_paths(PATHS, [3, 2, 1])
    gain = gain_of_response(artifact.trie, artifact.gains, PATHS[0])
    weights = torch.from_numpy(TokenWeights(beta=BETA).of_response(gain))
    probabilities = [0.5, 0.25, 0.8, 0.1]
    cross_entropy = torch.tensor([-math.log(p) for p in probabilities])
    by_hand = -(math.log(0.5) + math.log(0.25) + 0.2 * math.log(0.8) + 0.2 * math.log(0.1)) / (1 + 1 + 0.2 + 0.2)
    assert igd_loss(cross_entropy, weights).item() == pytest.approx(by_hand, abs=1e-6)
    means = LossParts.of(cross_entropy, torch.from_numpy(gain == 0), weights).means()
    assert means["loss"] == pytest.approx(by_hand, abs=1e-6)
    assert means["zero_ig_loss"] == pytest.approx(-(math.log(0.8) + math.log(0.1)) / 2, abs=1e-6)
    assert means["positive_ig_loss"] == pytest.approx(-(math.log(0.5) + math.log(0.25)) / 2, abs=1e-6)


@given(seed=st.integers(0, 10_000), weighting=st.sampled_from(WEIGHTINGS))
def test_at_beta_one_it_is_plain_cross_entropy(seed: int, weighting: Weighting) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(9, 13, generator=generator) * 3
    target = torch.randint(0, 13, (9,), generator=generator)
    gain = torch.relu(torch.randn(9, generator=generator)).numpy()
    weights = torch.from_numpy(TokenWeights(beta=1.0, weighting=weighting).of_response(gain))
    ours = igd_loss(cross_entropy_at(logits, torch.arange(9), target), weights)
    # Of the value: a float32 sum of nine such losses is no nearer than 2e-6 to another order of adding them.
    assert ours.item() == pytest.approx(torch.nn.functional.cross_entropy(logits, target).item(), rel=1e-6)


def test_gradients_of_zero_ig_tokens_scale_by_beta() -> None:
    gain = np.array([0.3, 0.0, 0.0, 2.0], dtype=np.float32)
    zero_ig = torch.from_numpy(gain == 0)
    gradients = {}
    for beta in (1.0, BETA):
        logits = torch.linspace(-1, 1, 4 * 6).reshape(4, 6).requires_grad_()
        losses = cross_entropy_at(logits, torch.arange(4), torch.tensor([0, 1, 2, 3]))
        total = torch.tensor(4.0)  # the same divisor, so that only the weights differ
        igd_loss(losses, torch.from_numpy(TokenWeights(beta=beta).of_response(gain)), total).backward()
        assert logits.grad is not None
        gradients[beta] = logits.grad
    torch.testing.assert_close(gradients[BETA][zero_ig], BETA * gradients[1.0][zero_ig])
    torch.testing.assert_close(gradients[BETA][~zero_ig], gradients[1.0][~zero_ig])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_targets_that_share_a_row_of_logits_get_the_gradient_of_the_indexed_softmax(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 7, generator=generator).to(dtype)
    index, target = torch.tensor([0, 2, 2, 1, 2]), torch.tensor([3, 0, 6, 3, 0])
    weights = torch.rand(5, generator=generator)
    ours, plain = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    losses = cross_entropy_at(ours, index, target)
    expected = -torch.log_softmax(plain.float(), dim=-1)[index, target]
    (losses * weights).sum().backward()
    (expected * weights).sum().backward()
    tolerance = 2e-2 if dtype is torch.bfloat16 else 1e-6
    torch.testing.assert_close(losses, expected, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(ours.grad, plain.grad, atol=tolerance, rtol=tolerance)


def test_a_kind_without_tokens_has_no_mean() -> None:
    means = LossParts.of(torch.ones(2), torch.tensor([True, True]), torch.full((2,), BETA)).means()
    assert np.isnan(means["positive_ig_loss"])
    assert means["loss"] == pytest.approx(1.0)


def test_position_weights_fall_evenly_from_one_to_beta_whatever_the_gain() -> None:
    """1 - (t - 1)(1 - b)/(T - 1), by hand for b = 0.2 and five tokens."""
    gain = np.array([0.0, 3.0, 0.0, 1.0, 0.0], dtype=np.float32)
    weights = TokenWeights(beta=BETA, weighting="position").of_response(gain)
    np.testing.assert_allclose(weights, [1.0, 0.8, 0.6, 0.4, 0.2], atol=1e-6)
    assert TokenWeights(beta=BETA, weighting="position").of_response(gain[:1]).tolist() == [1.0]


def test_gain_weights_are_beta_without_gain_and_grow_towards_one() -> None:
    gain = np.array([0.0, 1e-4, math.log(2), 20.0], dtype=np.float32)
    weights = TokenWeights(beta=BETA, weighting="gain").of_response(gain)
    np.testing.assert_allclose(weights, [0.2, 0.20008, 0.6, 1.0], atol=1e-5)


@pytest.mark.parametrize("wrong", [{"beta": 0.0}, {"beta": 1.5}, {"beta": math.nan}, {"weighting": "cft"}])
def test_weights_that_do_not_exist_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        TokenWeights(**wrong)
