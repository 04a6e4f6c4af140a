"""The output layer: logits of few tokens are those of the whole vocabulary, whoever else is in the pass."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from igd_core.engines.embedded.output_layer import OutputLayer
from igd_core.engines.embedded.packed_linear import PackedLinear

VOCAB, WIDTH = 80, 16
TOLERANCE = 1e-5

Wanted = tuple[int, list[int] | None]
"""Rows of a part, and the tokens that it wants; None: all."""


def layers(*, changed: float = 0.0) -> tuple[nn.Linear, nn.Embedding]:
    """An output layer and an embedding of the same weight, but for one number."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(VOCAB, WIDTH, generator=generator)
    linear, embedding = nn.Linear(WIDTH, VOCAB, bias=False), nn.Embedding(VOCAB, WIDTH)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    embedding.weight = nn.Parameter(weight.clone(), requires_grad=False)
    embedding.weight[VOCAB - 1, WIDTH - 1] += changed
    return linear, embedding


def parts() -> st.SearchStrategy[list[Wanted]]:
    few = st.sets(st.integers(0, VOCAB - 1), max_size=VOCAB // 2).map(sorted)
    return st.lists(st.tuples(st.integers(0, 5), st.none() | few), min_size=1, max_size=4)


@given(drawn=parts(), tied=st.booleans(), seed=st.integers(0, 9))
def test_each_part_gets_the_logits_that_it_wants_as_if_it_were_alone(
    drawn: list[Wanted], seed: int, *, tied: bool
) -> None:
    linear, embedding = layers()
    output = OutputLayer(PackedLinear(linear), embedding, tied=tied)
    assert output.picks == tied
    hidden = [
        torch.from_numpy(np.random.default_rng(seed + at).normal(size=(rows, WIDTH)).astype(np.float32))
        for at, (rows, _) in enumerate(drawn)
    ]
    tokens = [None if wanted is None else torch.tensor(wanted, dtype=torch.int64) for _, wanted in drawn]
    for rows, wanted, found in zip(hidden, tokens, output(hidden, tokens), strict=True):
        whole = (rows.double() @ linear.weight.double().T).float()
        expected = whole if wanted is None else whole[:, wanted]
        torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=TOLERANCE)
        torch.testing.assert_close(found, output([rows], [wanted])[0], atol=TOLERANCE, rtol=TOLERANCE)


def test_an_embedding_that_differs_in_one_number_is_not_read() -> None:
    linear, embedding = layers(changed=0.01)
    assert not OutputLayer(PackedLinear(linear), embedding, tied=True).picks


def test_few_tokens_leave_the_laid_out_weight_unread_and_many_the_embedding() -> None:
    linear, embedding = layers()
    packed = PackedLinear(linear)
    output = OutputLayer(packed, embedding, tied=True)
    hidden, few, many = torch.ones(2, WIDTH), torch.arange(VOCAB // 4), torch.arange(VOCAB // 4 + 1)
    whole = (hidden.double() @ linear.weight.double().T).float()
    embedding.weight.data = torch.zeros(VOCAB, WIDTH)
    torch.testing.assert_close(output([hidden], [many])[0], whole[:, many], atol=TOLERANCE, rtol=TOLERANCE)
    embedding.weight.data = linear.weight.data
    packed.release()
    torch.testing.assert_close(output([hidden], [few])[0], whole[:, few], atol=TOLERANCE, rtol=TOLERANCE)
