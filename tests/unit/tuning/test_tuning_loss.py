from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from factories import artifact_of_paths
from hypothesis import given
from hypothesis import strategies as st

from igd_core.tuning.examples import zero_ig_of_response
from igd_core.tuning.loss import LossParts, cross_entropy_at, igd_loss, token_weights

BETA = 0.2
# Item 0: 5 7 9 0, item 1: 5 8 0, item 2: 6 0 (EOS is 0). Only 5, 6, 7 and 8 rule anything out.
PATHS = [[5, 7, 9, 0], [5, 8, 0], [6, 0]]


def test_a_forced_token_is_zero_ig_and_a_choice_is_not() -> None:
    artifact = artifact_of_paths(PATHS, [3, 2, 1])
    flags = [zero_ig_of_response(artifact.trie, artifact.gains, path).tolist() for path in PATHS]
    assert flags == [[False, False, True, True], [False, False, True], [False, True]]


@pytest.mark.parametrize("response", [[5, 7, 9, 1], [4], [5, 7], [5, 7, 9, 0, 0], [1, 5, 7, 9, 0]])
def test_a_response_outside_the_trie_is_zero_ig_throughout(response: list[int]) -> None:
    artifact = artifact_of_paths(PATHS, [3, 2, 1])
    assert zero_ig_of_response(artifact.trie, artifact.gains, response).tolist() == [True] * len(response)


def test_a_choice_between_items_that_were_never_chosen_is_zero_ig() -> None:
    artifact = artifact_of_paths(PATHS, [3, 0, 1])
    assert zero_ig_of_response(artifact.trie, artifact.gains, PATHS[0]).tolist() == [False, True, True, True]


def test_the_loss_is_the_value_computed_by_hand_on_a_toy_trie() -> None:
    artifact = artifact_of_paths(PATHS, [3, 2, 1])
    zero_ig = torch.from_numpy(zero_ig_of_response(artifact.trie, artifact.gains, PATHS[0]))
    probabilities = [0.5, 0.25, 0.8, 0.1]
    cross_entropy = torch.tensor([-math.log(p) for p in probabilities])
    by_hand = -(math.log(0.5) + math.log(0.25) + 0.2 * math.log(0.8) + 0.2 * math.log(0.1)) / (1 + 1 + 0.2 + 0.2)
    assert igd_loss(cross_entropy, token_weights(zero_ig, BETA)).item() == pytest.approx(by_hand, abs=1e-6)
    means = LossParts.of(cross_entropy, zero_ig).means(BETA)
    assert means["loss"] == pytest.approx(by_hand, abs=1e-6)
    assert means["zero_ig_loss"] == pytest.approx(-(math.log(0.8) + math.log(0.1)) / 2, abs=1e-6)
    assert means["positive_ig_loss"] == pytest.approx(-(math.log(0.5) + math.log(0.25)) / 2, abs=1e-6)


@given(seed=st.integers(0, 10_000))
def test_at_beta_one_it_is_plain_cross_entropy(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(9, 13, generator=generator) * 3
    target = torch.randint(0, 13, (9,), generator=generator)
    zero_ig = torch.rand(9, generator=generator) < 0.5
    ours = igd_loss(cross_entropy_at(logits, torch.arange(9), target), token_weights(zero_ig, 1.0))
    assert ours.item() == pytest.approx(torch.nn.functional.cross_entropy(logits, target).item(), abs=1e-6)


def test_gradients_of_zero_ig_tokens_scale_by_beta() -> None:
    zero_ig = torch.tensor([False, True, True, False])
    gradients = {}
    for beta in (1.0, BETA):
        logits = torch.linspace(-1, 1, 4 * 6).reshape(4, 6).requires_grad_()
        losses = cross_entropy_at(logits, torch.arange(4), torch.tensor([0, 1, 2, 3]))
        total = torch.tensor(4.0)  # the same divisor, so that only the weights differ
        igd_loss(losses, token_weights(zero_ig, beta), total).backward()
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
    means = LossParts.of(torch.ones(2), torch.tensor([True, True])).means(BETA)
    assert np.isnan(means["positive_ig_loss"])
    assert means["loss"] == pytest.approx(1.0)
