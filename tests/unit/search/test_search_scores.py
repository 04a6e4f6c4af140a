from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from devices import DEVICES
from factories import flat
from hypothesis import given
from hypothesis import strategies as st
from strategies import catalogues

from igd_core.catalogue.trie import TokenTrie
from igd_core.search import scores as kernel
from igd_core.search.scores import (
    PartLogits,
    RowSettings,
    ScoredChildren,
    TrieWeights,
    child_scores,
    child_scores_of,
    child_tokens,
    constrain_logits_,
)

Row = list[tuple[int, float, float]]
"""Edge, log-probability and score of each child."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Logits and what each row is scored with, as plain values."""

    logits: torch.Tensor
    nodes: list[int]
    alphas: list[float]
    temperatures: list[float] | None
    over_children: list[bool] | None = None

    def settings(self) -> RowSettings:
        return RowSettings(
            node=np.array(self.nodes, dtype=np.int64),
            alpha=np.array(self.alphas, dtype=np.float32),
            temperature=None if self.temperatures is None else np.array(self.temperatures, dtype=np.float32),
            over_children=None if self.over_children is None else np.array(self.over_children, dtype=np.bool_),
        )


def weights(trie: TokenTrie, gains: list[float]) -> TrieWeights:
    return TrieWeights(
        row_start=trie.row_start,
        edge_token=trie.edge_token,
        sibling_gain=np.array(gains, dtype=np.float32),
    )


def child_tokens_of(trie: TokenTrie, node: int) -> list[int]:
    return [int(token) for token in trie.edge_token[int(trie.row_start[node]) : int(trie.row_start[node + 1])]]


def expected_rows(trie: TokenTrie, gains: list[float], rows: Rows) -> list[Row]:
    """A Python loop per row, in float64."""
    result = []
    for at, node in enumerate(rows.nodes):
        temperature = 1.0 if rows.temperatures is None else rows.temperatures[at]
        logits = [float(value) / temperature for value in rows.logits[at].double()]
        tokens = child_tokens_of(trie, node)
        among = logits
        if rows.over_children is not None and rows.over_children[at]:
            among = [logits[token] for token in tokens]
        normaliser = log_sum(among)
        row = []
        for edge in range(int(trie.row_start[node]), int(trie.row_start[node + 1])):
            logprob = logits[int(trie.edge_token[edge])] - normaliser
            row.append((edge, logprob, logprob * (1.0 - rows.alphas[at] * gains[edge])))
        result.append(row)
    return result


def log_sum(values: list[float]) -> float:
    """``ln sum exp``; of nothing, and of nothing but -inf, no number."""
    highest = max(values, default=math.nan)
    return (
        highest + math.log(math.fsum(math.exp(value - highest) for value in values))
        if highest > -math.inf
        else math.nan
    )


def assert_equal(children: ScoredChildren, expected: list[Row], tolerance: float = 1e-4) -> None:
    flat_rows = [(row, *child) for row, children_of_row in enumerate(expected) for child in children_of_row]
    assert children.row.tolist() == [row for row, *_ in flat_rows]
    assert children.edge.tolist() == [edge for _, edge, *_ in flat_rows]
    assert children.logprob.tolist() == pytest.approx(
        [logprob for *_, logprob, _ in flat_rows], abs=tolerance, nan_ok=True
    )
    assert children.score.tolist() == pytest.approx([score for *_, score in flat_rows], abs=tolerance, nan_ok=True)
    assert children.logprob.dtype == children.score.dtype == torch.float32


@st.composite
def kernel_cases(draw: st.DrawFn) -> tuple[TokenTrie, list[float], Rows]:
    """A random trie, and rows on any of its nodes (leaves, which have no children, among them)."""
    trie = draw(catalogues()).trie()
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    gains = rng.random(trie.num_edges).astype(np.float32).tolist()
    nodes = draw(st.lists(st.integers(0, trie.num_nodes - 1), max_size=12))
    logits = rng.normal(0, 8, size=(len(nodes), draw(st.integers(5, 40)))).astype(np.float32)
    if draw(st.booleans()):
        logits[rng.random(logits.shape) < 0.2] = -math.inf
        logits[:, 4] = 0.0  # a row of nothing but -inf is no distribution
    return (
        trie,
        gains,
        Rows(
            logits=torch.from_numpy(logits).to(
                draw(st.sampled_from(DEVICES)), draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
            ),
            nodes=nodes,
            alphas=draw(st.lists(st.sampled_from([0.0, 0.2, 0.9]), min_size=len(nodes), max_size=len(nodes))),
            temperatures=draw(
                st.none() | st.lists(st.sampled_from([0.5, 1.0, 3.0]), min_size=len(nodes), max_size=len(nodes))
            ),
            over_children=draw(st.none() | st.lists(st.booleans(), min_size=len(nodes), max_size=len(nodes))),
        ),
    )


