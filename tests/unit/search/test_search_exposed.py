"""`expose_children_`: what a sampler's log-softmax reads back is each row's best admitted children, and only they."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from factories import flat
from hypothesis import given
from hypothesis import strategies as st
from strategies import catalogues

from igd_core.catalogue.trie import TokenTrie
from igd_core.engines.vllm.children import ChildChoice, RowMixing, expose_children_
from igd_core.search.scores import RowSettings, TrieWeights

VOCAB = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One row: its node, how it is scored, and which children may come back."""

    node: int
    alpha: float
    temperature: float
    keep: int
    listed: list[int]
    only_listed: bool
    over_children: bool = False
    prior: list[float] | None = None
    prior_model: float = 1.0
    prior_linear: bool = False

    def ranked_by(self, place: int, score: float) -> float:
        """What a child is kept by."""
        if self.prior is None:
            return score
        if self.prior_linear:
            return math.log(math.exp(self.prior_model + score) + math.exp(self.prior[place]))
        return self.prior_model * score + self.prior[place]


def weights(trie: TokenTrie, gains: list[float]) -> TrieWeights:
    return TrieWeights(
        row_start=trie.row_start,
        edge_token=trie.edge_token,
        sibling_gain=np.array(gains, dtype=np.float32),
    )


def exposed(logits: torch.Tensor, trie: TrieWeights, asked: list[Asked]) -> torch.Tensor:
    listed = [(row, place) for row, each in enumerate(asked) for place in each.listed]
    rows = RowSettings(
        node=np.array([each.node for each in asked], dtype=np.int64),
        alpha=np.array([each.alpha for each in asked], dtype=np.float32),
        temperature=np.array([each.temperature for each in asked], dtype=np.float32),
        over_children=np.array([each.over_children for each in asked], dtype=np.bool_),
    )
    choice = ChildChoice(
        keep=np.array([each.keep for each in asked], dtype=np.int64),
        only_listed=np.array([each.only_listed for each in asked], dtype=np.bool_),
        listed_row=np.array([row for row, _ in listed], dtype=np.int64),
        listed_child=np.array([place for _, place in listed], dtype=np.int64),
        mixing=mixing_of(trie, asked) if any(each.prior for each in asked) else None,
    )
    return expose_children_(logits, trie, rows, choice)


def mixing_of(trie: TrieWeights, asked: list[Asked]) -> RowMixing:
    priors = [each.prior or [0.0] * int(trie.row_start[each.node + 1] - trie.row_start[each.node]) for each in asked]
    return RowMixing(
        linear=np.array([each.prior_linear for each in asked], dtype=np.bool_),
        model=np.array([each.prior_model for each in asked], dtype=np.float32),
        prior=np.concatenate(priors).astype(np.float32),
    )


def expected_children(logits: list[float], trie: TokenTrie, gains: list[float], asked: Asked) -> dict[int, float]:
    """Token -> log-probability of the children that must come back, by a Python loop in float64."""
    scaled = [value / asked.temperature for value in logits]
    tokens = trie.edge_token[trie.row_start[asked.node] : trie.row_start[asked.node + 1]].tolist()
    among = [scaled[token] for token in tokens] if asked.over_children else scaled
    normaliser = max(among) + math.log(math.fsum(math.exp(value - max(among)) for value in among))
    ranked = []
    for place, edge in enumerate(range(int(trie.row_start[asked.node]), int(trie.row_start[asked.node + 1]))):
        if (place in asked.listed) == asked.only_listed:
            token = int(trie.edge_token[edge])
            logprob = scaled[token] - normaliser
            score = logprob * (1 - asked.alpha * gains[edge])
            ranked.append((-asked.ranked_by(place, score), edge, token, logprob))
    return {token: logprob for _, _, token, logprob in sorted(ranked)[: asked.keep]}