@given(case=kernel_cases())
def test_child_scores_equal_a_loop_over_rows_in_float64(case: tuple[TokenTrie, list[float], Rows]) -> None:
    trie, gains, rows = case
    before = rows.logits.clone()
    assert_equal(child_scores(rows.logits, weights(trie, gains), rows.settings()), expected_rows(trie, gains, rows))
    assert torch.equal(rows.logits, before)


@given(case=kernel_cases())
def test_over_children_their_columns_alone_give_the_same_scores(case: tuple[TokenTrie, list[float], Rows]) -> None:
    trie, gains, rows = case
    rows = replace(rows, over_children=[True] * len(rows.nodes))
    columns = child_tokens(weights(trie, gains), np.array(rows.nodes, dtype=np.int64))
    assert set(columns.tolist()) == {token for node in rows.nodes for token in child_tokens_of(trie, node)}
    picked = rows.logits[:, torch.from_numpy(columns).to(rows.logits.device)]
    children = child_scores_of([PartLogits(picked, columns)], weights(trie, gains), rows.settings())
    assert_equal(children, expected_rows(trie, gains, rows))


@given(case=kernel_cases(), cuts=st.lists(st.integers(0, 8), max_size=3), over_children=st.booleans())
def test_rows_with_logits_of_their_own_are_scored_together_as_apart(
    case: tuple[TokenTrie, list[float], Rows], cuts: list[int], over_children: bool
) -> None:
    """Parts of the rows, each with the whole vocabulary or, over children, with the columns that it needs."""
    trie, gains, rows = case
    if over_children:
        rows = replace(rows, over_children=[True] * len(rows.nodes))
    bounds = [0, *sorted(min(cut, len(rows.nodes)) for cut in cuts), len(rows.nodes)]
    parts = []
    for place, (begin, end) in enumerate(pairwise(bounds)):
        columns = None
        if over_children and place % 2 and end > begin:
            columns = child_tokens(weights(trie, gains), np.array(rows.nodes[begin:end], dtype=np.int64))
        logits = rows.logits[begin:end]
        parts.append(PartLogits(logits if columns is None else logits[:, torch.from_numpy(columns)], columns))
    children = child_scores_of(parts, weights(trie, gains), rows.settings())
    assert_equal(children, expected_rows(trie, gains, rows))


@given(case=kernel_cases())
def test_constrained_logits_hold_the_scores_of_children_and_nothing_else(
    case: tuple[TokenTrie, list[float], Rows],
) -> None:
    trie, gains, rows = case
    expected = torch.full(rows.logits.shape, -math.inf, dtype=torch.float64)
    for at, row in enumerate(expected_rows(trie, gains, rows)):
        for edge, _, score in row:
            expected[at, int(trie.edge_token[edge])] = score
    logits = rows.logits.clone()
    constrained = constrain_logits_(logits, weights(trie, gains), rows.settings())
    assert constrained is logits
    tolerance = 1e-4 if logits.dtype == torch.float32 else 1e-2
    torch.testing.assert_close(constrained.double().cpu(), expected, atol=tolerance, rtol=tolerance, equal_nan=True)


def test_over_children_nothing_but_their_logits_counts_and_one_alone_has_it_all() -> None:
    trie = TokenTrie.build(*flat([(1, 0), (2, 5, 0)]))
    logits = torch.full((2, 8), math.nan)
    logits[0, 1], logits[0, 2], logits[1, 0] = 2.0, 2.0 + math.log(3), -3.0
    rows = Rows(logits=logits, nodes=[0, 1], alphas=[0.0, 0.9], temperatures=None, over_children=[True, True])
    children = child_scores(logits, weights(trie, [0.0] * 5), rows.settings())
    assert children.logprob.exp().tolist() == pytest.approx([0.25, 0.75, 1.0])
    assert children.score.tolist()[2] == 0


@pytest.mark.parametrize("num_rows", [1, 3, 4, 11, 13])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("device", DEVICES)
def test_rows_of_several_blocks_are_scored_alike(
    num_rows: int, dtype: torch.dtype, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 250,000 logits a row, a block holds four rows."""
    vocab = 250_000
    assert kernel._BLOCK_LOGITS_CPU // vocab == 4
    monkeypatch.setattr(kernel, "_BLOCK_LOGITS_CUDA", kernel._BLOCK_LOGITS_CPU)
    rng = np.random.default_rng(num_rows)
    paths = [(*rng.integers(1, vocab, size=int(rng.integers(1, 4))).tolist(), 0) for _ in range(40)]
    trie = TokenTrie.build(*flat(paths))
    gains = rng.random(trie.num_edges).astype(np.float32).tolist()
    leaf = int(trie.leaf_node[0])
    nodes = [leaf if row % 5 == 2 else 0 if row % 2 else 1 + row for row in range(num_rows)]
    rows = Rows(
        logits=torch.from_numpy(rng.normal(0, 3, size=(num_rows, vocab)).astype(np.float32)).to(device, dtype),
        nodes=nodes,
        alphas=rng.random(num_rows).astype(np.float32).tolist(),
        temperatures=(0.5 + rng.random(num_rows)).astype(np.float32).tolist(),
    )
    children = child_scores(rows.logits, weights(trie, gains), rows.settings())
    whole = torch.log_softmax(rows.logits.cpu().double() / torch.tensor(rows.temperatures).double()[:, None], dim=-1)
    expected = [
        [
            (edge, value := float(whole[at, int(trie.edge_token[edge])]), value * (1.0 - rows.alphas[at] * gains[edge]))
            for edge in range(int(trie.row_start[node]), int(trie.row_start[node + 1]))
        ]
        for at, node in enumerate(nodes)
    ]
    assert_equal(children, expected, tolerance=1e-3)


def test_a_vocabulary_larger_than_a_block_is_scored_row_by_row() -> None:
    vocab = kernel._BLOCK_LOGITS_CPU + 1
    trie = TokenTrie.build(*flat([(vocab - 1, 0), (3, 0)]))
    logits = torch.zeros(2, vocab)
    logits[1, vocab - 1] = math.log(vocab)
    rows = Rows(logits=logits, nodes=[0, 0], alphas=[0.0, 0.0], temperatures=None)
    children = child_scores(logits, weights(trie, [0.0] * 4), rows.settings())
    even, doubled = -math.log(vocab), -math.log(2 * vocab - 1)
    assert children.logprob.tolist() == pytest.approx([even, even, doubled, doubled + math.log(vocab)], abs=1e-3)


def test_no_rows_give_no_children() -> None:
    trie = TokenTrie.build(*flat([(1, 0)]))
    rows = Rows(logits=torch.empty(0, 8), nodes=[], alphas=[], temperatures=[])
    children = child_scores(rows.logits, weights(trie, [0.0, 0.0]), rows.settings())
    assert len(children.row) == len(children.score) == 0
    assert constrain_logits_(rows.logits, weights(trie, [0.0, 0.0]), rows.settings()).shape == (0, 8)


def test_an_impossible_token_stays_impossible_at_alpha_one() -> None:
    """The weight of the most decisive sibling comes close to 0, and 0 x -inf would be no number."""
    below_one = float(np.nextafter(np.float32(1), np.float32(0)))
    trie = TokenTrie.build(*flat([(1, 0), (2, 0)]))
    logits = torch.tensor([[0.0, -math.inf, 0.0, 0.0]])
    rows = Rows(logits=logits, nodes=[0], alphas=[1.0], temperatures=None)
    children = child_scores(logits, weights(trie, [below_one, 0.0, 0.0, 0.0]), rows.settings())
    assert children.score.tolist()[0] == -math.inf
    assert math.isfinite(children.score.tolist()[1])