@given(data=st.data(), catalogue=catalogues())
def test_a_log_softmax_returns_the_best_admitted_children_and_no_other(data: st.DataObject, catalogue: object) -> None:
    trie = TokenTrie.build(*flat(catalogue.paths))  # type: ignore[attr-defined]
    gains = data.draw(
        st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.99]), min_size=trie.num_edges, max_size=trie.num_edges)
    )
    inner = [node for node in range(trie.num_nodes) if trie.row_start[node] < trie.row_start[node + 1]]
    asked = []
    for _ in range(data.draw(st.integers(0, 4))):
        node = data.draw(st.sampled_from(inner))
        places = list(range(int(trie.row_start[node + 1] - trie.row_start[node])))
        has_prior, linear = data.draw(st.booleans()), data.draw(st.booleans())
        asked.append(
            Asked(
                node=node,
                alpha=data.draw(st.sampled_from([0.0, 0.2, 1.0])),
                temperature=data.draw(st.sampled_from([1.0, 0.5, 2.0])),
                keep=data.draw(st.integers(1, 3)),
                listed=sorted(data.draw(st.sets(st.sampled_from(places)))),
                only_listed=data.draw(st.booleans()),
                over_children=data.draw(st.booleans()),
                # Apart from each other by other amounts than the logits are, so that no two sums are equal.
                prior=[-0.0113 * (3**place % 7919) for place in places] if has_prior else None,
                prior_model=data.draw(st.sampled_from([-0.7, -3.1] if linear else [0.5, 0.0])) if has_prior else 1.0,
                prior_linear=has_prior and linear,
            )
        )
    # Distinct by far more than float32 resolves: which of two equal scores is kept is another test's business.
    values = data.draw(st.lists(st.permutations(range(VOCAB)), min_size=len(asked), max_size=len(asked)))
    logits = torch.tensor(values, dtype=torch.float32).view(len(asked), VOCAB) * 1.37
    wanted = [expected_children(row.tolist(), trie, gains, each) for row, each in zip(logits, asked, strict=True)]
    written = exposed(logits.clone(), weights(trie, gains), asked)
    read = torch.log_softmax(written, dim=-1)
    for row, each, expected in zip(read, asked, wanted, strict=True):
        children = set(trie.edge_token[trie.row_start[each.node] : trie.row_start[each.node + 1]].tolist())
        finite = {token: float(row[token]) for token in range(VOCAB) if math.isfinite(row[token])}
        assert {token: finite[token] for token in finite if token in children} == pytest.approx(expected, abs=1e-5)
        (rest,) = finite.keys() - children
        assert rest == min(set(range(VOCAB)) - children)


def test_of_equal_scores_the_first_edges_are_kept() -> None:
    trie = TokenTrie.build(*flat([(token,) for token in range(6)]))
    asked = Asked(node=0, alpha=0.2, temperature=1.0, keep=2, listed=[0], only_listed=False)
    written = exposed(torch.zeros(1, VOCAB), weights(trie, [0.0] * 6), [asked])
    assert torch.isfinite(written[0]).nonzero().flatten().tolist() == [1, 2, 6]


def test_children_that_have_all_the_probability_leave_a_finite_rest() -> None:
    trie = TokenTrie.build(*flat([(token,) for token in range(1, 6)]))
    logits = torch.full((1, VOCAB), -200.0)
    logits[0, 1:6] = torch.tensor([3.0, 4.0, 100.0, 1.0, -50.0])
    expected = torch.log_softmax(logits, dim=-1)[0, 1:6]
    asked = Asked(node=0, alpha=0.0, temperature=1.0, keep=5, listed=[], only_listed=False)
    read = torch.log_softmax(exposed(logits, weights(trie, [0.0] * 5), [asked]), dim=-1)
    assert torch.isfinite(read[0, :6]).all()
    torch.testing.assert_close(read[0, 1:6], expected)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("at", [1, 7])
def test_a_logit_that_is_no_number_shows_in_all_that_a_row_gives_back_and_in_no_other(value: float, at: int) -> None:
    trie = TokenTrie.build(*flat([(1, 3), (1, 4), (2, 3)]))
    logits = torch.zeros(2, VOCAB)
    logits[0, at] = value
    asked = [Asked(node=0, alpha=0.2, temperature=1.0, keep=2, listed=[], only_listed=False)] * 2
    found = torch.log_softmax(exposed(logits, weights(trie, [0.0] * trie.num_edges), asked), dim=-1)
    assert found[0].isnan().all()
    assert not found[1].isnan().any()
